"""Caller side, beside every request: which of its rows are kept for how long."""

from __future__ import annotations

from typing import Final

from pgnexus.pruning import Part
from pgnexus.settings import Settings

MONTH: Final = 31 * 86400.0  # who keeps for as long has results go by whole months, at next to no cost


def parts(settings: Settings, keep: float | None = None) -> list[Part]:
    """What the caller side prunes, kept as the settings say, or all of it for ``keep`` seconds and no longer."""
    results = settings.keep_results if keep is None else keep
    rejected = settings.keep_rejected if keep is None else keep
    exact = keep is not None or (results is not None and results < MONTH)
    return [
        Part("months of results", "prune_months", results, kind="results"),
        Part("results", "prune_results", results, {"exact": exact}, kind="results"),
        Part(
            "rejected results",
            "prune_archives",
            rejected,
            {"queues": sorted({settings.reply_to, "ai_results"})},
            kind="rejected",
        ),
    ]
