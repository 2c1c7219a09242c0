"""How many of the models that came are taken for liars': who failed was drawn too, who was refused is out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import METADATA_KEY, Manifest, read_header
from p2pfl_state.markers import AggregateAnswer, FailedFetch, FetchedModel, Refusal

from p2pfl_train import planner, weights
from p2pfl_train.aggregate import Checked
from p2pfl_train.config import AggregationOptions, ExchangeOptions
from p2pfl_train.errors import TooFewModels
from p2pfl_train.exchange import Outcome
from p2pfl_train.liars import Jury, byzantine_among
from p2pfl_train.rules.rule import ROBUST, parse_rule
from p2pfl_train.tensors import digest_of
from tests.train.fake_daemon import FakeDaemon, Offer, peer_id
from tests.train.running import lines, run

SHARE = AggregationOptions(ROBUST, expected=0.1, rounds=200)
FIXED = AggregationOptions(ROBUST, byzantine=3)


def outcome(models: int, failed: int = 0, refused: int = 0, candidates: int = 0, **counts: Any) -> Outcome:
    """A round in which so many models came, of which so many were refused."""
    manifest = Manifest(1, 1, "ab" * 32, "cd" * 32)
    answer = AggregateAnswer(
        instance="life",
        round=1,
        models=tuple(FetchedModel(peer_id(i), manifest, "ef" * 32, 1, 0.1, False) for i in range(models)),
        failed=tuple(FailedFetch(peer_id(1000 + i), "it was silent") for i in range(failed)),
        candidates=candidates,
        peers=candidates,
        seconds=0.1,
        **counts,
    )
    refusals = tuple(Refusal(peer_id(i), "cd" * 32, "NaN") for i in range(refused))
    return Outcome(1, answer, Checked((), refusals), None)


def test_a_round_of_all_that_was_asked_has_what_the_plan_says() -> None:
    assert byzantine_among(SHARE, outcome(15, candidates=99), 15) == 7
    assert byzantine_among(SHARE, outcome(20, candidates=99), 20) == 8


def test_who_was_refused_is_one_of_the_liars() -> None:
    assert byzantine_among(SHARE, outcome(15, refused=2, candidates=99), 15) == 5
    assert byzantine_among(FIXED, outcome(15, refused=2), 15) == 1
    assert byzantine_among(FIXED, outcome(15, refused=9), 15) == 0


def test_who_failed_was_perhaps_honest() -> None:
    """Fifteen came, ten failed and were replaced: 25 were drawn, of which nine may lie."""
    assert byzantine_among(SHARE, outcome(15, failed=10, candidates=99), 15) == 9


def test_fewer_models_than_asked_do_not_make_fewer_liars() -> None:
    assert byzantine_among(SHARE, outcome(8, candidates=99), 15) == 7


def test_who_was_overtaken_was_drawn_too() -> None:
    assert byzantine_among(SHARE, outcome(15, candidates=99, drawn=25), 15) == 9


def test_the_share_is_of_all_that_may_be_of_the_task() -> None:
    """Three have published, and 97 have not yet: all three may be liars."""
    few = outcome(3, candidates=3, drawn=3, drawable=3, undecided=96)
    with pytest.raises(TooFewModels, match="3 of 4 models may be liars'"):
        byzantine_among(SHARE, few, 15)
    assert byzantine_among(SHARE, outcome(3, candidates=3, drawn=3, drawable=3, undecided=0), 15) == 1


def test_who_is_not_in_the_draw_makes_those_in_it_no_safer() -> None:
    """Of 100 peers ten may lie, and all ten may be among the 25 of which as many were drawn as asked for."""
    assert byzantine_among(SHARE, outcome(10, candidates=319, drawn=10, drawable=25, undecided=0), 10) == 3
    with pytest.raises(TooFewModels):
        byzantine_among(SHARE, outcome(10, candidates=319, drawn=10, drawable=25, undecided=74), 10)


def test_liars_that_fail_are_no_veto_for_long() -> None:
    """A hundred peers, twenty liars that never answer: the next rounds ask for more."""
    options = AggregationOptions(ROBUST, expected=0.2)
    jury = Jury(options, 30, lambda text: None)
    assert jury.ask(own_vote=True) == 30
    jury._ask_more(outcome(30, failed=8, candidates=99, drawn=38, drawable=99, undecided=0))
    asked = jury.ask(own_vote=True)
    assert asked > 30
    f = byzantine_among(options, outcome(asked, failed=8, candidates=99, drawn=asked + 8), asked)
    assert asked + 1 >= ROBUST.least_votes(f)


def test_who_has_no_vote_asks_for_one_more() -> None:
    assert Jury(SHARE, 15, lambda text: None).ask(own_vote=False) == 16
    assert Jury(AggregationOptions(), 15, lambda text: None).ask(own_vote=False) == 15


@given(models=st.integers(1, 30), failed=st.integers(0, 30), candidates=st.integers(1, 200))
def test_it_is_the_plan_of_all_that_were_drawn(models: int, failed: int, candidates: int) -> None:
    drawn = models + failed
    peers = max(candidates, drawn) + 1
    network = planner.Network(peers, planner.expected_liars(peers, 0.1), 200)
    wanted = planner.plan(network, min(max(drawn, 15), peers - 1))
    round_ = outcome(models, failed=failed, candidates=candidates)
    if wanted.safe:
        assert byzantine_among(SHARE, round_, 15) == wanted.effective
    else:
        with pytest.raises(TooFewModels):
            byzantine_among(SHARE, round_, 15)


@pytest.fixture
def offer(published: StateDir, tmp_path: Path) -> Callable[[int, float], Offer]:
    """Makes the offer of peer `number`: the published model with a number added to all of its own."""
    tensors, _ = weights.load_tensors(published.model)
    task = read_header(published.model).manifest().task

    def made(number: int, added: float = 0.0) -> Offer:
        changed = {name: tensor + added for name, tensor in tensors.items()}
        path = tmp_path / f"offer-{number}.safetensors"
        said = Manifest(number, 100, task, digest_of(changed))
        weights.save_tensors(path, changed, {METADATA_KEY: said.encode()})
        return peer_id(number), path

    return made


def test_liars_cannot_veto_a_round_by_sending_what_is_refused(
    tmp_path: Path, offer: Callable[..., Offer]
) -> None:
    """One honest model and the own one outvote the liar whose model was thrown out."""
    offers = [offer(1), offer(2, torch.nan)]
    state = StateDir(tmp_path / "own")
    options = AggregationOptions(parse_rule("trimmed_mean"), byzantine=1)
    with FakeDaemon(state, lambda request: offers):
        run(state, exchange=ExchangeOptions(blocking=True), aggregation=options)
    cycles, _ = lines(state)
    found = [(line["models"], line["refused"], line["byzantine"], line["too_few"]) for line in cycles]
    assert found == [(1, 2, 0, 0), (1, 1, 0, 0), (1, 1, 0, 0)]  # the first also has the round of the start
