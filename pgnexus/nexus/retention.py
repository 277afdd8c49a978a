"""Nexus side, beside every request: which of its rows are kept for how long."""

from __future__ import annotations

from pgnexus.messages import REQUEST_QUEUES
from pgnexus.pruning import Part
from pgnexus.settings import Settings


def parts(settings: Settings, keep: float | None = None) -> list[Part]:
    """What the nexus side prunes, kept as the settings say, or all of it for ``keep`` seconds."""
    runs = settings.keep_request_runs if keep is None else keep
    attempts = settings.keep_attempts if keep is None else keep
    rejected = settings.keep_rejected if keep is None else keep
    return [
        Part("runs of requests", "prune_request_runs", runs, kind="request-runs"),
        Part("instances", "prune_workers", runs, kind="instances"),
        Part("attempts", "prune_attempts", attempts, kind="attempts"),
        Part(
            "rejected requests",
            "prune_archives",
            rejected,
            {"queues": list(REQUEST_QUEUES.values())},
            kind="rejected",
        ),
    ]
