"""One peer's decisions: membership and collection behind one door, `handle(event, now) -> outputs`."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import assert_never

from p2pfl_net.core.collect import Collector, choose_task
from p2pfl_net.core.events import (
    Answered,
    Ask,
    Event,
    Failed,
    FetchFailed,
    FetchFinished,
    FetchProgressed,
    ModelPublished,
    Output,
    Received,
    Start,
    Stop,
    Tick,
)
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.membership import Membership
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability


@dataclass(frozen=True, slots=True)
class PeerView:
    """One other peer as readers of the list see it."""

    record: Record
    last_seen: float | None
    """In the core's time; None: only heard of."""
    model_version: int
    """As it last told us directly; 0: none, or not told."""
    offences: int


@dataclass(frozen=True, slots=True)
class PeerList:
    """An immutable snapshot of the peer list: others only, never this peer."""

    me: Record
    address: Address
    """Where this peer is reached, as far as it knows."""
    peers: tuple[PeerView, ...]


class Node:
    """A peer's state machine. Not thread-safe: one thread feeds it. Its time never goes back."""

    def __init__(
        self, me: PeerId, reachability: Reachability, incarnation: int, params: Params, random: Random
    ) -> None:
        """`incarnation`: greater than in every earlier life of this peer, such as the clock's seconds."""
        self._random = random
        self._reachability = reachability
        self.membership = Membership(me, reachability, incarnation, params, random)
        self._collector = Collector(params, random)
        self._stopping = False

    def handle(self, event: Event, now: float) -> list[Output]:
        """Takes one event in at the time `now` (seconds on any clock) and says what to do."""
        match event:
            case Start():
                return self.membership.start(event, now)
            case Tick():
                return self.membership.tick(now) + self._collector.tick(now)
            case Received():
                return self.membership.received(event, now)
            case Answered():
                return self.membership.answered(event, now)
            case Failed():
                return self.membership.failed(event, now)
            case ModelPublished():
                return self.membership.model_published(event, now)
            case Ask():
                return [] if self._stopping else self._ask(event, now)
            case FetchProgressed():
                return self._collector.progressed(event, now)
            case FetchFinished():
                return self._collector.finished(event, now)
            case FetchFailed():
                return self._collector.failed(event, now)
            case Stop():
                self._stopping = True
                return self._collector.stop() + self.membership.stop(now)
            case _:
                assert_never(event)

    def wakeup(self) -> float | None:
        """When a `Tick` is due; None: only another event changes anything."""
        times = (self.membership.wakeup(), self._collector.wakeup())
        return min((time for time in times if time is not None), default=None)

    def peer_list(self) -> PeerList:
        """The live peers now, in the order of their ids."""
        views = (
            PeerView(
                member.record,
                member.last_seen,
                member.model_version,
                self._collector.offences[member.record.peer_id],
            )
            for member in self.membership.table.live_members()
        )
        ordered = tuple(sorted(views, key=lambda view: view.record.peer_id))
        return PeerList(self.membership.me, self._reachability.best(), ordered)

    def _ask(self, event: Ask, now: float) -> list[Output]:
        table = self.membership.table
        serving = [
            member
            for member in table.live_members()
            if member.record.published and member.record.task and member.record.status is Status.ALIVE
        ]
        task = choose_task(event.task, [m.record.task for m in serving if m.record.task], self._random)
        candidates = {m.record.peer_id: m.addresses() for m in serving if m.record.task == task}
        return self._collector.ask(event, task, candidates, len(table.live), now)
