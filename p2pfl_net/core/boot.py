"""The attempts at the boot peers: one after the other, again after a pause, until a deadline."""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl_net.core.events import Start
from p2pfl_net.core.ids import Address
from p2pfl_net.core.params import Params

VERDICT_GRACE_S = 0.5
"""The last attempt ends at the deadline; its own reason tells more than that the time is up."""


@dataclass(slots=True)
class BootAttempts:
    """Whom to ask next, and when. Times in seconds of the core's clock."""

    addresses: list[Address]
    deadline: float
    required: bool
    """Whether one of them must answer; if not, each is tried once."""
    pause_s: float
    longest_pause_s: float
    turn: int = 0
    reason: str = "the first attempt got no answer, not even to the question for its address"
    """Why the last attempt failed."""

    @classmethod
    def begin(cls, event: Start, params: Params, now: float) -> BootAttempts:
        return cls(
            addresses=list(event.boot),
            deadline=now + event.boot_timeout_s,
            required=event.required,
            pause_s=params.boot_backoff_s,
            longest_pause_s=params.boot_backoff_max_s,
        )

    @property
    def verdict_at(self) -> float:
        """When it is over, whatever an attempt still waits for (a name server, for one)."""
        return self.deadline + VERDICT_GRACE_S

    def current(self) -> Address:
        """The boot peer whose turn it is."""
        return self.addresses[self.turn % len(self.addresses)]

    def failed(self, reason: str, now: float) -> float | None:
        """Notes a failed attempt. When to make the next one, after a pause once all were tried; None:
        each was tried, and none is required."""
        self.reason = reason
        self.turn += 1
        pause_s = 0.0
        if self.turn % len(self.addresses) == 0:
            if not self.required:
                return None
            pause_s = self.pause_s
            self.pause_s = min(2 * self.pause_s, self.longest_pause_s)
        return min(now + pause_s, self.deadline)

    def forget(self, address: Address) -> bool:
        """Strikes an address that turned out to be our own. Whether others are left."""
        self.addresses = [other for other in self.addresses if other != address]
        return bool(self.addresses)
