"""Our own requests: what they say of us, and what they are for. Each is answered or fails once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from p2pfl_net.core.counters import Counters
from p2pfl_net.core.dissemination import Dissemination
from p2pfl_net.core.events import CallId, Output, RequestId, Send
from p2pfl_net.core.ids import Address, PeerId, is_loopback, parse_ip
from p2pfl_net.core.messages import Accuse, Equivocation, Join, Ping, Relay, Request, Sender
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability


class Purpose(Enum):
    """Why a request was sent."""

    JOIN = 1
    SYNC = 2
    HEAL = 3
    PROBE = 4
    GOSSIP = 5
    ASK_RELAY = 6
    RELAYED = 7
    DIAL_BACK = 8
    GOODBYE = 9
    ACCUSE = 10


@dataclass(frozen=True, slots=True)
class Asker:
    """Whom to tell what came of a ping for somebody else."""

    call: CallId
    over_loopback: bool


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for its answer."""

    purpose: Purpose
    address: Address
    sent_at: float
    peer_id: PeerId | None = None
    """Who is meant; None: whoever lives there."""
    target: PeerId | None = None
    """Whom a helper was asked to ping."""
    asker: Asker | None = None
    """Of a ping for somebody else."""


class Calls:
    """Sends requests and remembers those under way."""

    def __init__(
        self,
        known: Dissemination,
        reach: Reachability,
        params: Params,
        counters: Counters,
        out: list[Output],
    ) -> None:
        """`out` receives each `Send`; whoever owns it hands them on."""
        self.model_version = 0
        self._last_sender = Sender(known.me)
        self._known = known
        self._reach = reach
        self._params = params
        self._counters = counters
        self._out = out
        self._pending: dict[RequestId, Pending] = {}
        self._last = 0

    def pop(self, request: RequestId) -> Pending | None:
        """What the request was for; None when it is not under way."""
        return self._pending.pop(request, None)

    def count(self, purpose: Purpose) -> int:
        """How many requests of this purpose are under way."""
        return sum(pending.purpose is purpose for pending in self._pending.values())

    def sender(self, *, to_loopback: bool, with_candidates: bool = False) -> Sender:
        """What we say of ourselves to somebody here, or elsewhere."""
        me = self._known.me if to_loopback else self._known.me_elsewhere
        if not with_candidates:
            last = self._last_sender
            if last.record is not me or last.model_version != self.model_version:
                last = self._last_sender = Sender(me, self.model_version)
            return last
        candidates = self._reach.unconfirmed()
        if not to_loopback:
            candidates = tuple(candidate for candidate in candidates if not candidate.is_loopback)
        return Sender(me, self.model_version, candidates)

    # sending ---------------------------------------------------------------------------------------

    def ping(
        self,
        purpose: Purpose,
        peer_id: PeerId,
        address: Address,
        now: float,
        *,
        timeout_s: float | None = None,
        asker: Asker | None = None,
    ) -> None:
        """News goes to members only: it would be lost where nobody may be listening."""
        to_loopback = address.is_loopback
        updates = () if purpose is Purpose.DIAL_BACK else self._known.news(to_loopback=to_loopback)
        updates += self._known.held_against(peer_id, None, to_loopback=to_loopback)
        sender = self.sender(to_loopback=to_loopback)
        if purpose is Purpose.PROBE and (self._known.offers_left or not sender.record.addresses):
            # the dial-back after the join was lost, or came before we knew the address it dialled
            self._known.offers_left = max(0, self._known.offers_left - 1)
            sender = self.sender(to_loopback=to_loopback, with_candidates=True)
        self._counters.pings_sent += 1
        self._counters.updates_sent += len(updates)
        self._send(
            Pending(purpose, address, now, peer_id, asker=asker),
            Ping(sender, peer_id, address, updates),
            timeout_s or self._params.probe_s,
        )

    def ping_member(self, purpose: Purpose, peer_id: PeerId, now: float) -> None:
        """Pings a live peer where it was reached last."""
        self.ping(purpose, peer_id, self._known.table.addresses(peer_id)[0], now)

    def join(
        self, purpose: Purpose, address: Address, timeout_s: float, now: float, *, to: PeerId | None = None
    ) -> None:
        """Asks `to`, or whoever lives there, for all it knows, and tells all we know."""
        # the receiver drops what it has no use for; that a name means this machine, only it can see
        to_loopback = address.is_loopback or parse_ip(address.host) is None
        sender = self.sender(to_loopback=to_loopback, with_candidates=True)
        records = self._known.everything(None, to_loopback=to_loopback)
        self._counters.exchanges_sent += 1
        self._send(Pending(purpose, address, now), Join(sender, address, records, to), timeout_s)

    def ask_relay(self, helper: PeerId, target: PeerId, timeout_s: float, now: float) -> None:
        """Asks a live peer to ping another for us."""
        address = self._known.table.addresses(helper)[0]
        sender = self.sender(to_loopback=address.is_loopback)
        self._counters.relays_asked += 1
        pending = Pending(Purpose.ASK_RELAY, address, now, helper, target=target)
        self._send(pending, Relay(sender, helper, address, target), timeout_s)

    def accuse(self, peer_id: PeerId, proof: Equivocation, now: float) -> None:
        """Shows a live peer the proof against another."""
        address = self._known.table.addresses(peer_id)[0]
        sender = self.sender(to_loopback=address.is_loopback)
        pending = Pending(Purpose.ACCUSE, address, now, peer_id)
        self._send(pending, Accuse(sender, peer_id, address, proof), self._params.probe_s)

    def _send(self, pending: Pending, message: Request, timeout_s: float) -> None:
        self._last += 1
        request = RequestId(self._last)
        self._pending[request] = pending
        self._out.append(Send(request, pending.address, message, timeout_s))

    # dialling back ---------------------------------------------------------------------------------

    def dial_back_caller(self, sender: Sender, host: str, now: float) -> None:
        """Dials what the caller would like to have dialled, and where it seems to be."""
        if sender.candidates:
            candidates = (*sender.candidates, Address(host, sender.candidates[0].port))
            self.dial_back(sender, candidates, now, over_loopback=is_loopback(host))

    def dial_back(
        self, sender: Sender, candidates: tuple[Address, ...], now: float, *, over_loopback: bool
    ) -> None:
        """Pings a peer at addresses that it does not know to be reachable: the ping tells it."""
        room = max(0, self._params.max_dial_backs - self.count(Purpose.DIAL_BACK))
        fresh = [
            candidate
            for candidate in dict.fromkeys(candidates)
            if candidate not in sender.record.addresses and (over_loopback or not candidate.is_loopback)
        ]
        for address in fresh[: min(room, self._params.max_addresses + 1)]:
            self.ping(Purpose.DIAL_BACK, sender.record.peer_id, address, now)
