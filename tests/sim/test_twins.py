"""Whatever the network does: two with one key are both told, and whoever only restarts never is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl_net.core.events import ModelPublished, Note, Output
from p2pfl_net.core.ids import TaskDigest
from p2pfl_net.core.twins import CONFLICT_EVENT
from p2pfl_net.sim.conditions import Conditions
from p2pfl_net.sim.network import SimNetwork, SimPeer
from tests.sim.test_properties import EXAMPLES, conditions, seeds

TASKS = [TaskDigest(f"{number:064x}") for number in range(2)]


@dataclass(frozen=True)
class Restart:
    """A peer dies and comes back. Times in virtual seconds."""

    peer: int
    at: float
    down_s: float
    clock_s: float
    """How far its clock has been moved meanwhile."""
    renewals: tuple[float, ...]
    """How long before its death its record changed."""


restarts = st.builds(
    Restart,
    st.integers(0, 3),
    st.floats(5.0, 60.0),
    st.sampled_from([0.0, 0.05, 1.0, 5.0, 30.0]),
    st.sampled_from([0.0, -1.0, 1.0, -10.0, -100.0, 100.0, -3600.0, 3600.0]),
    st.lists(st.floats(0.0, 4.0), max_size=8).map(tuple),
)


@dataclass
class Watched:
    """A network, and who in it was told of a conflict."""

    seed: int
    conditions: Conditions
    told: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.network = SimNetwork(self.seed, self.conditions, observe=self._observe)
        self.published = 0

    def _observe(self, peer: SimPeer, output: Output) -> None:
        if isinstance(output, Note) and output.event == CONFLICT_EVENT:
            self.told[peer.index] += 1

    def begin(self, count: int) -> list[SimPeer]:
        peers = [self.network.add() for _ in range(count)]
        for number, peer in enumerate(peers):
            boot = [other.address for other in peers[:number]]  # some of them may be deaf to it
            self.network.at(0.2 * number, self.network.start, peer, boot)
        return peers

    def publish(self, peer: SimPeer) -> None:
        """Another task each time, so that the record is renewed."""
        self.published += 1
        if peer.runs:
            self.network.handle(peer, ModelPublished(TASKS[self.published % 2], 1))


def restart_all(watched: Watched, peers: list[SimPeer], plan: list[Restart]) -> None:
    """Each place has one life at a time; its clock stays where it was moved."""
    network, lives, clocks = watched.network, dict(enumerate(peers)), Counter[int]()

    def begin(restart: Restart) -> None:
        died = lives[restart.peer]
        clocks[restart.peer] += int(restart.clock_s)
        lives[restart.peer] = again = network.add(died, clock_s=clocks[restart.peer])
        network.start(again, [peers[-1].address])

    free_at: Counter[int] = Counter()
    for restart in sorted(plan, key=lambda restart: restart.at):
        if restart.at <= free_at[restart.peer]:
            continue
        free_at[restart.peer] = int(restart.at + restart.down_s) + 1
        for before_s in restart.renewals:
            at = max(5.0, restart.at - before_s)
            network.at(at, lambda restart=restart: watched.publish(lives[restart.peer]))
        network.at(restart.at, lambda restart=restart: network.kill(lives[restart.peer]))
        network.at(restart.at + restart.down_s, begin, restart)


def no_alarm(examples: int, *, split: bool) -> None:
    @settings(max_examples=examples)
    @given(st.integers(5, 15), st.lists(restarts, min_size=1, max_size=12), conditions, seeds)
    def holds(count: int, plan: list[Restart], conditions: Conditions, seed: int) -> None:
        watched = Watched(seed, conditions)
        peers = watched.begin(count)
        restart_all(watched, peers, plan)
        if split:
            watched.network.at(10.0, watched.network.split, lambda peer: peer.index % 2)
            watched.network.at(50.0, watched.network.heal)
        watched.network.run(120.0)
        assert not watched.told, "nobody has a twin"

    holds()


def both_are_told(examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.integers(3, 20), st.floats(-200.0, 200.0), conditions, seeds)
    def holds(count: int, clock_s: float, conditions: Conditions, seed: int) -> None:
        watched = Watched(seed, conditions)
        peers = watched.begin(count)
        watched.network.run(20.0)
        twin = watched.network.add(peers[0], clock_s=clock_s)
        watched.network.start(twin, [peer.address for peer in peers[::-1]])
        watched.network.run(200.0)
        assert watched.told == {peers[0].index: 1, twin.index: 1}

    holds()


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_restarts_are_no_twins(split: bool) -> None:
    no_alarm(EXAMPLES, split=split)


def test_two_with_one_key_are_both_told() -> None:
    both_are_told(EXAMPLES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
def test_the_same_of_many_restarts(split: bool) -> None:
    no_alarm(10 * EXAMPLES, split=split)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_of_many_twins() -> None:
    both_are_told(10 * EXAMPLES)


def test_their_quarrel_does_not_load_the_network() -> None:
    """Each peer's share of it is bounded by the budget of gossip, however large the network is."""
    for count in (5, 40):
        watched = Watched(1, Conditions())
        peers = watched.begin(count)
        watched.network.run(60.0)
        before = sum(peer.sent for peer in peers)
        watched.network.run(160.0)
        calm = sum(peer.sent for peer in peers) - before
        twin = watched.network.add(peers[0])
        watched.network.start(twin, [peers[-1].address])
        watched.network.run(180.0)
        before = sum(peer.sent for peer in peers)
        watched.network.run(280.0)
        quarrel = sum(peer.sent for peer in peers) - before
        budget = watched.network.params.gossip_rate
        allowed = 100.0 * count * 2 * budget + 2 * watched.network.params.gossip_burst * count
        assert calm < quarrel <= calm + allowed, "a call and its answer for each gossip of the budget"
        assert watched.told == {0: 1, twin.index: 1}
