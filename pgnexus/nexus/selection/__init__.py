"""Nexus side, before any call: which models may serve a request, in which order, and if none, why. Pure."""

from __future__ import annotations

from pgnexus.nexus.selection.candidate import Candidate
from pgnexus.nexus.selection.conditions import Conditions, Standing
from pgnexus.nexus.selection.explanation import Considered, Explanation
from pgnexus.nexus.selection.needs import Needs
from pgnexus.nexus.selection.routes import DEFAULT_ROUTES, NO_ROUTE
from pgnexus.nexus.selection.selector import Selection, Selector
from pgnexus.nexus.selection.wanted import Wanted

__all__ = [
    "DEFAULT_ROUTES",
    "NO_ROUTE",
    "Candidate",
    "Conditions",
    "Considered",
    "Explanation",
    "Needs",
    "Selection",
    "Selector",
    "Standing",
    "Wanted",
]
