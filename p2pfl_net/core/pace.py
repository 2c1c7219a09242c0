"""How the fetches of a round get on: which are silent, which come too late, which to give up.

A fetch is **silent** when nothing has come for far longer than its own chunks take: it uses nothing of our
link, so another may take its place. It is **late** when at its own pace it would end after the deadline.
Then either its peer is slow, and another one is better, or our own link is, and another one makes all of
them slower. Which of the two is tried out: one substitute at a time; when it comes late as well, it is
our link, and what the link can bring in the time that is left is brought, the most advanced first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl_net.core.ids import PeerId

PATIENCE_FACTOR = 3.0
"""Silence is counted from this many times the longest gap between two chunks so far. A guess above 2: the
first chunks of a transfer double in size."""
MATURE_SHARE = 0.25
"""A pace counts once it was measured over `stall_s`, or over this share of a short round. A guess: before, it
is that of a connection being made."""
GIVE_UP_MARGIN = 1.05
"""A fetch is given up only if the link does not bring it at so many times the rate that it has shown."""


@dataclass(slots=True)
class Transfer:
    """A fetch under way. Times in seconds of the core's clock."""

    peer_id: PeerId
    started: float
    progressed_at: float
    is_substitute: bool = False
    """Whether it was started beside one that comes too late, to find out why."""
    received_bytes: int = 0
    size_bytes: int = 0
    longest_gap_s: float = 0.0
    silent: bool = False
    """Whether it was found silent, and has not been heard of since."""

    def progress(self, received_bytes: int, size_bytes: int, now: float) -> None:
        if self.size_bytes:  # the wait for the header says nothing of the link
            self.longest_gap_s = max(self.longest_gap_s, now - self.progressed_at)
        self.progressed_at = now
        self.received_bytes, self.size_bytes = received_bytes, size_bytes
        self.silent = False

    def silent_from(self, stall_s: float) -> float:
        """When it counts as silent unless something comes."""
        return self.progressed_at + max(stall_s, PATIENCE_FACTOR * self.longest_gap_s)

    def expected_bytes(self, now: float) -> float:
        """What has come by now at the pace so far: of a chunk under way nothing is told yet."""
        if self.silent or self.measured_s == 0:
            return self.received_bytes
        return min(self.size_bytes, self.received_bytes * (now - self.started) / self.measured_s)

    @property
    def measured_s(self) -> float:
        return self.progressed_at - self.started

    def expected_end(self) -> float:
        """When it ends at the pace so far; some bytes must have come."""
        return self.started + self.measured_s * self.size_bytes / self.received_bytes


@dataclass(frozen=True, slots=True)
class Pace:
    """How the fetches of one round are judged."""

    started: float
    deadline: float
    stall_s: float

    @property
    def mature_s(self) -> float:
        """How long a pace must have been measured."""
        return min(self.stall_s, MATURE_SHARE * (self.deadline - self.started))

    def is_mature(self, transfer: Transfer) -> bool:
        return transfer.received_bytes > 0 and transfer.measured_s >= self.mature_s

    def is_late(self, transfer: Transfer) -> bool:
        return not transfer.silent and self.is_mature(transfer) and transfer.expected_end() > self.deadline

    def is_on_trial(self, transfer: Transfer) -> bool:
        """Whether a substitute has not shown yet whether it is faster."""
        return transfer.is_substitute and not transfer.silent and not self.is_mature(transfer)

    def is_link_slow(self, transfers: Iterable[Transfer]) -> bool:
        """Whether a substitute came late as well."""
        return any(transfer.is_substitute and self.is_late(transfer) for transfer in transfers)

    def hopeless(self, transfers: Iterable[Transfer], ended_bytes: int, now: float) -> list[Transfer]:
        """Those of the late that cannot come in time, if the link goes on as it has done so far.

        `ended_bytes`: what fetches that are over brought in this round. The one that has least left is
        never given up.
        """
        known = [transfer for transfer in transfers if transfer.size_bytes > 0]
        elapsed_s = now - self.started
        if elapsed_s < self.mature_s or not any(map(self.is_late, known)):
            return []
        came = {transfer.peer_id: transfer.expected_bytes(now) for transfer in known}
        budget_bytes = GIVE_UP_MARGIN * (ended_bytes + sum(came.values())) / elapsed_s * (self.deadline - now)
        left = sorted((transfer.size_bytes - came[transfer.peer_id], transfer.peer_id) for transfer in known)
        given_up = set()
        for place, (left_bytes, peer_id) in enumerate(left):
            if place > 0 and left_bytes > budget_bytes:
                given_up.add(peer_id)
            else:
                budget_bytes -= left_bytes
        return [t for t in known if t.peer_id in given_up and self.is_late(t)]
