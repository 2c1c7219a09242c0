"""Whatever happens to a network: everybody ends in everybody's view, the dead leave it, nobody is slandered.

A failing example names its scenario, conditions and seed, and the three replay it event by event.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl_net.core.params import Params
from p2pfl_net.sim.cluster import Cluster, Outcome, Scenario
from p2pfl_net.sim.conditions import Conditions

EXAMPLES = 50
"""Of each property; ten times as many in the slow tests."""

peers = st.integers(8, 30)
seeds = st.integers(0, 2**32 - 1)
times = st.floats(2.0, 20.0)
shares = st.floats(0.05, 0.4)

conditions = st.builds(
    Conditions,
    latency_s=st.sampled_from([(0.0005, 0.005), (0.005, 0.05), (0.02, 0.15)]),
    loss=st.sampled_from([0.0, 0.01, 0.05]),
    drop=st.sampled_from([0.0, 0.01, 0.05]),
    duplicate=st.sampled_from([0.0, 0.05]),
    reorder=st.sampled_from([0.0, 0.02]),
    one_way=st.sampled_from([0.0, 0.05]),
    skew=st.sampled_from([0.0, 0.05]),
)

quiet = st.builds(Scenario, peers=peers, joined=st.just(True))
joins = st.builds(
    lambda peers, more, at: Scenario(peers, 30.0, join=((more, at),)), peers, st.integers(1, 20), times
)
deaths = st.builds(
    lambda peers, share, at: Scenario(peers, 40.0, joined=True, kill=((share, at),)), peers, shares, times
)
churns = st.builds(Scenario, peers, st.just(40.0), st.just(True), st.floats(0.2, 0.5))
splits = st.builds(
    lambda peers, share, at, long: Scenario(peers, 60.0, joined=True, partition=((at, at + long, share),)),
    peers,
    shares,
    times,
    st.floats(1.0, 30.0),
)
stops = st.builds(
    lambda peers, share, at, long: Scenario(peers, 60.0, joined=True, pause=((share, at, long),)),
    peers,
    st.floats(0.05, 0.2),
    times,
    st.floats(0.5, 30.0),
)
SCENARIOS = {
    "quiet": quiet,
    "joins": joins,
    "deaths": deaths,
    "churn": churns,
    "splits": splits,
    "stops": stops,
}


def bound_s(peers: int) -> float:
    """How long a dead peer may stay in some view: it is somebody's turn (nobody's in t periods: e^-t), the
    probe runs out, then the suspicion, twice where accusers are few, and the news goes round."""
    params = Params()
    return 15 * params.probe_interval_s + params.probe_s + 2 * params.suspicion_s(peers)


def check(scenario: Scenario, conditions: Conditions, seed: int) -> None:
    outcome = Cluster(scenario, conditions, seed).run()
    assert outcome.converged, "every live peer in every live view, and nobody else"
    assert outcome.false_positives == 0, "a peer that could answer was declared dead"
    assert all(seconds <= bound_s(scenario.peers) for seconds in outcome.detection_s), outcome.detection_s
    assert_deaths_were_seen(scenario, outcome)


def assert_deaths_were_seen(scenario: Scenario, outcome: Outcome) -> None:
    """Each death that the scenario asks for was seen, so that the bounds above have held of something."""
    if scenario.kill:
        assert len(outcome.detection_s) >= max(1, round(scenario.kill[0][0] * scenario.peers))
    if scenario.churn:
        assert outcome.detection_s


def property_of(name: str, examples: int) -> Callable[[], None]:
    @settings(max_examples=examples)
    @given(SCENARIOS[name], conditions, seeds)
    def holds(scenario: Scenario, conditions: Conditions, seed: int) -> None:
        check(scenario, conditions, seed)

    return holds


@pytest.mark.parametrize("name", SCENARIOS)
def test_all_views_end_right_and_nobody_is_slandered(name: str) -> None:
    property_of(name, EXAMPLES)()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_of_thousands_of_seeds(name: str) -> None:
    property_of(name, 10 * EXAMPLES)()
