"""Who is in the network: SWIM with the Lifeguard refinements, as decisions only.

Das, Gupta, Motivala: SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
Protocol, 2002. Dadgar, Phillips, Currey: Lifeguard, 2018. Each peer probes one other a second and passes
news on while there is any, within a budget, so the messages per peer do not grow with the network.
This is the switchboard: `probing` finds who is gone, `joining` who is there, `dissemination` knows and tells.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from p2pfl_net.core.calls import Asker, Calls, Pending, Purpose
from p2pfl_net.core.counters import Counters
from p2pfl_net.core.dissemination import Dissemination, Sealing, unsealed
from p2pfl_net.core.events import (
    Answered,
    Discovered,
    Failed,
    FailureKind,
    InterfacesChanged,
    ModelPublished,
    Note,
    Output,
    PeersChanged,
    Proved,
    Received,
    Refuse,
    Reply,
    Start,
    Stopped,
)
from p2pfl_net.core.eviction import Evictions
from p2pfl_net.core.health import LocalHealth
from p2pfl_net.core.ids import Address, PeerId, is_loopback
from p2pfl_net.core.joining import Joining
from p2pfl_net.core.messages import (
    Accuse,
    Accused,
    Ack,
    Join,
    JoinReply,
    Ping,
    Record,
    Relay,
    RelayReply,
    Status,
)
from p2pfl_net.core.params import Params
from p2pfl_net.core.probing import Prober
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.core.table import Table
from p2pfl_net.core.times import soonest

EVICTED = "this peer is no member: it signed two models under one version"


class Membership:
    """One peer's part in the protocol. Every method takes the time and returns what to do."""

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
        self._params = params
        self._random = random
        self._reach = reachability
        self._out: list[Output] = []
        self.health = LocalHealth(params.max_health)
        self.counters = Counters()
        record = Record(me, incarnation, Status.ALIVE, reachability.confirmed, tags=tags)
        self._known = Dissemination(
            record, params, random, self._out, health=self.health, counters=self.counters, seal=seal
        )
        self.table: Table = self._known.table
        """The other peers."""
        self._calls = Calls(self._known, reachability, params, self.counters, self._out)
        self._prober = Prober(self._known, self._calls, self.health, params, self.counters, random)
        self._joining = Joining(
            self._known, reachability, self._calls, params, self.counters, random, self._out
        )
        self.evictions = Evictions(self._known, self._calls, params, self._out)
        self._stop_at: float | None = None

    # what others read ------------------------------------------------------------------------------

    @property
    def me(self) -> Record:
        """This peer's own record."""
        return self._known.me

    def wakeup(self) -> float | None:
        """When `tick` is due, None: only after another event."""
        return soonest(
            self._joining.wakeup(),
            self._prober.wakeup(),
            self._known.wakeup() if self._known.me.status is Status.ALIVE else None,
            self._stop_at,
            self.table.next_deadline(),
        )

    # inputs ----------------------------------------------------------------------------------------

    def start(self, event: Start, now: float) -> list[Output]:
        self._prober.start(now)
        self._joining.start(event, now)
        return self._take_outputs()

    def stood_still(self, seconds: float) -> None:
        """This process was not run for so long: what it missed shows nothing about others."""
        self.counters.pauses += 1
        self.health.degrade()
        self._prober.forgive()
        self.table.postpone(seconds)

    def tick(self, now: float) -> list[Output]:
        doubtful = self._known.expire(now)
        if self.me.status is Status.ALIVE:
            for peer_id in doubtful[: max(0, self._params.max_probes - len(self._prober))]:
                self._prober.begin_last(peer_id, now)
        self._joining.tick(now)
        self._prober.tick(now)
        turns = self._known.take_turn(now) if self.me.status is Status.ALIVE else 0
        if turns and not self._is_congested():
            for peer_id in self.table.live.sample(turns):
                self._calls.ping_member(Purpose.GOSSIP, peer_id, now)
        if self._stop_at is not None and now >= self._stop_at:
            self._finish_stop()
        return self._take_outputs()

    def received(self, event: Received, now: float) -> list[Output]:
        message = event.message
        match message:
            case _ if self.evictions.is_evicted(message.sender.record.peer_id):
                self._out.append(Refuse(event.call, FailureKind.FORBIDDEN, EVICTED))
            case Ping() | Relay() | Accuse() if message.to != self.me.peer_id:
                self._out.append(Refuse(event.call, FailureKind.WRONG_PEER, "another peer lives here"))
            case Join() if message.to not in (None, self.me.peer_id):
                self._out.append(Refuse(event.call, FailureKind.WRONG_PEER, "another peer lives here"))
            case Ping():
                self._learn_own_address(message.dialled, now)
                self._answer_ping(event, message, now)
            case Join() | Relay() if self.me.status is not Status.ALIVE:
                self._out.append(Refuse(event.call, FailureKind.BUSY, "this peer is stopping"))
            case Join():
                self.counters.exchanges_received += 1
                self._learn_own_address(message.dialled, now)
                self._joining.answer(event, message, now)
            case Relay():
                self._relay(event, message, now)
            case Accuse():
                self._known.hear(message.sender, (), now, host=event.host)
                self.evictions.hear(message.equivocation, now)
                sender = self._calls.sender(to_loopback=is_loopback(event.host))
                self._out.append(Reply(event.call, Accused(sender)))
        self.evictions.inform(now)
        return self._take_outputs()

    def answered(self, event: Answered, now: float) -> list[Output]:
        pending = self._calls.pop(event.request)
        if pending is None:
            return []
        message = event.message
        match message:
            case JoinReply():
                self._joining.answered(pending, message, now)
            case _ if self.evictions.is_evicted(message.sender.record.peer_id):
                self._fail(pending, FailureKind.FORBIDDEN, EVICTED, now)
            case Ack() | RelayReply() | Accused() if message.sender.record.peer_id != pending.peer_id:
                self._fail(pending, FailureKind.WRONG_PEER, "another peer lives there", now)
            case Ack():
                self._take_ack(pending, message, now)
            case RelayReply():
                self._known.hear(message.sender, message.updates, now, host=pending.address.host)
                self._prober.helper_answered(pending, now, reached=message.reached)
            case Accused():
                self._known.hear(message.sender, (), now, host=pending.address.host)
        self.evictions.inform(now)
        self._finish_stop_when_told()
        return self._take_outputs()

    def failed(self, event: Failed, now: float) -> list[Output]:
        pending = self._calls.pop(event.request)
        if pending is not None:
            self._fail(pending, event.kind, event.reason, now)
            self._finish_stop_when_told()
        return self._take_outputs()

    def discovered(self, event: Discovered, now: float) -> list[Output]:
        self._joining.discovered(event.addresses, now)
        return self._take_outputs()

    def interfaces_changed(self, event: InterfacesChanged, now: float) -> list[Output]:
        """This machine has moved: the others hear the new address as soon as somebody has dialled it."""
        if self._reach.listen_on(event.hosts):
            self._known.offers_left = self._params.candidate_offers
            if self._reach.confirmed != self.me.addresses:
                self._known.renew(replace(self.me, addresses=self._reach.confirmed), now)
            self._out.append(Note("interfaces_changed", {"address": str(self._reach.best())}))
        return self._take_outputs()

    def model_published(self, event: ModelPublished, now: float) -> list[Output]:
        """The version travels in direct messages only; the task is news for everybody."""
        self._calls.model_version = event.version
        published = event.task is not None
        if (self.me.task, self.me.published) != (event.task, published):
            self._known.renew(replace(self.me, task=event.task, published=published), now)
        return self._take_outputs()

    def unreachable(self, peer_id: PeerId, now: float) -> list[Output]:
        """Somebody else of this peer could not reach a live peer: it is probed now, not in its turn."""
        if self.me.status is Status.ALIVE:
            self._prober.begin(peer_id, now)
        return self._take_outputs()

    def proved(self, event: Proved, now: float) -> list[Output]:
        self.evictions.prove(event.equivocation, now)
        return self._take_outputs()

    def stop(self, now: float) -> list[Output]:
        self._known.say(replace(self.me, status=Status.LEFT))
        self._prober.stop()
        self._joining.stop()
        self._stop_at = now + self._params.goodbye_timeout_s
        for peer_id in self.table.live.sample(self._params.goodbye_fan_out):
            self._calls.ping_member(Purpose.GOODBYE, peer_id, now)
        self._finish_stop_when_told()
        return self._take_outputs()

    # pings -----------------------------------------------------------------------------------------

    def _answer_ping(self, event: Received, ping: Ping, now: float) -> None:
        over_loopback = is_loopback(event.host)
        said = ping.sender.record
        self.counters.pings_received += 1
        self._known.hear(ping.sender, ping.updates, now, host=event.host)
        self.table.vouch(said.peer_id, event.host)
        self._prober.called(said.peer_id, now)
        self._calls.dial_back_caller(ping.sender, event.host, now)
        updates = self._known.news(to_loopback=over_loopback)
        updates += self._known.held_against(said.peer_id, said, to_loopback=over_loopback)
        self.counters.updates_sent += len(updates)
        self._out.append(Reply(event.call, Ack(self._calls.sender(to_loopback=over_loopback), updates)))

    def _take_ack(self, pending: Pending, ack: Ack, now: float) -> None:
        peer_id = ack.sender.record.peer_id
        self._known.hear(ack.sender, ack.updates, now, host=pending.address.host)
        # a dial-back was to tell, not to find a better way
        route = None if pending.purpose is Purpose.DIAL_BACK else pending.address
        self.table.verify(peer_id, route, now - pending.sent_at)
        self._prober.answered(peer_id)
        if pending.asker is not None:
            self._answer_relay(pending, now, reached=True)

    def _fail(self, pending: Pending, kind: FailureKind, reason: str, now: float) -> None:
        match pending.purpose:
            case Purpose.JOIN | Purpose.SYNC | Purpose.HEAL:
                self._joining.failed(pending, reason, now)
            case Purpose.PROBE:
                self._prober.failed(pending, kind, now)
            case Purpose.ASK_RELAY:
                self._prober.helper_failed(pending, kind, now)
            case Purpose.RELAYED:
                self._answer_relay(pending, now, reached=kind is FailureKind.BUSY)
            case Purpose.GOSSIP | Purpose.DIAL_BACK | Purpose.GOODBYE | Purpose.ACCUSE:
                pass

    def _is_congested(self) -> bool:
        """Whether earlier gossip is still on its way: then more of it would only make it later."""
        return self._calls.count(Purpose.GOSSIP) >= self._params.max_gossip_pending

    # pings for others ------------------------------------------------------------------------------

    def _relay(self, event: Received, message: Relay, now: float) -> None:
        """Pings for one who gets no answer whom we know ourselves: no stranger's address is dialled."""
        self.counters.relays_received += 1
        self._known.hear(message.sender, (), now, host=event.host)
        if not self.table.is_live(message.target):
            self._out.append(Refuse(event.call, FailureKind.ABSENT, "that peer is not known here"))
        elif self._calls.count(Purpose.RELAYED) >= self._params.max_relays:
            self._out.append(Refuse(event.call, FailureKind.BUSY, "too many pings for others"))
        else:
            address = self.table.addresses(message.target)[0]
            timeout_s = self._params.relay_ping_s
            asker = Asker(event.call, over_loopback=is_loopback(event.host))
            self._calls.ping(Purpose.RELAYED, message.target, address, now, timeout_s=timeout_s, asker=asker)

    def _answer_relay(self, pending: Pending, now: float, *, reached: bool) -> None:
        assert pending.asker is not None
        over_loopback = pending.asker.over_loopback
        updates = self._known.news(to_loopback=over_loopback)
        self.counters.updates_sent += len(updates)
        reply = RelayReply(self._calls.sender(to_loopback=over_loopback), reached, updates)
        self._out.append(Reply(pending.asker.call, reply))

    # reachability ----------------------------------------------------------------------------------

    def _learn_own_address(self, dialled: Address, now: float) -> None:
        if self._reach.confirm(dialled):
            self._known.renew(replace(self.me, addresses=self._reach.confirmed), now)
            self._out.append(Note("address_confirmed", {"address": str(dialled)}))
        elif self._reach.is_strange(dialled):
            remedy = f"no interface here has it: if others reach this peer there, say --advertise {dialled}"
            self._out.append(Note("reached_elsewhere", {"address": str(dialled), "remedy": remedy}))

    # stopping --------------------------------------------------------------------------------------

    def _finish_stop_when_told(self) -> None:
        """Ends a stop once all goodbyes are answered or failed."""
        if self._stop_at is None:
            return
        if self._calls.count(Purpose.GOODBYE) == 0:
            self._finish_stop()

    def _finish_stop(self) -> None:
        self._stop_at = None
        self._out.append(Stopped())

    def _take_outputs(self) -> list[Output]:
        if self._known.list_changed:
            self._known.list_changed = False
            self._out.append(PeersChanged())
        outputs = self._out[:]
        self._out.clear()
        return outputs
