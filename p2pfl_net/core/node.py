"""One peer's decisions: membership and collection behind one door, `handle(event, now) -> outputs`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import assert_never

from p2pfl_net.core.candidates import candidates
from p2pfl_net.core.collect import Collector
from p2pfl_net.core.counters import Counters
from p2pfl_net.core.dissemination import Sealing, unsealed
from p2pfl_net.core.events import (
    Answered,
    Ask,
    Discovered,
    Event,
    Failed,
    FetchFailed,
    FetchFinished,
    FetchProgressed,
    InterfacesChanged,
    ModelPublished,
    Output,
    PeersChanged,
    Proved,
    Received,
    Start,
    Stop,
    Tick,
    TrustChanged,
)
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.membership import Membership
from p2pfl_net.core.messages import Record
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.core.times import soonest
from p2pfl_net.core.trust import Trust


@dataclass(frozen=True, slots=True)
class PeerView:
    """One other peer as readers of the list see it."""

    record: Record
    addresses: tuple[Address, ...]
    """All at which it may be reached from here, the one that last worked first."""
    last_seen: float | None
    """In the core's time; None: only heard of."""
    model_version: int
    """As it last told us directly; 0: none, or not told."""
    offences: int
    rtt_s: float | None = None
    """Round-trip time of calls to it, smoothed; None: not called yet."""
    is_aside: bool = False
    """Whether no round asks it now, for its models were wrong."""
    trust: str | None = None
    """What a person decided on it: `approved`, `revoked`, or nothing."""


@dataclass(frozen=True, slots=True)
class PeerList:
    """An immutable snapshot of the peer list: others only, never this peer."""

    me: Record
    address: Address
    """Where this peer is reached, as far as it knows."""
    peers: tuple[PeerView, ...]
    counters: Counters = field(default_factory=Counters)
    health: int = 0
    """Local health multiplier: 0 when all is well."""


class Node:
    """A peer's state machine. Not thread-safe: one thread feeds it. Its time never goes back."""

    def __init__(
        self,
        me: PeerId,
        reachability: Reachability,
        incarnation: int,
        params: Params,
        random: Random,
        tags: tuple[str, ...] = (),
        seal: Sealing = unsealed,
    ) -> None:
        """`incarnation`: greater than in every earlier life of this peer, such as the clock's seconds.
        `seal` signs what this peer says of itself."""
        self._random = random
        self._params = params
        self._reachability = reachability
        self.membership = Membership(me, reachability, incarnation, params, random, tags, seal)
        self._collector = Collector(params, random)
        self._trust = Trust()
        self._now = 0.0
        self._stopping = False
        self._due: float | None = None

    def handle(self, event: Event, now: float) -> list[Output]:
        """Takes one event in at the time `now` (seconds on any clock) and says what to do."""
        if self._due is not None and now - self._due > self._params.pause_s:
            self.membership.stood_still(now - self._due)
        self._now = now
        outputs = self._handle(event, now)
        self._due = soonest(self.membership.wakeup(), self._collector.wakeup())
        return outputs

    def _handle(self, event: Event, now: float) -> list[Output]:
        match event:
            case Received():
                return self.membership.received(event, now)
            case Answered():
                return self.membership.answered(event, now)
            case Tick():
                return self.membership.tick(now) + self._collector.tick(now)
            case Failed():
                return self.membership.failed(event, now)
            case Start():
                return self.membership.start(event, now)
            case Discovered():
                return self.membership.discovered(event, now)
            case InterfacesChanged():
                return self.membership.interfaces_changed(event, now)
            case ModelPublished():
                return self.membership.model_published(event, now)
            case Proved():
                return self.membership.proved(event, now)
            case TrustChanged():
                self._trust = event.trust
                shown: list[Output] = [PeersChanged()] if len(self.membership.table.live) else []
                return shown + self._collector.trust_changed(event.trust, now)
            case Ask():
                return [] if self._stopping else self._ask(event, now)
            case FetchProgressed():
                return self._collector.progressed(event, now)
            case FetchFinished():
                return self._fetch_finished(event, now)
            case FetchFailed():
                return self._fetch_failed(event, now)
            case Stop():
                self._stopping = True
                return self._collector.stop() + self.membership.stop(now)
            case _:
                assert_never(event)

    def wakeup(self) -> float | None:
        """When a `Tick` is due; None: only another event changes anything."""
        return self._due

    def peer_list(self) -> PeerList:
        """The live peers now, in the order of their ids."""
        membership = self.membership
        views = []
        for record in sorted(membership.table.live_records(), key=lambda record: record.peer_id):
            contact, offences = membership.table.contact(record.peer_id), self._collector.offences
            views.append(
                PeerView(
                    record,
                    membership.table.addresses(record.peer_id),
                    contact.last_seen,
                    contact.model_version,
                    offences.counts[record.peer_id],
                    contact.rtt_s,
                    offences.is_aside(record.peer_id, self._now),
                    self._trust.said_of(record.peer_id),
                )
            )
        return PeerList(
            membership.me,
            self._reachability.best(),
            tuple(views),
            replace(membership.counters),
            membership.health.score,
        )

    def _ask(self, event: Ask, now: float) -> list[Output]:
        table, offences = self.membership.table, self._collector.offences
        outputs: list[Output] = [*offences.judge(event, now)]

        def is_asked(peer_id: PeerId) -> bool:
            return offences.is_asked(peer_id, now)

        me, allows = self.membership.me, self._trust.allows
        chosen = candidates(event, me, table, self._params, self._random, allows, is_asked)
        return outputs + self._collector.ask(
            event,
            chosen.task,
            chosen.addresses,
            len(table.live),
            now,
            reserve=chosen.reserve,
            suspects=chosen.suspects,
            members=chosen.members,
        )

    def _fetch_finished(self, event: FetchFinished, now: float) -> list[Output]:
        """A model that arrived is a contact too."""
        peer_id = self._collector.peer_of(event.fetch)
        if peer_id is not None:
            self.membership.table.verify(peer_id)
        return self._collector.finished(event, now)

    def _fetch_failed(self, event: FetchFailed, now: float) -> list[Output]:
        """Who cannot be reached for its model is probed at once."""
        peer_id = self._collector.peer_of(event.fetch)
        outputs = self._collector.failed(event, now)
        if peer_id is not None and event.kind.is_unreachable:
            outputs += self.membership.unreachable(peer_id, now)
        return outputs
