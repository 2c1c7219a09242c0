"""A scenario on the simulated network, and what it measures: convergence, detection, messages, mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from p2pfl_net.core.events import Note, Output, Tick
from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.params import Params
from p2pfl_net.sim.conditions import Conditions
from p2pfl_net.sim.network import SimNetwork, SimPeer
from p2pfl_net.sim.views import Views

MINUTE_S = 60.0
JOIN_WINDOW_S = 10.0
"""In a network that joins, the peers start within this time, each booted to one that started before."""
LOOK_S = 0.1
"""How exactly times of convergence are told."""
SETTLE_S = 120.0
"""How long a run may go on for its last changes to reach everybody."""


@dataclass(frozen=True)
class Scenario:
    """What happens. Times in virtual seconds, shares of all peers."""

    peers: int
    seconds: float = 60.0
    joined: bool = False
    """Whether all know all when it begins."""
    churn: float = 0.0
    """Share of the peers that is replaced in a minute: every other one is killed, the rest leave."""
    kill: tuple[tuple[float, float], ...] = ()
    """(share, at): a mass failure."""
    join: tuple[tuple[int, float], ...] = ()
    """(peers, at): a mass join."""
    partition: tuple[tuple[float, float, float], ...] = ()
    """(from, to, share): so large a part is cut off."""
    pause: tuple[tuple[float, float, float], ...] = ()
    """(share, at, seconds): stopped processes."""


@dataclass
class Outcome:
    """What came of a run. Times in virtual seconds; None: it did not happen, or not in time."""

    peers: int
    live: int = 0
    seed: int = 0
    virtual_seconds: float = 0.0
    converged: bool = False
    convergence_s: float | None = None
    """From the last change to all views being exactly the live peers."""
    join_spread_s: list[float] = field(default_factory=list)
    """How long each newcomer took to be in every view."""
    first_detection_s: list[float] = field(default_factory=list)
    """How long after its death somebody noticed."""
    detection_s: list[float] = field(default_factory=list)
    """How long each dead peer took to be out of every view."""
    false_positives: int = 0
    """How often a peer declared another one dead that could be reached, and could have refuted in time."""
    living_dropped: int = 0
    """Views that lost a peer which ran and could be reached: by such a mistake, or by news of a death that
    was right when it was told, and is no longer."""
    messages_per_peer_s: float = 0.0
    """Requests and replies."""
    bytes_per_peer_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Cluster:
    """Runs one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        conditions: Conditions,
        seed: int,
        params: Params | None = None,
        trace: Callable[[float, int, str, Any], None] | None = None,
    ) -> None:
        self.scenario = scenario
        self.network = SimNetwork(seed, conditions, params, observe=self._observe, trace=trace)
        self.outcome = Outcome(scenario.peers, seed=seed)
        self._by_id: dict[PeerId, SimPeer] = {}
        self._views = Views()
        self._died: dict[PeerId, float] = {}
        self._noticed: set[PeerId] = set()
        self._arrived: dict[PeerId, float] = {}
        """Newcomers who are not yet in every view."""
        self._changed_at = 0.0
        self._right_at: float | None = None

    @property
    def live(self) -> list[SimPeer]:
        return [peer for peer in self._by_id.values() if peer.alive]

    def run(self, progress: Callable[[float], None] = lambda now: None) -> Outcome:
        """The whole scenario, then on until all views are right again."""
        scenario, network = self.scenario, self.network
        self._begin()
        self._plan()
        while network.now < scenario.seconds:
            network.run(min(scenario.seconds, network.now + LOOK_S))
            self._look()
            progress(network.now)
        self._measure_traffic()
        while self._right_at is None and network.now < scenario.seconds + SETTLE_S:
            network.run(network.now + LOOK_S)
            self._look()
        if self._right_at is not None:
            self.outcome.converged = True
            self.outcome.convergence_s = max(0.0, self._right_at - self._changed_at)
        self.outcome.live = len(self.live)
        self.outcome.virtual_seconds = network.now
        return self.outcome

    def _look(self) -> None:
        """Notes since when all views have been right."""
        if not self._views.are_right():
            self._right_at = None
        elif self._right_at is None:
            self._right_at = self.network.now

    # the scenario ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        network, scenario = self.network, self.scenario
        known = scenario.peers - 1 if scenario.joined else 0
        peers = [self._add(known) for _ in range(scenario.peers)]
        if scenario.joined:
            records = {peer.id: peer.node.membership.me for peer in peers}
            for peer in peers:
                peer.node.membership.table.preload(records, network.random)
                network.start(peer)
            return
        for number, peer in enumerate(peers):
            at = JOIN_WINDOW_S * number / scenario.peers
            network.at(at, self._start, peer, peers[:number])
            self._changed_at = at

    def _add(self, knowers: int = 0) -> SimPeer:
        peer = self.network.add()
        self._by_id[peer.id] = peer
        self._views.add(peer.id, knowers)
        return peer

    def _start(self, peer: SimPeer, earlier: list[SimPeer]) -> None:
        network = self.network
        alive = [other for other in earlier if other.runs and other.joined]
        boot = [network.random.choice(alive).address] if alive else []
        self._arrived[peer.id] = network.now
        network.start(peer, boot)

    def _plan(self) -> None:
        network, scenario = self.network, self.scenario
        replaced = round(scenario.peers * scenario.churn * scenario.seconds / MINUTE_S)
        for number in range(replaced):
            network.at(scenario.seconds * (number + 0.5) / replaced, self._replace, number % 2 == 0)
        for share, at in scenario.kill:
            network.at(at, self._kill_share, share)
        for count, at in scenario.join:
            network.at(at, self._join_many, count)
        for begin, end, share in scenario.partition:
            network.at(begin, self._split, share)
            network.at(end, self._heal)
        for share, at, seconds in scenario.pause:
            network.at(at, self._pause_share, share, seconds)

    def _some(self, share: float) -> list[SimPeer]:
        runs = [peer for peer in self.live if peer.runs and peer.joined]
        return self.network.random.sample(runs, min(len(runs) - 1, max(1, round(share * len(runs)))))

    def _replace(self, by_kill: bool) -> None:
        (gone,) = self._some(1.0 / self._views.live)
        if by_kill:
            self._kill(gone)
        else:
            self._died[gone.id] = self.network.now
            self.network.leave(gone)
        self._join_many(1)

    def _kill_share(self, share: float) -> None:
        for peer in self._some(share):
            self._kill(peer)

    def _kill(self, peer: SimPeer) -> None:
        self.network.kill(peer)
        self._buried(peer)

    def _buried(self, peer: SimPeer) -> None:
        self._died.setdefault(peer.id, self.network.now)
        self._arrived.pop(peer.id, None)
        self._views.bury(peer.id, peer.node.membership.table.live.members())
        self._changed_at = self.network.now

    def _join_many(self, count: int) -> None:
        earlier = self.live
        for _ in range(count):
            self._start(self._add(), earlier)
        self._changed_at = self.network.now

    def _split(self, share: float) -> None:
        cut_off = {peer.index for peer in self._some(share)}
        self.network.split(lambda peer: int(peer.index in cut_off))

    def _heal(self) -> None:
        self.network.heal()
        self._changed_at = self.network.now

    def _pause_share(self, share: float, seconds: float) -> None:
        for peer in self._some(share):
            self.network.pause(peer, seconds)
        self._changed_at = self.network.now + seconds

    # what is measured ------------------------------------------------------------------------------

    def _observe(self, viewer: SimPeer, output: Output) -> None:
        if not viewer.alive:
            if viewer.id not in self._died or self._by_id[viewer.id] is viewer:
                self._buried(viewer)
            return
        if not isinstance(output, Note):
            return
        if output.event == "peer_joined":
            self._entered(PeerId(str(output.fields["peer"])))
        elif output.event in ("peer_lost", "peer_left"):
            self._left(viewer, PeerId(str(output.fields["peer"])), is_lost=output.event == "peer_lost")

    def _entered(self, peer_id: PeerId) -> None:
        knowers = self._views.entered(peer_id)
        arrived = self._arrived.get(peer_id)
        if arrived is not None and knowers >= self._views.live - 1:
            del self._arrived[peer_id]
            self.outcome.join_spread_s.append(self.network.now - arrived)

    def _left(self, viewer: SimPeer, peer_id: PeerId, *, is_lost: bool) -> None:
        knowers = self._views.left(peer_id)
        died = self._died.get(peer_id)
        if died is None:
            subject = self._by_id[peer_id]
            if is_lost and subject.runs and self.network.reaches(viewer, subject):
                self.outcome.living_dropped += 1
                self.outcome.false_positives += self._was_judged(subject)
            return
        if peer_id not in self._noticed:
            self._noticed.add(peer_id)
            self.outcome.first_detection_s.append(self.network.now - died)
        if knowers == 0:
            self.outcome.detection_s.append(self.network.now - died)

    def _was_judged(self, subject: SimPeer) -> bool:
        """Whether the death of a peer that lives is the viewer's own judgement, not news, and the peer could
        answer for as long as a suspect has at least."""
        network = self.network
        able_s = network.now - max(subject.resumed_at, network.healed_at)
        is_own = isinstance(network.handling, Tick)
        return is_own and able_s > network.params.suspicion_s(self._views.live)

    def _measure_traffic(self) -> None:
        seconds = len(self.live) * self.network.now
        self.outcome.messages_per_peer_s = sum(peer.sent for peer in self.network.peers) / seconds
        self.outcome.bytes_per_peer_s = sum(peer.sent_bytes for peer in self.network.peers) / seconds
