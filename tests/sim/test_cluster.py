"""Scenarios on the simulated network: who ends in whose view, and that a seed replays."""

from __future__ import annotations

from typing import Any

import pytest

from p2pfl_net.sim.cluster import Cluster, Outcome, Scenario
from p2pfl_net.sim.conditions import Conditions

SCENARIOS = {
    "join": Scenario(30, 20),
    "a third killed": Scenario(30, 20, joined=True, kill=((0.33, 5.0),)),
    "halves": Scenario(20, 50, joined=True, partition=((5.0, 35.0, 0.5),)),
    "stopped": Scenario(20, 40, joined=True, pause=((0.1, 5.0, 20.0),)),
    "churn": Scenario(30, 30, joined=True, churn=0.2),
}


def run(scenario: Scenario, conditions: Conditions, seed: int) -> Outcome:
    return Cluster(scenario, conditions, seed).run()


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("seed", range(3))
def test_all_views_end_right(name: str, seed: int) -> None:
    outcome = run(SCENARIOS[name], Conditions(), seed)
    assert outcome.converged, outcome


@pytest.mark.parametrize("seed", range(3))
def test_also_on_bad_wires(seed: int) -> None:
    bad = Conditions(latency_s=(0.001, 0.1), loss=0.05, drop=0.02, duplicate=0.05, reorder=0.02, skew=0.05)
    outcome = run(Scenario(20, 40, joined=True, kill=((0.2, 5.0),)), bad, seed)
    assert outcome.converged, outcome


def test_nobody_is_dropped_where_messages_are_only_late() -> None:
    outcome = run(Scenario(50, 60, joined=True), Conditions(loss=0.05), 1)
    assert outcome.false_positives == 0


def test_a_peer_that_does_not_call_in_its_turn_is_probed() -> None:
    """By chance alone, one death in twenty would take longer to be seen: each has about a probe a second."""
    slowest = 0.0
    for seed in range(60):
        outcome = run(Scenario(20, 35, joined=True, kill=((0.05, 25.0),)), Conditions(), seed)
        assert len(outcome.detection_s) == 1
        slowest = max(slowest, *outcome.detection_s)
    assert slowest < 5.0


def test_a_probe_from_before_the_cut_was_mended_is_no_last_chance() -> None:
    """Whoever was cut off is slow to judge, so probes of that time end long after it."""
    for seed in range(0, 400, 8):
        scenario = Scenario(8, 60.0, joined=True, partition=((10.0, 27.0, 0.125),))
        outcome = run(scenario, Conditions(drop=0.01, duplicate=0.05), seed)
        assert (outcome.false_positives, outcome.converged) == (0, True), seed


def test_in_a_quiet_network_a_second_has_one_probe() -> None:
    """A request of each peer's own and a reply to another's; nothing for who is late."""
    cluster = Cluster(Scenario(20, 100, joined=True), Conditions(), 1)
    outcome = cluster.run()
    assert 1.9 < outcome.messages_per_peer_s < 2.1


def test_the_same_seed_replays_event_by_event() -> None:
    def traced() -> list[str]:
        lines: list[str] = []

        def trace(now: float, peer: int, way: str, what: Any) -> None:
            lines.append(f"{now!r} {peer} {way} {what!r}")

        conditions = Conditions(loss=0.05, drop=0.02)
        Cluster(SCENARIOS["a third killed"], conditions, 7, trace=trace).run()
        return lines

    first = traced()
    assert len(first) > 1000
    assert first == traced()
