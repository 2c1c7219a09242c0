"""Points in time that may not be set."""

from __future__ import annotations


def soonest(*times: float | None) -> float | None:
    """The first of those that are set; None: none is."""
    first: float | None = None
    for time in times:
        if time is not None and (first is None or time < first):
            first = time
    return first
