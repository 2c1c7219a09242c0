"""Local health awareness: a slow peer blames itself first.

Dadgar, Phillips, Currey: Lifeguard: Local Health Awareness for More Accurate Failure Detection, 2018,
section IV-A. What says that this peer is slow (its probes fail while others' helpers are silent too, it
must refute a suspicion, its clock jumps) makes it probe less often and wait longer before it suspects.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LocalHealth:
    """The paper's local health multiplier: 0 is healthy."""

    limit: int
    score: int = 0

    @property
    def factor(self) -> int:
        """What this peer's probe interval and time-outs are multiplied with."""
        return 1 + self.score

    def degrade(self, by: int = 1) -> None:
        self.score = min(self.limit, self.score + by)

    def recover(self) -> None:
        """A probe was answered in time."""
        self.score = max(0, self.score - 1)
