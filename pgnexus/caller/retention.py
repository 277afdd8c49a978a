"""Caller side, beside every request: which of its rows are kept for how long."""

from __future__ import annotations

from pgnexus.pruning import Part
from pgnexus.settings import Settings


def parts(settings: Settings, keep: float | None = None) -> list[Part]:
    """What the caller side prunes, kept as the settings say, or all of it for ``keep`` seconds."""
    results = settings.keep_results if keep is None else keep
    rejected = settings.keep_rejected if keep is None else keep
    return [
        Part("months of results", "prune_months", results, kind="results"),
        Part("results", "prune_results", results, kind="results"),
        Part(
            "rejected results",
            "prune_archives",
            rejected,
            {"queues": sorted({settings.reply_to, "ai_results"})},
            kind="rejected",
        ),
    ]
