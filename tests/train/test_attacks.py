"""What liars say: each attack against its definition, and the search for the worst factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pfl_train.errors import UsageError
from p2pfl_train.redteam import simulation
from p2pfl_train.redteam.attacks import (
    CHANGING,
    KINDS,
    OLD_ROUNDS,
    SEARCHED,
    Attack,
    Crowd,
    Liars,
    dissensus,
    parse_attack,
)
from p2pfl_train.redteam.options import Defence, Setting
from p2pfl_train.rules.rule import parse_rule
from p2pfl_train.tasks import TaskOptions
from tests.train import naive_rules as naive

torch.set_num_threads(1)

Doubles = npt.NDArray[np.float64]

SPOKEN = ("sign-flip", "foe", "shrink", "alie", "gaussian", "free-rider")
"""Attacks in which all that ask are told the same."""

seeds = st.integers(0, 2**32 - 1)
factors = st.sampled_from([0.1, 0.5, 1.0, 2.5, 10.0])


def draw(seed: int, *shape: int) -> Doubles:
    return np.random.default_rng(seed).normal(size=shape) * 3


def listen(
    text: str,
    initial: Doubles,
    rounds: Sequence[Doubles],
    liars: int = 2,
    seed: int = 0,
    search: Callable[[Tensor], float] = lambda push: 1.0,
    kind: torch.dtype = torch.float64,
) -> list[tuple[Doubles, float | None]]:
    """What the liars say in each round, (liars, parameters), and with which factor."""
    speaking = Liars(parse_attack(text), liars, seed)
    speaking.begin(torch.from_numpy(initial).to(kind))
    heard = []
    for number, honest in enumerate(rounds, start=1):
        crowd = speaking.look(torch.from_numpy(honest).to(kind))
        said, factor = speaking.speak(crowd, number, search)
        assert said is not None
        assert said.shape == (liars, honest.shape[1])
        assert said.dtype == kind
        heard.append((said.double().numpy().copy(), factor))
    return heard


@pytest.mark.parametrize(
    ("text", "attack", "shown"),
    [
        ("none", Attack("none"), "none"),
        ("alie", Attack("alie"), "alie"),
        (" alie:1.5 ", Attack("alie", 1.5), "alie:1.5"),
        ("sign-flip", Attack("sign-flip", 1.0), "sign-flip"),
        ("sign-flip:10", Attack("sign-flip", 10.0), "sign-flip:10"),
        ("gaussian", Attack("gaussian", 0.1), "gaussian"),
        ("free-rider:3", Attack("free-rider", 3.0), "free-rider:3"),
        ("label-flip", Attack("label-flip"), "label-flip"),
        ("dissensus:2", Attack("dissensus", 2.0), "dissensus:2"),
        ("changing", Attack("changing"), "changing"),
        ("foe:1e9", Attack("foe", 1e9), "foe:1e+09"),
    ],
)
def test_an_attack_as_it_is_typed(text: str, attack: Attack, shown: str) -> None:
    assert parse_attack(text) == attack
    assert str(attack) == shown
    assert parse_attack(shown) == attack


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be one of none, sign-flip"),
        ("alies", "must be one of"),
        ("ALIE", "must be one of"),
        ("alie\nfoe", "must be one of"),
        ("alie:", "the factor must be a number above 0"),
        ("alie:much", "the factor must be a number above 0"),
        ("alie:0", "the factor must be a number above 0"),
        ("alie:-1", "the factor must be a number above 0"),
        ("alie:nan", "the factor must be a number above 0"),
        ("alie:inf", "the factor must be a number above 0"),
        ("alie:1e10", "at most 1e9"),
        ("none:1", "none takes no factor"),
        ("label-flip:2", "label-flip takes no factor"),
        ("changing:1", "changing takes no factor"),
        ("x" * 10_000, "must be one of"),
    ],
)
def test_a_wrong_attack_is_one_short_line(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_attack(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("--attack ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


# Each attack by its definition


@settings(max_examples=60)
@given(
    seed=seeds,
    honest=st.integers(1, 6),
    size=st.integers(1, 9),
    factor=factors,
    name=st.sampled_from(["sign-flip", "foe", "shrink", "alie"]),
)
def test_what_is_said_is_the_definition(seed: int, honest: int, size: int, factor: float, name: str) -> None:
    before, *rounds = [draw(seed + number, honest, size) for number in range(3)]
    for number, (said, used) in enumerate(listen(f"{name}:{factor}", before.mean(axis=0), rounds)):
        now, earlier = rounds[number], [before, *rounds][number].mean(axis=0)
        mean = now.mean(axis=0)
        spread = math.sqrt(float(((now - mean) ** 2).sum(axis=1).mean()))
        progress = mean - earlier
        wanted = {
            "sign-flip": -factor * mean,
            "foe": mean - factor * spread * progress / np.linalg.norm(progress),
            "shrink": mean - factor * spread * mean / np.linalg.norm(mean),
            "alie": mean - factor * np.sqrt(((now - mean) ** 2).mean(axis=0)),
        }[name]
        assert used == factor
        np.testing.assert_allclose(said, np.tile(wanted, (2, 1)), rtol=1e-9, atol=1e-9)


@given(seed=seeds, factor=factors)
def test_a_searched_factor_is_that_of_the_search(seed: int, factor: float) -> None:
    honest, initial = draw(seed, 4, 5), draw(seed + 1, 5)
    pushes: list[Tensor] = []

    def search(push: Tensor) -> float:
        pushes.append(push)
        return factor

    for name in ("foe", "shrink", "alie"):
        ((said, used),) = listen(name, initial, [honest], search=search)
        ((given_one, _),) = listen(f"{name}:{factor}", initial, [honest])
        assert used == factor
        assert np.array_equal(said, given_one)
        spread = math.sqrt(float(honest.var(axis=0).sum()))
        assert float(pushes[-1].norm()) == pytest.approx(spread)


def test_gaussian_noise_has_the_honest_mean_and_its_deviation() -> None:
    size, deviation = 20_000, 0.3
    honest, initial = draw(1, 3, size), np.zeros(size)
    ((said, factor),) = listen(f"gaussian:{deviation}", initial, [honest], liars=3)
    assert factor == deviation
    noise = said - honest.mean(axis=0)
    for one in noise:
        assert abs(one.mean()) < 5 * deviation / math.sqrt(size)
        assert one.std() == pytest.approx(deviation, rel=0.03)
    assert all(abs(np.corrcoef(noise)[i, j]) < 0.05 for i in range(3) for j in range(i))


def test_noise_is_by_seed_and_round_and_unlike_that_of_other_liars() -> None:
    honest, initial = draw(1, 3, 50), np.zeros(50)
    (first, _), (second, _) = listen("gaussian", initial, [honest, honest], seed=4)
    (again, _), _ = listen("gaussian", initial, [honest, honest], seed=4)
    ((other, _),) = listen("gaussian", initial, [honest], seed=5)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@settings(max_examples=40)
@given(seed=seeds, age=st.integers(1, 12), rounds=st.integers(1, 15))
def test_a_free_rider_returns_the_mean_of_so_many_rounds_ago(seed: int, age: int, rounds: int) -> None:
    initial = draw(seed, 3)
    honest = [draw(seed + number, 4, 3) for number in range(1, rounds + 1)]
    means = [initial, *[one.mean(axis=0) for one in honest]]
    texts = [f"free-rider:{age}", *(["free-rider"] if age == OLD_ROUNDS else [])]
    for text in texts:
        for number, (said, _) in enumerate(listen(text, initial, honest), start=1):
            old = means[max(0, number - age)]  # before there is any: from where all started
            np.testing.assert_allclose(said, np.tile(old, (2, 1)), rtol=1e-12)


def test_a_free_rider_is_ten_rounds_old_unless_told_otherwise() -> None:
    honest = [draw(number, 4, 3) for number in range(14)]
    said, _ = listen("free-rider", draw(99, 3), honest)[-1]
    np.testing.assert_allclose(said[0], honest[-1 - 10].mean(axis=0), rtol=1e-12)


@settings(max_examples=60)
@given(seed=seeds, pulled=st.integers(0, 5), liars=st.integers(1, 4), size=st.integers(1, 6), factor=factors)
def test_dissensus_is_away_from_all_that_were_pulled(
    seed: int, pulled: int, liars: int, size: int, factor: float
) -> None:
    own, honest = draw(seed, size), draw(seed + 1, pulled, size)
    said = dissensus(torch.from_numpy(own), list(torch.from_numpy(honest)), liars, factor).numpy()
    away = sum(((one - own) for one in honest), np.zeros(size))
    np.testing.assert_allclose(said, own - factor / liars * away, rtol=1e-9, atol=1e-9)
    undone = dissensus(torch.from_numpy(own), list(torch.from_numpy(honest)), liars, 1.0).numpy()
    everything = np.vstack([own[None], honest, np.tile(undone, (liars, 1))])
    np.testing.assert_allclose(everything.mean(axis=0), own, rtol=1e-9, atol=1e-9)


def test_changing_takes_turns_by_seed_and_round() -> None:
    changing = parse_attack("changing")
    turns = [changing.in_round(number, 3) for number in range(1, 101)]
    assert turns == [changing.in_round(number, 3) for number in range(1, 101)]
    assert {attack.name for attack in turns} == set(CHANGING)
    assert turns != [changing.in_round(number, 4) for number in range(1, 101)]
    assert all(turn == parse_attack(turn.name) for turn in turns)
    fixed = parse_attack("alie:2")
    assert all(fixed.in_round(number, 3) is fixed for number in range(1, 9))


def test_changing_says_what_the_attack_of_the_round_says() -> None:
    seed, changing = 3, parse_attack("changing")
    honest = [draw(number, 4, 5) for number in range(40)]
    means = [np.zeros(5), *[one.mean(axis=0) for one in honest]]
    speaking = Liars(changing, 2, seed)
    speaking.begin(torch.zeros(5, dtype=torch.float64))
    compared = set()
    for number, one in enumerate(honest, start=1):
        attack = changing.in_round(number, seed)
        said, _ = speaking.speak(speaking.look(torch.from_numpy(one)), number, lambda push: 2.0)
        mean = means[number]
        wanted = {
            "sign-flip": -mean,
            "alie": mean - 2.0 * one.std(axis=0),
            "free-rider": means[max(0, number - OLD_ROUNDS)],
        }.get(attack.name)
        if wanted is not None:
            assert said is not None
            np.testing.assert_allclose(said[0].numpy(), wanted, rtol=1e-9, atol=1e-9)
            compared.add(attack.name)
        assert (said is None) == (attack.name == "dissensus")
    assert len(compared) == 3


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPOKEN)
def test_a_lone_honest_peer_that_stands_still_gets_numbers(name: str, kind: torch.dtype) -> None:
    """No spread, no progress, or weights of zero: nothing to divide by."""
    for model in (np.zeros((1, 4)), np.ones((1, 4)), np.tile(draw(1, 4), (3, 1))):
        (first, _), (second, _) = listen(name, model[0], [model, model], kind=kind)
        assert np.isfinite(first).all()
        assert np.isfinite(second).all()
        if name not in ("gaussian", "sign-flip"):
            np.testing.assert_allclose(second, np.tile(model[0], (2, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in (*SPOKEN, "changing")])
def test_what_is_learned_or_depends_on_the_receiver_is_not_said_to_all(name: str) -> None:
    speaking = Liars(parse_attack(name), 2, 0)
    speaking.begin(torch.zeros(3))
    said, _ = speaking.speak(speaking.look(torch.ones(4, 3)), 1, lambda push: 1.0)
    assert said is None


# The search


def setting_of(rule: str, peers: int, liars: int, fan_out: int, byzantine: int, seed: int) -> Setting:
    defence = Defence(parse_rule(rule), fan_out, byzantine)
    return Setting(peers, liars, parse_attack("alie"), defence, TaskOptions(), seed=seed)


def naive_damage(setting: Setting, honest: Doubles, push: Doubles, number: int, factor: float) -> float:
    """How far all honest peers together end from the honest mean."""
    mean = honest.mean(axis=0)
    models = dict(zip(setting.honest, honest, strict=True))
    total = 0.0
    for receiver in setting.honest:
        pulled = [receiver, *setting.senders(number, receiver)]
        points = np.array([models.get(index, mean + factor * push) for index in pulled])
        shares = np.full(len(points), 1 / len(points))
        result = naive.apply(str(setting.defence.rule), points, setting.defence.byzantine, shares, 0)
        total += float(np.linalg.norm(result - mean))
    return total


@settings(max_examples=60)
@given(
    data=st.data(),
    seed=seeds,
    rule=st.sampled_from(["mean", "median", "trimmed_mean", "nnm+trimmed_mean"]),
    size=st.integers(4, 9),
)
def test_the_search_finds_the_factor_of_the_greatest_damage(
    data: st.DataObject, seed: int, rule: str, size: int
) -> None:
    """With one coordinate any sample of the coordinates is all of them."""
    liars = data.draw(st.integers(1, size - 2))
    fan_out = data.draw(st.integers(2, size - 1))
    byzantine = data.draw(st.integers(0, fan_out // 2))
    setting = setting_of(rule, size, liars, fan_out, byzantine, seed)
    honest, push = draw(seed, size - liars, 1), draw(seed + 1, 1)
    assume(abs(push[0]) > 1e-3)
    crowd = Crowd.of(torch.from_numpy(honest), torch.zeros(1, dtype=torch.float64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "SEARCH_RECEIVERS", size)
        found = simulation.search(setting, crowd, torch.from_numpy(push), 7)
    damages = {factor: naive_damage(setting, honest, push, 7, factor) for factor in SEARCHED}
    assert found in SEARCHED
    assert damages[found] >= max(damages.values()) * (1 - 1e-6) - 1e-9, damages


def test_the_search_is_the_same_every_time_and_looks_at_a_part() -> None:
    setting = setting_of("nnm+trimmed_mean", 12, 3, 6, 3, seed=1)
    honest = torch.from_numpy(draw(1, 9, simulation.SEARCH_COLUMNS + 1000)).float()
    crowd = Crowd.of(honest, torch.zeros(honest.shape[1]))
    seen: set[int] = set()

    def note(setting: Setting, rows: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        seen.update(len(row) for row in rows)
        return tried(setting, rows)

    tried = simulation._try
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "_try", note)
        found = {simulation.search(setting, crowd, -crowd.deviation, 1) for _ in range(2)}
    assert len(found) == 1
    assert seen == {simulation.SEARCH_COLUMNS}
