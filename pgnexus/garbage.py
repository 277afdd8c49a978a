"""A process that does nothing but work: how often Python looks for garbage."""

from __future__ import annotations

import gc

_THRESHOLDS = (20_000, 20, 50)  # objects, and collections of the younger generation


def collect_seldom() -> None:
    """To be called once everything has started: what there is by now stays, and need not be looked through again.

    A request leaves hardly any cycles behind, but thousands of objects are alive while hundreds of calls run. With
    Python's own thresholds looking through them again and again took a quarter of a busy worker's time. For
    processes that are ours alone: an application decides for itself.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
