"""Beside every flow: which of its rows are kept for how long."""

from __future__ import annotations

from pgnexus.pruning import Part
from pgnexus.settings import Settings


def parts(settings: Settings, keep: float | None = None) -> list[Part]:
    """What those who run flows prune, kept as the settings say, or all of it for ``keep`` seconds."""
    runs = settings.keep_flow_runs if keep is None else keep
    instances = settings.keep_request_runs if keep is None else keep
    return [
        Part("runs of flows", "prune_flow_runs", runs, kind="flow-runs"),
        Part("archived tasks", "prune_flow_archives", runs, kind="flow-runs"),
        Part("instances", "prune_workers", instances, kind="instances"),
    ]
