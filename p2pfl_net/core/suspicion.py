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

    def agree(self, accuser: PeerId | None) -> bool:
        """Notes one more accuser. Whether that is news to pass on."""
        if accuser is None or accuser in self.accusers or len(self.accusers) > self.wanted:
            return False
        self.accusers.add(accuser)
        return True

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
