"""Suspicions and their time-outs, which shrink as others agree.

Lifeguard (Dadgar, Phillips, Currey 2018), section IV-B: one accuser alone may be the one who is cut off
or slow, so its word waits long; independent accusers make it wait less, down to a minimum that still
leaves the accused time to hear of it and to refute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from p2pfl_net.core.ids import PeerId


@dataclass(slots=True)
class Suspicion:
    """What is held against one peer in one incarnation. Times in seconds."""

    incarnation: int
    began: float
    minimum_s: float
    maximum_s: float
    wanted: int
    """How many who agree bring the time-out down to the minimum (the paper's K)."""
    accusers: set[PeerId] = field(default_factory=set)
    """Who said so, the first one included; no more than matter."""
    witnesses: int = 0
    """Helpers that told us directly that they could not reach it either."""
    probed: bool = False
    """Whether we have tried to reach it ourselves: else it is others' word."""
    asked_again: bool = False
    """Whether the peer had its last chance."""
    hold_until: float = 0.0
    """Until when it has it."""

    def agree(self, accuser: PeerId | None) -> bool:
        """Notes one more accuser. Whether that is news to pass on."""
        if not self.counts(accuser):
            return False
        assert accuser is not None
        self.accusers.add(accuser)
        return True

    def counts(self, accuser: PeerId | None) -> bool:
        """Whether one more word of `accuser` would matter."""
        return accuser is not None and accuser not in self.accusers and len(self.accusers) <= self.wanted

    def next_at(self, probe_s: float) -> float:
        """When something is to be done: the deadline, or before it a last probe, which takes `probe_s`.

        The peer may have come back meanwhile, and nobody have told it what is held against it. Who has
        just been probed is not asked again.
        """
        if not self._deserves_a_chance(probe_s):
            return max(self.deadline, self.hold_until)
        return max(self.began, self.deadline - probe_s)

    def _deserves_a_chance(self, probe_s: float) -> bool:
        was_just_probed = self.probed and self.deadline < self.began + probe_s
        return not self.asked_again and not was_just_probed

    def ask_again(self, now: float, probe_s: float) -> bool:
        """Whether it is time for the last probe; counts it as begun."""
        if not self._deserves_a_chance(probe_s) or now < self.next_at(probe_s):
            return False
        self.asked_again, self.hold_until = True, now + probe_s
        return True

    def failed_again(self, witnesses: int) -> None:
        """Our own probe failed, and that of `witnesses` helpers."""
        self.probed, self.hold_until = True, 0.0
        self.witnesses = max(self.witnesses, witnesses)

    @property
    def deadline(self) -> float:
        """When the peer is declared dead unless it refutes.

        max - (max - min) · log(C + 1) / log(K + 1), at least min, with C independent confirmations.
        """
        if self.wanted < 1:
            return self.began + self.minimum_s
        confirmations = max(0, len(self.accusers) - 1) + self.witnesses
        share = min(1.0, math.log(confirmations + 1) / math.log(self.wanted + 1))
        return self.began + self.maximum_s - (self.maximum_s - self.minimum_s) * share
