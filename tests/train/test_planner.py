"""The planner: exact tails, against enumeration, against draws, and what must grow with what."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl_train.errors import UsageError
from p2pfl_train.planner import (
    MAX_PEERS,
    Network,
    Plan,
    check_risk,
    expected_liars,
    plan,
    refusal,
    smallest_safe,
    tail,
)

HUNDRED = Network(peers=100, byzantine=10, rounds=200, risk=0.05)


@pytest.mark.parametrize(
    ("fan_out", "effective", "votes", "safe"),
    [(10, 6, 11, False), (15, 7, 16, True), (20, 8, 21, True), (25, 9, 26, True), (99, 10, 100, True)],
)
def test_known_values(fan_out: int, effective: int, votes: int, safe: bool) -> None:
    found = plan(HUNDRED, fan_out)
    assert (found.effective, found.votes, found.safe) == (effective, votes, safe)


def test_the_smallest_safe_fan_out_is_the_first_safe_one() -> None:
    found = smallest_safe(HUNDRED)
    assert found is not None
    assert found.safe
    assert 10 < found.fan_out <= 15
    assert not any(plan(HUNDRED, fan_out).safe for fan_out in range(1, found.fan_out))


def test_against_half_of_all_there_is_no_safe_fan_out() -> None:
    assert smallest_safe(Network(10, 5, 100)) is None
    assert smallest_safe(Network(2, 1, 1)) is None


def test_a_plan_that_is_not_safe_is_refused_with_the_fan_out_that_is() -> None:
    safe = smallest_safe(HUNDRED)
    assert safe is not None
    said = refusal(HUNDRED, plan(HUNDRED, 10))
    assert "6 of 11 models" in said
    assert f"--fan-out {safe.fan_out}" in said
    half = Network(10, 5, 100)
    assert "no fan-out is safe" in refusal(half, plan(half, 5))


def test_without_liars_one_other_is_enough() -> None:
    assert smallest_safe(Network(2, 0, 1)) == Plan(1, 0, 0.0)


@pytest.mark.parametrize("effective", [3, 4])
def test_liars_are_a_minority_or_the_plan_is_not_safe(effective: int) -> None:
    assert Plan(6, effective, 0.0).safe == (effective <= 3)


@settings(max_examples=150)
@given(data=st.data(), others=st.integers(1, 9))
def test_the_tail_is_what_counting_all_draws_gives(data: st.DataObject, others: int) -> None:
    marked = data.draw(st.integers(0, others))
    drawn = data.draw(st.integers(1, others))
    most = data.draw(st.integers(0, drawn))
    draws = list(combinations(range(others), drawn))
    exceeding = sum(sum(peer < marked for peer in draw) > most for draw in draws)
    assert tail(others, marked, drawn, most) == float(Fraction(exceeding, len(draws)))


@settings(max_examples=100)
@given(data=st.data(), others=st.integers(1, 300))
def test_the_tail_is_exact_but_for_one_rounding(data: st.DataObject, others: int) -> None:
    """Against fractions multiplied one draw after the other."""
    marked = data.draw(st.integers(0, others))
    drawn = data.draw(st.integers(1, min(others, 12)))
    most = data.draw(st.integers(0, drawn))
    chances = {0: Fraction(1)}
    for step in range(drawn):
        following: dict[int, Fraction] = {}
        for hits, chance in chances.items():
            left = others - step
            for new, ways in ((hits + 1, marked - hits), (hits, left - (marked - hits))):
                following[new] = following.get(new, Fraction(0)) + chance * Fraction(ways, left)
        chances = following
    wanted = sum((chance for hits, chance in chances.items() if hits > most), Fraction(0))
    assert tail(others, marked, drawn, most) == float(wanted)


def exceeded(network: Network, fan_out: int, most: int) -> float:
    """The probability that some draw of the run has more than `most` liars, from the definition."""
    chance = Fraction(0)
    others = network.peers - 1
    for hits in range(most + 1, min(network.byzantine, fan_out) + 1):
        ways = math.comb(network.byzantine, hits) * math.comb(others - network.byzantine, fan_out - hits)
        chance += Fraction(ways, math.comb(others, fan_out))
    if chance == 1:
        return 1.0
    never = math.log1p(-float(chance)) * (network.peers - network.byzantine) * network.rounds
    return -math.expm1(never)


@st.composite
def networks(draw: st.DrawFn, peers: int = 60) -> Network:
    count = draw(st.integers(2, peers))
    return Network(
        count,
        draw(st.integers(0, count - 1)),
        draw(st.one_of(st.integers(1, 50), st.sampled_from([200, 10**4, 10**9]))),
        draw(st.sampled_from([0.5, 0.05, 1e-3, 1e-9])),
    )


@given(network=networks(), data=st.data())
def test_a_plan_holds_the_risk_and_one_liar_fewer_would_not(network: Network, data: st.DataObject) -> None:
    fan_out = data.draw(st.integers(1, network.peers - 1))
    found = plan(network, fan_out)
    assert found.fan_out == fan_out
    assert 0 <= found.effective <= min(network.byzantine, fan_out)
    assert 0 <= found.exceeded <= network.risk
    assert found.exceeded == pytest.approx(exceeded(network, fan_out, found.effective), rel=1e-9)
    if found.effective > 0:
        assert exceeded(network, fan_out, found.effective - 1) > network.risk


@given(network=networks(), data=st.data())
def test_more_liars_more_rounds_or_less_risk_never_make_it_smaller(
    network: Network, data: st.DataObject
) -> None:
    fan_out = data.draw(st.integers(1, network.peers - 1))
    found = plan(network, fan_out).effective
    if network.byzantine + 1 < network.peers:
        more_liars = Network(network.peers, network.byzantine + 1, network.rounds, network.risk)
        assert plan(more_liars, fan_out).effective >= found
    rounds = data.draw(st.integers(network.rounds, 10**9))
    assert plan(Network(network.peers, network.byzantine, rounds, network.risk), fan_out).effective >= found
    risk = data.draw(st.floats(1e-12, network.risk))
    assert plan(Network(network.peers, network.byzantine, network.rounds, risk), fan_out).effective >= found
    if fan_out > 1:
        assert plan(network, fan_out - 1).effective <= found


@given(network=networks())
def test_whoever_asks_everybody_meets_all_liars(network: Network) -> None:
    found = plan(network, network.peers - 1)
    assert found.effective == network.byzantine
    assert found.safe == (2 * network.byzantine < network.peers)


@given(peers=st.integers(2, 200), rounds=st.integers(1, 10**9), data=st.data())
def test_without_liars_none_are_met(peers: int, rounds: int, data: st.DataObject) -> None:
    fan_out = data.draw(st.integers(1, peers - 1))
    assert plan(Network(peers, 0, rounds), fan_out) == Plan(fan_out, 0, 0.0)


@given(network=networks(peers=30))
def test_the_smallest_safe_one_is_searched_from_below(network: Network) -> None:
    plans = [plan(network, fan_out) for fan_out in range(1, network.peers)]
    assert smallest_safe(network) == next((found for found in plans if found.safe), None)


@pytest.mark.parametrize(
    ("network", "fan_out"),
    [(Network(20, 4, 10, 0.3), 6), (Network(30, 3, 5, 0.3), 10), (Network(12, 5, 20, 0.5), 4)],
)
def test_drawing_peers_exceeds_the_plan_as_often_as_it_says(network: Network, fan_out: int) -> None:
    """Whole runs of all honest peers, drawn as the daemon draws."""
    found, runs = plan(network, fan_out), 2000
    generator = np.random.default_rng(network.peers)
    numbers = generator.random((runs, network.draws, network.peers - 1))
    drawn = np.argpartition(numbers, fan_out, axis=2)[:, :, :fan_out]
    worst = (drawn < network.byzantine).sum(axis=2).max(axis=1)
    for most in (found.effective, found.effective - 1):
        chance = exceeded(network, fan_out, most)
        error = math.sqrt(chance * (1 - chance) / runs) + 1 / runs
        assert abs(float((worst > most).mean()) - chance) < 5 * error
    assert exceeded(network, fan_out, found.effective) == pytest.approx(found.exceeded)


@pytest.mark.parametrize(
    ("network", "option"),
    [
        (Network(1, 0, 1), "--peers"),
        (Network(MAX_PEERS + 1, 0, 1), "--peers"),
        (Network(10, -1, 1), "--byzantine"),
        (Network(10, 10, 1), "--byzantine"),
        (Network(10, 1, 0), "--rounds"),
        (Network(10, 1, 10**9 + 1), "--rounds"),
        (Network(10, 1, 1, 0.0), "--risk"),
        (Network(10, 1, 1, 1.0), "--risk"),
        (Network(10, 1, 1, -0.1), "--risk"),
        (Network(10, 1, 1, math.nan), "--risk"),
    ],
)
def test_numbers_that_make_no_network_are_named(network: Network, option: str) -> None:
    with pytest.raises(UsageError, match=option) as caught:
        network.check()
    assert "\n" not in str(caught.value)


def test_numbers_at_the_ends_make_a_network() -> None:
    Network(2, 0, 1).check()
    Network(2, 1, 10**9, 0.5).check()
    Network(MAX_PEERS, MAX_PEERS - 1, 1, 1e-300).check()
    check_risk(0.5)


@pytest.mark.parametrize(
    ("peers", "share", "liars"),
    [
        (10, 0.0, 0),
        (10, 0.3, 3),
        (10, 0.31, 4),
        (100, 0.07, 7),  # 0.07 x 100 is a little more than 7
        (16, 0.1, 2),
        (1, 0.5, 0),
        (2, 0.5, 1),
        (2, 1.0, 1),
        (7, 1.0, 6),
    ],
)
def test_a_share_of_liars_is_rounded_up_and_leaves_the_own_one(peers: int, share: float, liars: int) -> None:
    assert expected_liars(peers, share) == liars


@given(peers=st.integers(1, 10_000), hundredths=st.integers(0, 100))
def test_expected_liars_are_the_exact_share_rounded_up(peers: int, hundredths: int) -> None:
    wanted = min(math.ceil(Fraction(hundredths, 100) * peers), peers - 1)
    assert expected_liars(peers, hundredths / 100) == wanted
