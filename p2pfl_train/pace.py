"""When a cycle makes its request: just so early that the answer is there at its end."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_LEAD_S = 0.5
LEAD_FACTOR = 2.0
LEAD_GAIN = 0.3
"""The lead is twice what rounds took of late, smoothed: a late answer costs a whole cycle of freshness, an
early one some steps. Guesses within that."""


class Lead:
    """How long before the end of a cycle its request is made."""

    def __init__(self) -> None:
        self.seconds = FIRST_LEAD_S

    def round_took(self, seconds: float) -> None:
        """`seconds` from a request to models that could be averaged."""
        self.seconds += LEAD_GAIN * (LEAD_FACTOR * seconds - self.seconds)


@dataclass
class Pace:
    """How a cycle's training gets on."""

    steps: int
    started_at_s: float
    done: int = 0

    def step_done(self, now_s: float) -> float:
        """Counts a step; the seconds that the remaining ones will take at this pace."""
        self.done += 1
        return (self.steps - self.done) * (now_s - self.started_at_s) / self.done
