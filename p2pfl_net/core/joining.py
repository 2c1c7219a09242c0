"""How a peer comes into a network, keeps in step with it, and finds it again.

Joins through boot peers (`boot`), an exchange of all that is known with a random peer now and then, and
attempts at the last known addresses of the lost (`healing`): one kind of message for all three.
"""

from __future__ import annotations

from random import Random

from p2pfl_net.core.boot import BootAttempts
from p2pfl_net.core.calls import Calls, Pending, Purpose
from p2pfl_net.core.counters import Counters
from p2pfl_net.core.dissemination import Dissemination
from p2pfl_net.core.events import BootFailed, Joined, Note, Output, Received, Reply, Start
from p2pfl_net.core.ids import Address, is_loopback, source_of
from p2pfl_net.core.messages import Join, JoinReply, Record
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.core.times import soonest


class Joining:
    """One peer's joins, exchanges and attempts at healing."""

    def __init__(
        self,
        known: Dissemination,
        reach: Reachability,
        calls: Calls,
        params: Params,
        counters: Counters,
        random: Random,
        out: list[Output],
    ) -> None:
        """`out` receives the outputs; whoever owns it hands them on."""
        self._known = known
        self._reach = reach
        self._calls = calls
        self._params = params
        self._counters = counters
        self._random = random
        self._out = out
        self._boot: BootAttempts | None = None
        self._next_boot_at: float | None = None
        self._next_sync_at: float | None = None

    def start(self, event: Start, now: float) -> None:
        soonest_s = 0.5 * self._params.sync_interval_s
        period_s = self._params.sync_s(len(self._known.table.live))
        self._next_sync_at = now + soonest_s + (period_s - soonest_s) * self._random.random()
        if event.boot or event.remembered:
            self._next_sync_at = now + self._params.first_sync_s * (0.5 + self._random.random())
            self._boot = BootAttempts.begin(event, self._params, now)
            self._send_join(now)
        else:
            self._out.append(Joined(first=True))

    def stop(self) -> None:
        self._boot = None
        self._next_boot_at = self._next_sync_at = None

    def wakeup(self) -> float | None:
        if self._boot is None:
            return soonest(self._next_sync_at, self._next_heal_at())
        return soonest(self._next_boot_at, self._boot.verdict_at, self._next_sync_at, self._next_heal_at())

    def _next_heal_at(self) -> float | None:
        is_up = self._next_sync_at is not None
        return self._known.last_known.next_due() if is_up else None

    def tick(self, now: float) -> None:
        if self._next_boot_at is not None and now >= self._next_boot_at:
            self._next_boot_at = None
            self._send_join(now)
        if self._boot is not None and now >= self._boot.verdict_at:
            self._end_boot(now)
        if self._next_sync_at is not None and now >= self._next_sync_at:
            self._sync(now)
        heal_at = self._next_heal_at()
        if heal_at is not None and now >= heal_at:
            live = len(self._known.table.live)
            lost = self._known.last_known.take(now, live, self._is_known)
            if lost is not None:
                timeout_s = self._params.join_timeout_s
                self._calls.join(Purpose.HEAL, lost.address, timeout_s, now, to=lost.peer_id)

    def discovered(self, addresses: tuple[Address, ...], now: float) -> None:
        """Somebody may live there: asked at once, unless we know who it is."""
        self._known.last_known.add(addresses, now, at_once=True)

    # what comes of them ----------------------------------------------------------------------------

    def answered(self, pending: Pending, reply: JoinReply, now: float) -> None:
        if pending.purpose is Purpose.JOIN:
            self._enter(pending, reply, now)
            return
        self._take_in(pending, reply, now)
        if pending.purpose is Purpose.HEAL:
            self._known.last_known.answered(pending.address)
            if reply.sender.record.peer_id != self._known.me.peer_id:
                self._counters.healed += 1
                self._out.append(Note("found_again", {"address": str(pending.address)}))

    def failed(self, pending: Pending, reason: str, now: float) -> None:
        if pending.purpose is not Purpose.JOIN or self._boot is None:
            return
        if self._boot.is_news(pending.address, reason):
            self._out.append(Note("boot_unanswered", {"address": str(pending.address), "reason": reason}))
        self._next_boot_at = self._boot.failed(pending.address, f"{pending.address}: {reason}", now)
        if self._next_boot_at is None:
            self._end_boot(now)

    def answer(self, event: Received, message: Join, now: float) -> None:
        """Takes the caller in, and tells it all that it can use."""
        over_loopback = is_loopback(event.host)
        joiner = message.sender.record
        records: tuple[Record, ...] = ()
        if joiner.peer_id != self._known.me.peer_id:
            records = self._known.everything(joiner.peer_id, to_loopback=over_loopback)
            self._known.hear(message.sender, message.records, now, host=event.host, exchange=True)
            self._known.table.vouch(joiner.peer_id, event.host)
            self._calls.dial_back_caller(message.sender, event.host, now)
            records += self._known.held_against(joiner.peer_id, joiner, to_loopback=over_loopback)
        else:
            self._known.is_twin(joiner, now)
        sender = self._calls.sender(to_loopback=over_loopback, with_candidates=True)
        self._out.append(Reply(event.call, JoinReply(sender, event.host, records)))

    # booting ---------------------------------------------------------------------------------------

    def _send_join(self, now: float) -> None:
        boot = self._boot
        assert boot is not None
        address = boot.next(now)
        if address is None:
            self._end_boot(now)
            return
        timeout_s = min(self._params.join_timeout_s, max(0.05, boot.deadline - now))
        self._calls.join(Purpose.JOIN, address, timeout_s, now)

    def _end_boot(self, now: float) -> None:
        """Nobody answered: a failure, or a peer that stands alone for now."""
        boot = self._boot
        assert boot is not None
        self._boot = None
        self._next_boot_at = None
        if boot.joined or not boot.named:
            self._known.last_known.add((*boot.named, *boot.unanswered), now)
        if not boot.joined:
            self._out.append(BootFailed(boot.reason) if boot.named else Joined(first=True))

    def _enter(self, pending: Pending, reply: JoinReply, now: float) -> None:
        """Somebody answered our join: the network is up."""
        boot = self._boot
        if boot is None:
            return
        if reply.sender.record.peer_id == self._known.me.peer_id:
            if self._known.is_twin(reply.sender.record, now):
                self.failed(pending, "another process with this peer's key lives there", now)
                return
            boot.forget(pending.address, now)
            self._send_join(now)
            return
        self._known.table.hearsay.trust(source_of(pending.address.host))
        self._reach.observed(reply.observed_host)
        self._take_in(pending, reply, now, spread=boot.joined)
        if not boot.joined:
            self._out.append(Joined(first=False))
        self._next_boot_at = boot.answered(pending.address, now)
        if self._next_boot_at is None:
            self._boot = None
            # perhaps of another network, which does not know of this one
            self._known.last_known.add(tuple(a for a in boot.named if a != pending.address), now)

    # exchanges -------------------------------------------------------------------------------------

    def _sync(self, now: float) -> None:
        period_s = self._params.sync_s(len(self._known.table.live))
        self._next_sync_at = now + period_s * (0.75 + 0.5 * self._random.random())
        for peer_id in self._known.table.live.sample(1):
            address = self._known.table.addresses(peer_id)[0]
            self._calls.join(Purpose.SYNC, address, self._params.join_timeout_s, now, to=peer_id)

    def _take_in(self, pending: Pending, reply: JoinReply, now: float, *, spread: bool = True) -> None:
        peer_id = reply.sender.record.peer_id
        over_loopback = is_loopback(reply.observed_host)
        # a name of this machine leads to it over loopback, as the other end sees it
        host = reply.observed_host if over_loopback else pending.address.host
        if peer_id == self._known.me.peer_id:
            self._known.is_twin(reply.sender.record, now)
            return
        self._known.hear(reply.sender, reply.records, now, host=host, exchange=True, spread=spread)
        self._known.table.verify(peer_id, pending.address, now - pending.sent_at)
        self._calls.dial_back(reply.sender, reply.sender.candidates, now, over_loopback=over_loopback)

    def _is_known(self, address: Address) -> bool:
        """Whether a live peer has this address."""
        return any(address in record.addresses for record in self._known.table.live_records())
