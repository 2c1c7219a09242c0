"""Who is in the network: SWIM's join, ping and ack with piggybacked updates, as decisions only.

Das, Gupta, Motivala: SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
Protocol, 2002. Each peer probes one other a second and passes news on while there is any, so the
messages per peer do not grow with the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from p2pfl_net.core.events import (
    Ack,
    Answered,
    BootFailed,
    Failed,
    FailureKind,
    Join,
    Joined,
    JoinReply,
    ModelPublished,
    Note,
    Output,
    PeersChanged,
    Ping,
    Received,
    Record,
    Refuse,
    Reply,
    RequestId,
    Send,
    Sender,
    Start,
    Status,
    Stopped,
)
from p2pfl_net.core.gossip import GossipBuffer, visible_to
from p2pfl_net.core.ids import Address, PeerId, is_loopback
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.core.sampling import ProbeOrder
from p2pfl_net.core.table import Change, Table


class Purpose(Enum):
    """Why a request was sent: what its answer or failure means."""

    JOIN = 1
    PROBE = 2
    GOSSIP = 3
    DIAL_BACK = 4
    GOODBYE = 5


@dataclass(frozen=True, slots=True)
class _Pending:
    purpose: Purpose
    address: Address
    peer_id: PeerId | None = None
    untried: tuple[Address, ...] = ()
    """Further addresses of the same peer, for a probe."""


@dataclass(slots=True)
class _Boot:
    """The attempts at the boot peers."""

    addresses: list[Address]
    deadline: float
    pause_s: float
    required: bool
    turn: int = 0
    reason: str = "no boot peer was tried"


class Membership:
    """One peer's part in the protocol. Every method takes the time and returns what to do."""

    def __init__(
        self, me: PeerId, reachability: Reachability, incarnation: int, params: Params, random: Random
    ) -> None:
        self._params = params
        self._random = random
        self._reach = reachability
        self._self = Record(me, incarnation, Status.ALIVE, reachability.confirmed)
        self._version = 0
        self.table = Table(me, params)
        self._gossip = GossipBuffer()
        self._order = ProbeOrder(random)
        self._pending: dict[RequestId, _Pending] = {}
        self._last_request = 0
        self._boot: _Boot | None = None
        self._next_boot_at: float | None = None
        self._next_probe_at: float | None = None
        self._next_gossip_at: float | None = None
        self._stop_at: float | None = None
        self._out: list[Output] = []

    # what others read ------------------------------------------------------------------------------

    @property
    def me(self) -> Record:
        """This peer's own record."""
        return self._self

    @property
    def model_version(self) -> int:
        return self._version

    def wakeup(self) -> float | None:
        """When `tick` is due, None: only after another event."""
        times = (
            self._next_boot_at,
            self._next_probe_at,
            self._next_gossip_at if self._gossip and self.table.live else None,
            self._stop_at,
            self.table.next_deadline(),
        )
        return min((time for time in times if time is not None), default=None)

    # inputs ----------------------------------------------------------------------------------------

    def start(self, event: Start, now: float) -> list[Output]:
        self._next_probe_at = now + self._params.probe_interval_s * self._random.random()
        if event.boot:
            deadline = now + event.boot_timeout_s
            self._boot = _Boot(list(event.boot), deadline, self._params.boot_backoff_s, event.required)
            self._send_join(now)
        else:
            self._out.append(Joined(first=True))
        return self._take_outputs()

    def tick(self, now: float) -> list[Output]:
        for record in self.table.expire(now):
            self._merge(record, now)
        if self._next_boot_at is not None and now >= self._next_boot_at:
            self._next_boot_at = None
            self._send_join(now)
        if self._next_probe_at is not None and now >= self._next_probe_at:
            self._next_probe_at = now + self._params.probe_interval_s
            self._probe()
        if self._gossip and self._next_gossip_at is not None and now >= self._next_gossip_at:
            self._next_gossip_at = now + self._params.gossip_interval_s
            for peer_id in self.table.live.sample(self._params.gossip_fan_out, self._random):
                self._ping_member(peer_id, Purpose.GOSSIP)
        if self._stop_at is not None and now >= self._stop_at:
            self._finish_stop()
        return self._take_outputs()

    def received(self, event: Received, now: float) -> list[Output]:
        message = event.message
        match message:
            case Join():
                self._learn_own_address(message.dialled, now)
                self._answer_join(event, message, now)
            case Ping() if message.to != self._self.peer_id:
                self._out.append(Refuse(event.call, FailureKind.WRONG_PEER, "another peer lives here"))
            case Ping():
                self._learn_own_address(message.dialled, now)
                self._hear(message.sender, message.updates, now)
                to_loopback = is_loopback(event.host)
                updates = self._updates_for(message.sender.record.peer_id, to_loopback=to_loopback)
                self._out.append(Reply(event.call, Ack(self._sender(to_loopback=to_loopback), updates)))
        return self._take_outputs()

    def answered(self, event: Answered, now: float) -> list[Output]:
        pending = self._pending.pop(event.request, None)
        if pending is None:
            return []
        message = event.message
        if pending.purpose is Purpose.JOIN:
            if isinstance(message, JoinReply):
                self._enter(pending.address, message, now)
        elif isinstance(message, Ack):
            if pending.peer_id is not None and message.sender.record.peer_id != pending.peer_id:
                self._give_up_on(pending, now)
            else:
                self._hear(message.sender, message.updates, now)
                self._note_route(message.sender.record.peer_id, pending.address)
        if self._stop_at is not None and not self._goodbyes_pending():
            self._finish_stop()
        return self._take_outputs()

    def failed(self, event: Failed, now: float) -> list[Output]:
        pending = self._pending.pop(event.request, None)
        if pending is None:
            return []
        match pending.purpose:
            case Purpose.JOIN:
                self._retry_boot(f"{pending.address}: {event.reason}", now)
            case Purpose.PROBE:
                self._give_up_on(pending, now)
            case Purpose.GOODBYE if self._stop_at is not None and not self._goodbyes_pending():
                self._finish_stop()
            case Purpose.GOSSIP | Purpose.DIAL_BACK | Purpose.GOODBYE:
                pass
        return self._take_outputs()

    def model_published(self, event: ModelPublished, now: float) -> list[Output]:
        """The version travels in direct messages only; the task is news for everybody."""
        self._version = event.version
        published = event.task is not None
        if (self._self.task, self._self.published) != (event.task, published):
            self._renew(replace(self._self, task=event.task, published=published), now)
        return self._take_outputs()

    def stop(self, now: float) -> list[Output]:
        self._self = replace(self._self, status=Status.LEFT)
        self._boot = None
        self._next_boot_at = self._next_probe_at = self._next_gossip_at = None
        self._stop_at = now + self._params.goodbye_timeout_s
        for peer_id in self.table.live.sample(self._params.goodbye_fan_out, self._random):
            self._ping_member(peer_id, Purpose.GOODBYE)
        if not self._goodbyes_pending():
            self._finish_stop()
        return self._take_outputs()

    # joining ---------------------------------------------------------------------------------------

    def _send_join(self, now: float) -> None:
        boot = self._boot
        assert boot is not None
        if now >= boot.deadline:
            self._boot = None
            self._out.append(BootFailed(boot.reason) if boot.required else Joined(first=True))
            return
        address = boot.addresses[boot.turn % len(boot.addresses)]
        message = Join(self._sender(to_loopback=True, with_candidates=True), address)
        timeout_s = min(self._params.join_timeout_s, max(0.05, boot.deadline - now))
        self._send(_Pending(Purpose.JOIN, address), message, timeout_s)

    def _retry_boot(self, reason: str, now: float) -> None:
        """Goes to the next boot peer, after a pause once all were tried."""
        boot = self._boot
        if boot is None:
            return
        boot.reason = reason
        boot.turn += 1
        pause_s = 0.0
        if boot.turn % len(boot.addresses) == 0:
            if not boot.required:
                self._boot = None
                self._out.append(Joined(first=True))
                return
            pause_s = boot.pause_s
            boot.pause_s = min(2 * boot.pause_s, self._params.boot_backoff_max_s)
        self._next_boot_at = min(now + pause_s, boot.deadline)

    def _enter(self, address: Address, reply: JoinReply, now: float) -> None:
        """The boot peer answered: the network is up."""
        boot = self._boot
        if boot is None:
            return
        if reply.sender.record.peer_id == self._self.peer_id:
            boot.addresses = [other for other in boot.addresses if other != address]
            if boot.addresses:
                self._send_join(now)
                return
        self._boot = None
        first = not boot.addresses
        if not first:
            self._reach.observed(reply.observed_host)
            self._hear(reply.sender, reply.records, now)
            self._note_route(reply.sender.record.peer_id, address)
            self._dial_back(reply.sender, reply.sender.candidates)
        self._out.append(Joined(first=first))

    def _answer_join(self, event: Received, join: Join, now: float) -> None:
        to_loopback = is_loopback(event.host)
        joiner = join.sender.record
        records: list[Record] = []
        if joiner.peer_id != self._self.peer_id:
            self._hear(join.sender, (), now)
            for member in self.table.live_members():
                visible = visible_to(member.record, to_loopback=to_loopback)
                if visible is not None and visible.peer_id != joiner.peer_id:
                    records.append(visible)
            candidates = list(join.sender.candidates)
            if candidates:
                candidates.append(Address(event.host, candidates[0].port))
            self._dial_back(join.sender, tuple(c for c in candidates if to_loopback or not c.is_loopback))
            records.extend(self._own_news(joiner.peer_id))
        sender = self._sender(to_loopback=to_loopback, with_candidates=True)
        self._out.append(Reply(event.call, JoinReply(sender, event.host, tuple(records))))

    def _dial_back(self, sender: Sender, candidates: tuple[Address, ...]) -> None:
        """Pings a peer at addresses that it does not know to be reachable: the ping tells it."""
        outstanding = sum(pending.purpose is Purpose.DIAL_BACK for pending in self._pending.values())
        room = max(0, 8 * self._params.max_addresses - outstanding)
        fresh = [c for c in dict.fromkeys(candidates) if c not in sender.record.addresses]
        for address in fresh[: min(room, self._params.max_addresses + 1)]:
            pending = _Pending(Purpose.DIAL_BACK, address, sender.record.peer_id)
            self._ping(pending, sender.record.peer_id)

    def _learn_own_address(self, dialled: Address, now: float) -> None:
        if self._reach.confirm(dialled):
            self._renew(replace(self._self, addresses=self._reach.confirmed), now)
            self._out.append(Note("address_confirmed", {"address": str(dialled)}))

    # news ------------------------------------------------------------------------------------------

    def _hear(self, sender: Sender, updates: tuple[Record, ...], now: float) -> None:
        """Takes in a message of `sender` with its updates."""
        if sender.record.peer_id == self._self.peer_id:
            return
        self._merge(sender.record, now)
        for record in updates:
            self._merge(record, now)
        member = self.table.get(sender.record.peer_id)
        if member is not None:
            member.last_seen = now
            member.model_version = sender.model_version

    def _merge(self, record: Record, now: float) -> None:
        if record.peer_id == self._self.peer_id:
            self._defend(record, now)
            return
        change = self.table.merge(record, now)
        if change is None:
            return
        member = self.table.get(record.peer_id)
        assert member is not None
        self._spread(member.record, now)
        self._out.append(PeersChanged())
        if change is Change.JOINED:
            self._order.add(record.peer_id)
        if change is not Change.UPDATED:
            addresses = member.addresses()
            fields: dict[str, str | int | None] = {
                "peer": record.peer_id,
                "address": str(addresses[0]) if addresses else None,
                "peers": len(self.table.live),
            }
            self._out.append(Note(change.value, fields))

    def _defend(self, record: Record, now: float) -> None:
        """Refutes what is said of us, and outlives the record of an earlier life (SWIM, 4.2)."""
        slandered = record.status is not Status.ALIVE and record.incarnation >= self._self.incarnation
        if self._self.status is Status.ALIVE and (slandered or record.incarnation > self._self.incarnation):
            self._renew(replace(self._self, incarnation=record.incarnation), now)

    def _renew(self, record: Record, now: float) -> None:
        """Makes `record` our own with a higher incarnation, and tells."""
        self._self = replace(record, incarnation=record.incarnation + 1)
        self._out.append(PeersChanged())
        self._spread(self._self, now)

    def _spread(self, record: Record, now: float) -> None:
        if not self._gossip:
            self._next_gossip_at = now + self._params.gossip_interval_s * self._random.random()
        self._gossip.put(record)

    def _updates_for(self, peer_id: PeerId, *, to_loopback: bool) -> tuple[Record, ...]:
        """News for one message, and always what we hold against its receiver, so that it can refute."""
        retransmissions = self._params.retransmissions(len(self.table.live))
        news = self._gossip.take(self._params.max_updates, retransmissions, to_loopback=to_loopback)
        return news + self._own_news(peer_id)

    def _own_news(self, peer_id: PeerId) -> tuple[Record, ...]:
        member = self.table.get(peer_id)
        if member is None or member.record.status is Status.ALIVE:
            return ()
        return (replace(member.record, addresses=()),)

    # pinging ---------------------------------------------------------------------------------------

    def _probe(self) -> None:
        peer_id = self._order.next(self.table.live.members(), self.table.is_live)
        if peer_id is not None:
            self._ping_member(peer_id, Purpose.PROBE)

    def _ping_member(self, peer_id: PeerId, purpose: Purpose) -> None:
        member = self.table.get(peer_id)
        assert member is not None
        first, *others = member.addresses()
        self._ping(_Pending(purpose, first, peer_id, tuple(others)), peer_id)

    def _ping(self, pending: _Pending, to: PeerId) -> None:
        to_loopback = pending.address.is_loopback
        updates = self._updates_for(to, to_loopback=to_loopback)
        message = Ping(self._sender(to_loopback=to_loopback), to, pending.address, updates)
        self._send(pending, message, self._params.probe_timeout_s)

    def _give_up_on(self, pending: _Pending, now: float) -> None:
        """A probe failed: the peer's next address, or the suspicion that it is gone."""
        if pending.purpose is not Purpose.PROBE or pending.peer_id is None:
            return
        if pending.untried:
            address, *others = pending.untried
            self._ping(_Pending(Purpose.PROBE, address, pending.peer_id, tuple(others)), pending.peer_id)
            return
        member = self.table.get(pending.peer_id)
        if member is not None and member.record.status is Status.ALIVE:
            self._merge(replace(member.record, status=Status.SUSPECT), now)

    def _note_route(self, peer_id: PeerId, address: Address) -> None:
        member = self.table.get(peer_id)
        if member is not None and address in member.record.addresses:
            member.route = member.record.addresses.index(address)

    def _sender(self, *, to_loopback: bool, with_candidates: bool = False) -> Sender:
        record = self._self
        if not to_loopback:
            remote = tuple(address for address in record.addresses if not address.is_loopback)
            record = replace(record, addresses=remote)
        candidates = self._reach.unconfirmed() if with_candidates else ()
        return Sender(record, self._version, candidates)

    def _send(self, pending: _Pending, message: Join | Ping, timeout_s: float) -> None:
        self._last_request += 1
        request = RequestId(self._last_request)
        self._pending[request] = pending
        self._out.append(Send(request, pending.address, message, timeout_s))

    # stopping --------------------------------------------------------------------------------------

    def _goodbyes_pending(self) -> bool:
        return any(pending.purpose is Purpose.GOODBYE for pending in self._pending.values())

    def _finish_stop(self) -> None:
        self._stop_at = None
        self._out.append(Stopped())

    def _take_outputs(self) -> list[Output]:
        outputs, self._out = self._out, []
        return outputs
