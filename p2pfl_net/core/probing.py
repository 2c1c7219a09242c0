"""Failure detection: a direct ping, then through others, then a suspicion.

Das, Gupta, Motivala: SWIM, 2002, sections 3.1 and 4.3; the helpers' nacks and the local health multiplier
are Lifeguard's (Dadgar, Phillips, Currey 2018, section IV-A).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from random import Random

from p2pfl_net.core.calls import Calls, Pending, Purpose
from p2pfl_net.core.counters import Counters
from p2pfl_net.core.dissemination import Dissemination
from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.health import LocalHealth
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.params import Params
from p2pfl_net.core.times import soonest


@dataclass(slots=True)
class _Probe:
    began: float
    incarnation: int
    untried: tuple[Address, ...]
    helpers_due: float
    ends: float
    direct_failed: bool = False
    refused: bool = False
    """At each address that was tried: nobody listens there, or somebody else does."""
    asked: int | None = None
    """Helpers asked; None: not yet."""
    waiting: int = 0
    """Helpers that have not answered."""
    heard: int = 0
    """Helpers that did, whatever they said."""
    nacks: int = 0
    """Helpers that tried, and did not reach it either."""


class Prober:
    """The probes of one peer: one is begun in each period, several may be under way."""

    def __init__(
        self,
        known: Dissemination,
        calls: Calls,
        health: LocalHealth,
        params: Params,
        counters: Counters,
        random: Random,
    ) -> None:
        self._known = known
        self._calls = calls
        self._health = health
        self._params = params
        self._counters = counters
        self._random = random
        self._probes: dict[PeerId, _Probe] = {}
        self._next_at: float | None = None
        self._called: OrderedDict[PeerId, float] = OrderedDict()
        """When each peer last called us, the longest ago first."""

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._probes)

    def start(self, now: float) -> None:
        self._next_at = now + self._params.probe_interval_s * self._random.random()

    def stop(self) -> None:
        self._next_at = None
        self._probes.clear()
        self._called.clear()

    def wakeup(self) -> float | None:
        due = soonest(self._next_at, self._overdue_at())
        for probe in self._probes.values():
            then = probe.helpers_due if probe.asked is None else probe.ends
            due = then if due is None else min(due, then)
        return due

    def tick(self, now: float) -> None:
        if self._probes:
            for peer_id, probe in list(self._probes.items()):
                if probe.asked is None and now >= probe.helpers_due:
                    self._ask_helpers(peer_id, probe, now)
                if now >= probe.ends and peer_id in self._probes:
                    self._conclude(peer_id, probe, now)
        if self._next_at is not None and now >= self._next_at:
            self._next_at = now + self._params.probe_interval_s * self._health.factor
            peer_id_due = self._known.table.live.next_turn()
            if peer_id_due is not None:
                self.begin(peer_id_due, now)
        overdue_at = self._overdue_at()
        while overdue_at is not None and now >= overdue_at:
            peer_id, _ = self._called.popitem(last=False)
            if self._known.table.is_live(peer_id):
                self._called[peer_id] = now
                if len(self) < self._params.max_probes:
                    self.begin(peer_id, now)
            overdue_at = self._overdue_at()

    def called(self, peer_id: PeerId, now: float) -> None:
        """A peer has called us: it will again, a round from now, if it lives."""
        if self._known.table.is_live(peer_id):
            self._called[peer_id] = now
            self._called.move_to_end(peer_id)

    def _overdue_at(self) -> float | None:
        """When a peer will not have called us for so much longer than a round that it may be gone."""
        if not self._called:
            return None
        params = self._params
        round_s = params.probe_interval_s * len(self._known.table.live)
        return next(iter(self._called.values())) + round_s + params.overdue_s

    def begin(self, peer_id: PeerId, now: float, *, factor: int | None = None) -> None:
        """Probes a live peer, if that is not being done already. Time-outs are multiplied with `factor`, by
        default that of this peer's health."""
        record = self._known.table.get(peer_id)
        if record is None or not record.is_live or peer_id in self._probes:
            return
        factor = factor or self._health.factor
        first, *others = self._known.table.addresses(peer_id)
        direct_s = factor * self._params.probe_timeout_s
        whole_s = direct_s + factor * self._params.relay_timeout_s
        self._probes[peer_id] = _Probe(now, record.incarnation, tuple(others), now + direct_s, now + whole_s)
        self._calls.ping(Purpose.PROBE, peer_id, first, now, timeout_s=whole_s)

    def begin_last(self, peer_id: PeerId, now: float) -> None:
        """Probes a live peer before it is declared dead, directly and through others, within `probe_s`.

        What an earlier probe has tried, perhaps while a link was cut, counts no more.
        """
        self._probes.pop(peer_id, None)
        self.begin(peer_id, now, factor=1)

    def forgive(self) -> None:
        """Drops the probes under way: this process stood still, they show nothing."""
        self._probes.clear()
        self._called.clear()

    # what comes of them ----------------------------------------------------------------------------

    def answered(self, peer_id: PeerId) -> None:
        """The peer itself answered one of our calls."""
        if self._probes.pop(peer_id, None) is not None:
            self._health.recover()

    def failed(self, pending: Pending, kind: FailureKind, now: float) -> None:
        """A direct ping failed: the peer's next address, or the helpers."""
        assert pending.peer_id is not None
        if kind is FailureKind.BUSY:  # who is busy is there
            self._probes.pop(pending.peer_id, None)
            return
        probe = self._current(pending.peer_id, pending)
        if probe is None:
            return
        gone = kind in (FailureKind.REFUSED, FailureKind.WRONG_PEER)
        probe.refused = gone and (probe.refused or not probe.direct_failed)
        probe.direct_failed = True
        if probe.untried and now < probe.ends:
            address, *others = probe.untried
            probe.untried = tuple(others)
            left_s = max(probe.ends - now, self._params.probe_timeout_s)
            self._calls.ping(Purpose.PROBE, pending.peer_id, address, now, timeout_s=left_s)
        elif probe.asked is None:
            self._ask_helpers(pending.peer_id, probe, now)
        else:
            self._conclude_when_all_heard(pending.peer_id, probe, now)

    def helper_answered(self, pending: Pending, now: float, *, reached: bool) -> None:
        """A helper says whether it reached the peer."""
        assert pending.target is not None
        probe = self._current(pending.target, pending)
        if probe is None:
            return
        if reached:
            del self._probes[pending.target]
            self._counters.probes_saved += 1
            return
        probe.nacks += 1
        self._count_helper(pending.target, probe, now, heard=True)

    def helper_failed(self, pending: Pending, kind: FailureKind, now: float) -> None:
        """A helper did not answer, or could not help."""
        assert pending.target is not None
        probe = self._current(pending.target, pending)
        if probe is not None:
            heard = kind is not FailureKind.UNREACHABLE  # a refusal comes from a machine that hears us
            self._count_helper(pending.target, probe, now, heard=heard)

    def _current(self, peer_id: PeerId, pending: Pending) -> _Probe | None:
        """The probe that a call belongs to, unless it is over."""
        probe = self._probes.get(peer_id)
        return probe if probe is not None and pending.sent_at >= probe.began else None

    def _count_helper(self, peer_id: PeerId, probe: _Probe, now: float, *, heard: bool) -> None:
        probe.waiting -= 1
        probe.heard += heard
        self._conclude_when_all_heard(peer_id, probe, now)

    def _ask_helpers(self, peer_id: PeerId, probe: _Probe, now: float) -> None:
        helpers = self._known.table.live.sample(self._params.relays, without=(peer_id,))
        probe.asked = probe.waiting = len(helpers)
        timeout_s = self._health.factor * self._params.relay_timeout_s
        probe.ends = max(probe.ends, now + timeout_s)
        for helper in helpers:
            self._calls.ask_relay(helper, peer_id, timeout_s, now)
        self._conclude_when_all_heard(peer_id, probe, now)

    def _conclude_when_all_heard(self, peer_id: PeerId, probe: _Probe, now: float) -> None:
        if probe.direct_failed and not probe.untried and probe.asked is not None and not probe.waiting:
            self._conclude(peer_id, probe, now)

    def _conclude(self, peer_id: PeerId, probe: _Probe, now: float) -> None:
        """Nobody reached it: either it is gone, or this peer hears badly. Probably some of both."""
        del self._probes[peer_id]
        self._counters.probes_failed += 1
        silent = (probe.asked or 0) - probe.heard
        if silent:
            self._health.degrade(silent)
        elif not probe.asked and not probe.refused:
            self._health.degrade()
        self._known.suspect(peer_id, probe.incarnation, now, witnesses=probe.nacks, refused=probe.refused)
