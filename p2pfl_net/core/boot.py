"""The attempts at joining: the boot peers in turn, again after a pause, until a deadline.

Peers that an earlier life knew help where the boot peers do not answer. They do not replace them: two
peers of a network that starts anew could otherwise find each other and nobody else, and a peer that was
given another network would go back to its old one. So the boot peers are asked alone for a while, and
on beside a network that was found without them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from p2pfl_net.core.events import Start
from p2pfl_net.core.ids import Address
from p2pfl_net.core.params import Params

VERDICT_GRACE_S = 0.5
"""The last attempt ends at the deadline; its own reason tells more than that the time is up."""
LEAST_ATTEMPT_S = 0.25
"""Shorter attempts are not made: they would end in "no answer" and hide what the one before had found."""


@dataclass(slots=True)
class BootAttempts:
    """Whom to ask next, and when. Times in seconds of the core's clock."""

    named: list[Address]
    """The operator's boot peers: one of them must answer. None: those of the earlier life may."""
    remembered: tuple[Address, ...]
    remembered_from: float
    """When peers of an earlier life are asked too."""
    remembered_timeout_s: float
    deadline: float
    pause_s: float
    longest_pause_s: float
    joined: bool = False
    """Whether the network is up, through a peer of the earlier life."""
    unanswered: tuple[Address, ...] = ()
    """Peers of the earlier life that are asked once, for none is required."""
    failure: str | None = None
    """Why the last attempt at a boot peer failed; None: none has ended."""
    _turn: deque[Address] = field(default_factory=deque)
    _told: dict[Address, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, event: Start, params: Params, now: float) -> BootAttempts:
        attempts = cls(
            named=list(event.boot),
            remembered=event.remembered,
            remembered_from=now + params.remembered_after_s,
            remembered_timeout_s=params.remembered_timeout_s,
            deadline=now + event.boot_timeout_s,
            pause_s=params.boot_backoff_s,
            longest_pause_s=params.boot_backoff_max_s,
        )
        if not attempts.named:
            attempts._stand_alone(now)
        return attempts

    @property
    def reason(self) -> str:
        """What to tell whoever waits in vain."""
        return self.failure or "the first attempt got no answer, not even to the question for its address"

    @property
    def verdict_at(self) -> float:
        """When it is over, whatever an attempt still waits for (a name server, for one)."""
        return self.deadline + VERDICT_GRACE_S

    def next(self, now: float) -> Address | None:
        """Whom to ask now; None: nobody is left, or the time is up."""
        if now >= self.deadline:
            return None
        if not self._turn:
            self._turn.extend(self.named)
            if not self.joined and now >= self.remembered_from:
                self._turn.extend(self.remembered)
        return self._turn.popleft() if self._turn else None

    def is_news(self, address: Address, reason: str) -> bool:
        """Whether whoever waits has not been told yet that this boot peer fails for this reason."""
        told = self._told.get(address)
        self._told[address] = reason
        return address in self.named and told != reason

    def failed(self, address: Address, reason: str, now: float) -> float | None:
        """Notes a failed attempt. When to make the next one, after a pause once all had their turn; None:
        each had it, and none is required."""
        was_cut_short = now >= self.deadline
        if address in self.named and not (was_cut_short and self.failure):
            self.failure = reason
        if self._turn:
            return now
        return self._pause(now) if self.named else None

    def answered(self, address: Address, now: float) -> float | None:
        """Notes that we are in. When to ask the boot peers again, who have not answered; None: one did."""
        self.joined = True
        if address in self.named or not self.named:
            return None
        self._turn.clear()
        return self._pause(now)

    def forget(self, address: Address, now: float) -> None:
        """Strikes an address that turned out to be our own: who names only itself is the first peer."""
        self.named = [other for other in self.named if other != address]
        self.remembered = tuple(other for other in self.remembered if other != address)
        if not self.named and not self._turn:
            self._stand_alone(now)

    def _stand_alone(self, now: float) -> None:
        """No boot peer is required: each peer of the earlier life is asked once, for a short while."""
        self.deadline = min(self.deadline, now + self.remembered_timeout_s)
        self._turn.extend(self.remembered)
        self.unanswered, self.remembered = self.remembered, ()

    def _pause(self, now: float) -> float:
        due = now + self.pause_s
        self.pause_s = min(2 * self.pause_s, self.longest_pause_s)
        return due if due + LEAST_ATTEMPT_S <= self.deadline else self.deadline
