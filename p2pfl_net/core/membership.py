"""Who is in the network: SWIM's join, ping and ack with piggybacked updates, as decisions only.

Das, Gupta, Motivala: SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
Protocol, 2002. Each peer probes one other a second and passes news on while there is any, so the
messages per peer do not grow with the network. What is known and passed on is `dissemination`'s.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from p2pfl_net.core.boot import BootAttempts
from p2pfl_net.core.dissemination import Dissemination
from p2pfl_net.core.events import (
    Answered,
    BootFailed,
    Failed,
    FailureKind,
    Joined,
    ModelPublished,
    Note,
    Output,
    Received,
    Refuse,
    Reply,
    Start,
    Stopped,
)
from p2pfl_net.core.gossip import without_loopback
from p2pfl_net.core.ids import Address, PeerId, is_loopback, parse_ip
from p2pfl_net.core.messages import Ack, Join, JoinReply, Ping, Record, Sender, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.core.requests import Pending, Purpose, Requests
from p2pfl_net.core.table import Table


class Membership:
    """One peer's part in the protocol. Every method takes the time and returns what to do."""

    def __init__(
        self, me: PeerId, reachability: Reachability, incarnation: int, params: Params, random: Random
    ) -> None:
        self._params = params
        self._random = random
        self._reach = reachability
        self._version = 0
        self._out: list[Output] = []
        record = Record(me, incarnation, Status.ALIVE, reachability.confirmed)
        self._known = Dissemination(record, params, random, self._out)
        self._requests = Requests(self._out)
        self._boot: BootAttempts | None = None
        self._next_boot_at: float | None = None
        self._next_probe_at: float | None = None
        self._stop_at: float | None = None

    # what others read ------------------------------------------------------------------------------

    @property
    def me(self) -> Record:
        """This peer's own record."""
        return self._known.me

    @property
    def table(self) -> Table:
        """The other peers."""
        return self._known.table

    def wakeup(self) -> float | None:
        """When `tick` is due, None: only after another event."""
        times = (
            self._next_boot_at,
            self._boot.verdict_at if self._boot is not None else None,
            self._next_probe_at,
            self._known.wakeup() if self.me.status is Status.ALIVE else None,
            self._stop_at,
            self.table.next_deadline(),
        )
        return min((time for time in times if time is not None), default=None)

    # inputs ----------------------------------------------------------------------------------------

    def start(self, event: Start, now: float) -> list[Output]:
        self._next_probe_at = now + self._params.probe_interval_s * self._random.random()
        if event.boot or event.remembered:
            self._boot = BootAttempts.begin(event, self._params, now)
            self._send_join(now)
        else:
            self._out.append(Joined(first=True))
        return self._take_outputs()

    def tick(self, now: float) -> list[Output]:
        self._known.expire(now)
        if self._next_boot_at is not None and now >= self._next_boot_at:
            self._next_boot_at = None
            self._send_join(now)
        if self._boot is not None and now >= self._boot.verdict_at:
            self._end_boot()
        if self._next_probe_at is not None and now >= self._next_probe_at:
            self._next_probe_at = now + self._params.probe_interval_s
            self._probe()
        if self.me.status is Status.ALIVE and self._known.take_turn(now) and not self._is_congested():
            for peer_id in self.table.live.sample(self._params.gossip_fan_out, self._random):
                self._ping_member(peer_id, Purpose.GOSSIP)
        if self._stop_at is not None and now >= self._stop_at:
            self._finish_stop()
        return self._take_outputs()

    def received(self, event: Received, now: float) -> list[Output]:
        message = event.message
        match message:
            case Join() if self.me.status is not Status.ALIVE:
                self._out.append(Refuse(event.call, FailureKind.BUSY, "this peer is stopping"))
            case Join():
                self._learn_own_address(message.dialled, now)
                self._answer_join(event, message.sender, now)
            case Ping() if message.to != self.me.peer_id:
                self._out.append(Refuse(event.call, FailureKind.WRONG_PEER, "another peer lives here"))
            case Ping():
                self._learn_own_address(message.dialled, now)
                self._answer_ping(event, message, now)
        return self._take_outputs()

    def answered(self, event: Answered, now: float) -> list[Output]:
        pending = self._requests.pop(event.request)
        if pending is None:
            return []
        message = event.message
        match message:
            case JoinReply():
                assert pending.purpose is Purpose.JOIN
                self._enter(pending.address, message, now)
            case Ack() if message.sender.record.peer_id != pending.peer_id:
                self._give_up_on(pending, now)
            case Ack():
                over_loopback = pending.address.is_loopback
                self._known.hear(message.sender, message.updates, now, over_loopback=over_loopback)
                if pending.purpose is not Purpose.DIAL_BACK:  # that was to tell, not to find a better way
                    self._note_route(message.sender.record.peer_id, pending.address)
        self._finish_stop_when_told()
        return self._take_outputs()

    def failed(self, event: Failed, now: float) -> list[Output]:
        pending = self._requests.pop(event.request)
        if pending is None:
            return []
        match pending.purpose:
            case Purpose.JOIN:
                self._retry_boot(pending.address, f"{pending.address}: {event.reason}", now)
            case Purpose.PROBE if event.kind is not FailureKind.BUSY:  # who is busy is there
                self._give_up_on(pending, now)
            case _:
                pass
        self._finish_stop_when_told()
        return self._take_outputs()

    def model_published(self, event: ModelPublished, now: float) -> list[Output]:
        """The version travels in direct messages only; the task is news for everybody."""
        self._version = event.version
        published = event.task is not None
        if (self.me.task, self.me.published) != (event.task, published):
            self._known.renew(replace(self.me, task=event.task, published=published), now)
        return self._take_outputs()

    def stop(self, now: float) -> list[Output]:
        self._known.me = replace(self.me, status=Status.LEFT)
        self._boot = None
        self._next_boot_at = self._next_probe_at = None
        self._stop_at = now + self._params.goodbye_timeout_s
        for peer_id in self.table.live.sample(self._params.goodbye_fan_out, self._random):
            self._ping_member(peer_id, Purpose.GOODBYE)
        self._finish_stop_when_told()
        return self._take_outputs()

    # joining ---------------------------------------------------------------------------------------

    def _send_join(self, now: float) -> None:
        boot = self._boot
        assert boot is not None
        address = boot.next(now)
        if address is None:
            self._end_boot()
            return
        # the receiver drops what it has no use for; that a name means this machine, only it can see
        to_loopback = address.is_loopback or parse_ip(address.host) is None
        sender = self._sender(to_loopback=to_loopback, with_candidates=True)
        timeout_s = min(self._params.join_timeout_s, max(0.05, boot.deadline - now))
        self._requests.send(Pending(Purpose.JOIN, address), Join(sender, address), timeout_s)

    def _retry_boot(self, address: Address, reason: str, now: float) -> None:
        if self._boot is None:
            return
        self._next_boot_at = self._boot.failed(address, reason, now)
        if self._next_boot_at is None:
            self._end_boot()

    def _end_boot(self) -> None:
        """Nobody answered: a failure, or a peer that stands alone for now."""
        boot = self._boot
        assert boot is not None
        self._boot = None
        self._next_boot_at = None
        if not boot.joined:
            self._out.append(BootFailed(boot.reason) if boot.named else Joined(first=True))

    def _enter(self, address: Address, reply: JoinReply, now: float) -> None:
        """Somebody answered our join: the network is up."""
        boot = self._boot
        if boot is None:
            return
        if reply.sender.record.peer_id == self.me.peer_id:
            boot.forget(address, now)
            self._send_join(now)
            return
        self._reach.observed(reply.observed_host)
        over_loopback = is_loopback(reply.observed_host)
        self._known.hear(reply.sender, reply.records, now, over_loopback=over_loopback)
        self._note_route(reply.sender.record.peer_id, address)
        self._dial_back(reply.sender, reply.sender.candidates, over_loopback=over_loopback)
        if not boot.joined:
            self._out.append(Joined(first=False))
        self._next_boot_at = boot.answered(address, now)
        if self._next_boot_at is None:
            self._boot = None

    def _answer_join(self, event: Received, joiner: Sender, now: float) -> None:
        over_loopback = is_loopback(event.host)
        peer_id = joiner.record.peer_id
        records: tuple[Record, ...] = ()
        if peer_id != self.me.peer_id:
            self._known.hear(joiner, (), now, over_loopback=over_loopback)
            self._dial_back_caller(joiner, event.host)
            against = self._known.held_against(peer_id, joiner.record, to_loopback=over_loopback)
            records = self._known.whole(peer_id, to_loopback=over_loopback) + against
        sender = self._sender(to_loopback=over_loopback, with_candidates=True)
        self._out.append(Reply(event.call, JoinReply(sender, event.host, records)))

    # reachability ----------------------------------------------------------------------------------

    def _dial_back_caller(self, sender: Sender, host: str) -> None:
        """Dials what the caller would like to have dialled, and where it seems to be."""
        if sender.candidates:
            candidates = (*sender.candidates, Address(host, sender.candidates[0].port))
            self._dial_back(sender, candidates, over_loopback=is_loopback(host))

    def _dial_back(self, sender: Sender, candidates: tuple[Address, ...], *, over_loopback: bool) -> None:
        """Pings a peer at addresses that it does not know to be reachable: the ping tells it."""
        room = max(0, self._params.max_dial_backs - self._requests.count(Purpose.DIAL_BACK))
        fresh = [
            candidate
            for candidate in dict.fromkeys(candidates)
            if candidate not in sender.record.addresses and (over_loopback or not candidate.is_loopback)
        ]
        for address in fresh[: min(room, self._params.max_addresses + 1)]:
            self._ping(Pending(Purpose.DIAL_BACK, address, sender.record.peer_id), sender.record.peer_id)

    def _learn_own_address(self, dialled: Address, now: float) -> None:
        if self._reach.confirm(dialled):
            self._known.renew(replace(self.me, addresses=self._reach.confirmed), now)
            self._out.append(Note("address_confirmed", {"address": str(dialled)}))
        elif self._reach.is_strange(dialled):
            remedy = f"no interface here has it: if others reach this peer there, say --advertise {dialled}"
            self._out.append(Note("reached_elsewhere", {"address": str(dialled), "remedy": remedy}))

    # pinging ---------------------------------------------------------------------------------------

    def _answer_ping(self, event: Received, ping: Ping, now: float) -> None:
        over_loopback = is_loopback(event.host)
        peer_id = ping.sender.record.peer_id
        self._known.hear(ping.sender, ping.updates, now, over_loopback=over_loopback)
        self._dial_back_caller(ping.sender, event.host)
        news = self._known.news(to_loopback=over_loopback)
        against = self._known.held_against(peer_id, ping.sender.record, to_loopback=over_loopback)
        self._out.append(Reply(event.call, Ack(self._sender(to_loopback=over_loopback), news + against)))

    def _is_congested(self) -> bool:
        """Whether earlier gossip is still on its way: then more of it would only make it later."""
        return self._requests.count(Purpose.GOSSIP) >= self._params.max_gossip_pending

    def _probe(self) -> None:
        peer_id = self._known.probe_order.next(self.table.live.members(), self.table.is_live)
        if peer_id is not None:
            self._ping_member(peer_id, Purpose.PROBE)

    def _ping_member(self, peer_id: PeerId, purpose: Purpose) -> None:
        member = self.table.get(peer_id)
        assert member is not None
        first, *others = member.addresses()
        self._ping(Pending(purpose, first, peer_id, tuple(others)), peer_id)

    def _ping(self, pending: Pending, to: PeerId) -> None:
        """News goes to members only: it would be lost where nobody may be listening."""
        to_loopback = pending.address.is_loopback
        dial_back = pending.purpose is Purpose.DIAL_BACK
        updates = () if dial_back else self._known.news(to_loopback=to_loopback)
        updates += self._known.held_against(to, None, to_loopback=to_loopback)
        sender = self._sender(to_loopback=to_loopback)
        if pending.purpose is Purpose.PROBE and (self._known.offers_left or not sender.record.addresses):
            # the dial-back after the join was lost, or came before we knew the address it dialled
            self._known.offers_left = max(0, self._known.offers_left - 1)
            sender = self._sender(to_loopback=to_loopback, with_candidates=True)
        self._requests.send(pending, Ping(sender, to, pending.address, updates), self._params.probe_timeout_s)

    def _give_up_on(self, pending: Pending, now: float) -> None:
        """A probe failed: the peer's next address, or the suspicion that it is gone."""
        if pending.purpose is not Purpose.PROBE or pending.peer_id is None:
            return
        if pending.untried:
            address, *others = pending.untried
            self._ping(Pending(Purpose.PROBE, address, pending.peer_id, tuple(others)), pending.peer_id)
            return
        member = self.table.get(pending.peer_id)
        if member is not None and member.record.status is Status.ALIVE:
            self._known.merge(replace(member.record, status=Status.SUSPECT), now)

    def _note_route(self, peer_id: PeerId, address: Address) -> None:
        member = self.table.get(peer_id)
        if member is not None and address in member.record.addresses:
            member.route = address

    def _sender(self, *, to_loopback: bool, with_candidates: bool = False) -> Sender:
        candidates = self._reach.unconfirmed() if with_candidates else ()
        if to_loopback:
            return Sender(self.me, self._version, candidates)
        remote = tuple(candidate for candidate in candidates if not candidate.is_loopback)
        return Sender(without_loopback(self.me), self._version, remote)

    # stopping --------------------------------------------------------------------------------------

    def _finish_stop_when_told(self) -> None:
        """Ends a stop once all goodbyes are answered or failed."""
        if self._stop_at is None:
            return
        if self._requests.count(Purpose.GOODBYE) == 0:
            self._finish_stop()

    def _finish_stop(self) -> None:
        self._stop_at = None
        self._out.append(Stopped())

    def _take_outputs(self) -> list[Output]:
        outputs = list(self._out)
        self._out.clear()
        return outputs
