"""A trainer among liars: what it reckons with, what becomes of a poisoned model, and of too few models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import METADATA_KEY, Manifest, read_header
from torch import Tensor

from p2pfl_train import planner, weights
from p2pfl_train.aggregate import Contribution
from p2pfl_train.config import AggregationOptions, ExchangeOptions, RunOptions
from p2pfl_train.errors import TooFewModels, TrainError, UsageError
from p2pfl_train.exchange import Exchange
from p2pfl_train.learner import Learner, fresh_model
from p2pfl_train.liars import Draw, byzantine_of
from p2pfl_train.report import CycleRecord
from p2pfl_train.rules.rule import FEDAVG, ROBUST, parse_rule
from p2pfl_train.startup import load_initial, make_learner
from p2pfl_train.tasks import build_task
from p2pfl_train.tensors import digest_of, stored_tensors
from tests.train.command_line import Capture, fails
from tests.train.fake_daemon import FakeDaemon, Offer, peer_id
from tests.train.running import DIGITS, QUICK, lines, run

torch.set_num_threads(1)

TRIMMED = AggregationOptions(parse_rule("trimmed_mean"), byzantine=1)
BLOCKING = ExchangeOptions(blocking=True)
FAR = 100.0
"""By how much a poisoned model is off in each number."""

Lie = Callable[[Tensor], Tensor]


def shift(tensor: Tensor) -> Tensor:
    return tensor + FAR


def blow_up(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.finfo(tensor.dtype).max)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "own")


@pytest.fixture
def offer(published: StateDir, tmp_path: Path) -> Callable[..., Offer]:
    """Makes the offer of peer `number`: the published model with its numbers a little off, or poisoned."""
    tensors, _ = weights.load_tensors(published.model)
    manifest = read_header(published.model).manifest()

    def made(number: int, lie: Lie | None = None) -> Offer:
        generator = torch.Generator().manual_seed(number)
        changed = {
            name: lie(tensor) if lie else tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }
        path = tmp_path / f"offer-{number}.safetensors"
        said = Manifest(number, 100 * number, manifest.task, digest_of(changed))
        weights.save_tensors(path, changed, {METADATA_KEY: said.encode()})
        return peer_id(number), path

    return made


def tensors_of(path: Path) -> dict[str, Tensor]:
    return weights.load_tensors(path)[0]


def farthest(path: Path, other: Path) -> float:
    """The largest difference of two models in any number."""
    one, two = tensors_of(path), tensors_of(other)
    return max(float((one[name] - two[name]).abs().max()) for name in one)


# The options


def test_where_liars_are_expected_the_robust_rule_is_the_default() -> None:
    median = parse_rule("median")
    assert AggregationOptions.of(None, None, None, 0.05, 10).rule == FEDAVG
    assert AggregationOptions.of(None, 0, None, 0.05, 10).rule == ROBUST
    assert AggregationOptions.of(None, None, 0.1, 0.05, 10).rule == ROBUST
    assert AggregationOptions.of(median, None, 0.1, 0.05, 10).rule == median
    assert AggregationOptions.of(FEDAVG, None, None, 0.05, 10) == AggregationOptions(FEDAVG, rounds=10)


@pytest.mark.parametrize(
    ("options", "fan_out"),
    [
        (AggregationOptions(), 1),
        (AggregationOptions(parse_rule("median")), 1),
        (AggregationOptions(ROBUST, expected=0.0), 1),
        (AggregationOptions(ROBUST, expected=0.49), 1),
        (AggregationOptions(ROBUST, byzantine=2), 4),
        (AggregationOptions(parse_rule("krum"), byzantine=1), 4),
        (AggregationOptions(FEDAVG, byzantine=0), 1),
    ],
)
def test_options_that_can_work(options: AggregationOptions, fan_out: int) -> None:
    options.check(fan_out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (AggregationOptions(ROBUST, byzantine=1, expected=0.1), "do not go together"),
        (AggregationOptions(ROBUST, byzantine=-1), "--byzantine -1 must be from 0"),
        (AggregationOptions(ROBUST, expected=0.5), "--expect-byzantine 0.5 must be a share"),
        (AggregationOptions(ROBUST, expected=-0.1), "must be a share"),
        (AggregationOptions(ROBUST, expected=float("nan")), "must be a share"),
        (AggregationOptions(ROBUST, expected=0.1, risk=0.0), "--risk 0.0 must be above 0"),
        (AggregationOptions(ROBUST, expected=0.1, rounds=0), "--plan-rounds 0 must be from 1"),
        (AggregationOptions(FEDAVG, byzantine=1), "--aggregate fedavg withstands no liars"),
        (AggregationOptions(parse_rule("nnm+mean"), expected=0.1), "nnm\\+mean withstands no liars"),
        (AggregationOptions(parse_rule("krum")), "must know how many lie"),
        (AggregationOptions(ROBUST), "must know how many lie"),
    ],
)
def test_options_that_make_no_sense(options: AggregationOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        options.check(5)


@pytest.mark.parametrize(
    ("options", "fan_out"),
    [
        (AggregationOptions(ROBUST, byzantine=2), 3),
        (AggregationOptions(parse_rule("median"), byzantine=1), 1),
        (AggregationOptions(parse_rule("krum"), byzantine=1), 3),
        (AggregationOptions(parse_rule("krum"), expected=0.1), 1),
    ],
)
def test_a_rule_that_can_never_work_is_refused_at_the_start(
    options: AggregationOptions, fan_out: int
) -> None:
    with pytest.raises(TooFewModels, match=r"ask more peers \(--fan-out\)"):
        options.check(fan_out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--byzantine 3", "withstands 3 liars among at least 7 models"),
        ("--byzantine 1 --expect-byzantine 0.1", "do not go together"),
        ("--aggregate krum", "must know how many lie"),
        ("--aggregate mean --byzantine 1", "withstands no liars"),
        ("--aggregate best", "--aggregate 'best' must be one of"),
        ("--expect-byzantine 0.5", "must be a share from 0 to below 0.5"),
        ("--expect-byzantine 0.1 --risk 1", "--risk 1.0"),
        ("--expect-byzantine 0.1 --plan-rounds 0", "--plan-rounds 0"),
    ],
)
def test_a_wrong_option_is_one_line(capsys: Capture, state: StateDir, options: str, words: str) -> None:
    line = ["run", "--state", state.root, "--data", "digits", *options.split()]
    assert words in fails(capsys, 2, *line)
    assert not state.root.exists()


# f


def draw(others: int, drawn: int = 0, undecided: int = 0) -> Draw:
    return Draw(1 + others + undecided, others, drawn)


def test_a_given_number_is_taken_as_it_is() -> None:
    assert byzantine_of(TRIMMED, draw(1000), 5) == 1
    assert byzantine_of(replace(TRIMMED, byzantine=0), draw(1000), 5) == 0


def test_nobody_lies_unless_it_is_said() -> None:
    assert byzantine_of(AggregationOptions(), draw(1000), 5) == 0
    assert byzantine_of(AggregationOptions(ROBUST, expected=0.0), draw(1000), 5) == 0
    assert byzantine_of(AggregationOptions(ROBUST, expected=0.3), draw(0), 5) == 0


@pytest.mark.parametrize(("others", "fan_out"), [(9, 5), (29, 15), (99, 20), (9, 50), (9_999, 60)])
def test_a_share_is_planned_with_the_membership(others: int, fan_out: int) -> None:
    options = AggregationOptions(ROBUST, expected=0.1, rounds=200)
    peers = min(others + 1, planner.MAX_PEERS)
    network = planner.Network(peers, planner.expected_liars(peers, 0.1), 200)
    wanted = planner.plan(network, min(fan_out, peers - 1))
    assert wanted.safe
    assert byzantine_of(options, draw(others), fan_out) == wanted.effective > 0


@pytest.mark.parametrize(("others", "fan_out", "share"), [(1, 5, 0.1), (2, 5, 0.4), (99, 5, 0.1)])
def test_a_draw_in_which_liars_may_be_a_majority_is_refused(others: int, fan_out: int, share: float) -> None:
    with pytest.raises(TooFewModels, match="models may be liars'") as caught:
        byzantine_of(AggregationOptions(ROBUST, expected=share), draw(others), fan_out)
    assert "\n" not in str(caught.value)


def test_a_plan_is_made_once() -> None:
    options = AggregationOptions(ROBUST, expected=0.07, rounds=321)
    first = byzantine_of(options, draw(planner.MAX_PEERS), 64)
    before = planner.plan.cache_info()
    assert [byzantine_of(options, draw(planner.MAX_PEERS), 64) for _ in range(100)] == [first] * 100
    after = planner.plan.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 100)


# The loop


@pytest.mark.parametrize("lie", [shift, blow_up])
@pytest.mark.parametrize("rule", ["trimmed_mean", "nnm+trimmed_mean", "median"])
def test_a_poisoned_model_among_three_does_no_harm(
    state: StateDir, published: StateDir, offer: Callable[..., Offer], lie: Lie, rule: str
) -> None:
    offers = [offer(1), offer(2), offer(3, lie)]
    with FakeDaemon(state, lambda request: offers):
        said = run(state, exchange=BLOCKING, aggregation=replace(TRIMMED, rule=parse_rule(rule)))
    assert farthest(state.model, published.model) < 1
    cycles, finals = lines(state)
    assert [line["models"] for line in cycles + finals] == [3] * 4
    assert all((line["aggregate"], line["byzantine"]) == (rule, 1) for line in cycles + finals)
    assert all(line["too_few"] == line["refused"] == 0 for line in cycles + finals)
    assert f"initial weights: from 3 peers by {rule}, of which 1 may lie" in said
    parents = read_header(state.model).manifest().parents
    assert {parent.peer_id for parent in parents} == {peer_id(number) for number in (1, 2, 3)}


def test_the_same_poison_ruins_a_plain_average(
    state: StateDir, published: StateDir, offer: Callable[..., Offer]
) -> None:
    offers = [offer(1), offer(2), offer(3, shift)]
    with FakeDaemon(state, lambda request: offers):
        run(state, exchange=BLOCKING)
    assert farthest(state.model, published.model) > FAR / 10
    cycles, _ = lines(state)
    assert [(line["aggregate"], line["byzantine"]) for line in cycles] == [("fedavg", 0)] * 3


def test_too_few_models_are_left_out_and_training_goes_on(
    state: StateDir, offer: Callable[..., Offer]
) -> None:
    offers = [offer(1, shift)]
    with FakeDaemon(state, lambda request: offers):
        said = run(state, cycles=4, exchange=BLOCKING, aggregation=TRIMMED)
    cycles, finals = lines(state)
    assert [line["too_few"] for line in cycles + finals] == [1] * 5
    assert all(line["models"] == 0 and line["accuracy_averaged"] is None for line in cycles + finals)
    assert [line["version"] for line in cycles] == [1, 2, 3, 4]
    assert all(line["loss"] > 0 for line in cycles)
    assert said.count("not averaged: trimmed_mean withstands 1 liar among at least 3 models") == 1
    assert read_header(state.model).manifest().parents == ()
    assert max(float(tensor.abs().max()) for tensor in tensors_of(state.model).values()) < 10


def test_enough_models_are_aggregated_after_too_few(state: StateDir, offer: Callable[..., Offer]) -> None:
    offers = [offer(1), offer(2), offer(3)]
    with FakeDaemon(state, lambda request: offers[: 3 if request.round == 3 else 1]):
        said = run(state, cycles=4, exchange=BLOCKING, aggregation=TRIMMED)
    cycles, _ = lines(state)
    assert [line["round"] for line in cycles] == [2, 3, 4, 5]
    assert [(line["models"], line["too_few"]) for line in cycles] == [(0, 1), (3, 0), (0, 1), (0, 1)]
    assert "not averaged: " in said


def test_a_share_is_reckoned_anew_when_the_membership_changes(
    state: StateDir, offer: Callable[..., Offer]
) -> None:
    offers = [offer(number) for number in range(1, 7)]
    exchange = ExchangeOptions(fan_out=10, blocking=True)
    sizes = {1: 10, 2: 10, 3: 40, 4: 400, 5: 400, 6: 10}
    daemon = FakeDaemon(state, lambda request: offers)

    def growing(request: object) -> list[Offer]:
        daemon.candidates = sizes[len(daemon.requests)]
        return offers

    daemon.offers = growing
    with daemon:
        said = run(
            state,
            cycles=4,
            exchange=exchange,
            aggregation=AggregationOptions(parse_rule("trimmed_mean"), expected=0.05),
        )
    cycles, finals = lines(state)
    found = [(line["byzantine"], line["models"], line["too_few"]) for line in cycles + finals]
    # Of 401 peers 21 may lie: too many of 10 that are drawn from them, at some time by somebody.
    assert found == [(1, 6, 0), (3, 6, 0), (None, 0, 6), (None, 0, 6), (1, 6, 0)]
    assert said.count("not averaged: ") == 1
    assert "of 11 models may be liars' when 10 are pulled from 401 peers with 21 liars" in said


# The start


def started(daemon: FakeDaemon, aggregation: AggregationOptions) -> tuple[Learner, str]:
    """A learner as it is before its first cycle, and where its weights are from."""
    with daemon, Exchange(daemon.state, 1) as exchange:
        exchange.wait_for_boot()
        made = make_learner(daemon.state, build_task(DIGITS), None, QUICK)
        wanted = RunOptions(daemon.state.root, aggregation=aggregation)
        origin = load_initial(made, exchange, CycleRecord(), wanted, lambda: False)
    return made, origin


@pytest.mark.parametrize("lie", [shift, blow_up])
def test_a_newcomer_takes_what_the_rule_makes_of_several(
    state: StateDir, offer: Callable[..., Offer], lie: Lie
) -> None:
    offers = [offer(3, lie), offer(1), offer(2)]
    daemon = FakeDaemon(state, lambda request: offers)
    made, origin = started(daemon, TRIMMED)
    assert origin == "from 3 peers by trimmed_mean, of which 1 may lie"
    assert [request.fan_out for request in daemon.requests] == [ExchangeOptions().fan_out + 1]
    sent = [tensors_of(path) for _, path in offers]
    for name, tensor in made.tensors.items():
        middle = torch.stack([tensors[name] for tensors in sent]).median(dim=0).values
        torch.testing.assert_close(tensor, middle, rtol=1e-6, atol=1e-7)
    made.publish({})
    manifest = read_header(state.model).manifest()
    theirs = [(sender, read_header(path).manifest()) for sender, path in offers]
    assert [(one.peer_id, one.version, one.weights) for one in manifest.parents] == [
        (sender, given.version, given.weights) for sender, given in theirs
    ]
    assert manifest.previous is None


@pytest.mark.parametrize(
    ("aggregation", "count", "words"),
    [
        (TRIMMED, 1, "trimmed_mean withstands 1 liar among at least 3 models"),
        (TRIMMED, 2, "and there are 2"),
        (AggregationOptions(ROBUST, expected=0.4), 2, "2 of 3 models may be liars'"),
        (TRIMMED, 0, "no peer of this task has published"),
    ],
)
def test_a_newcomer_takes_the_seed_where_too_few_offer(
    state: StateDir,
    offer: Callable[..., Offer],
    aggregation: AggregationOptions,
    count: int,
    words: str,
) -> None:
    offers = [offer(number, shift) for number in range(1, count + 1)]
    made, origin = started(FakeDaemon(state, lambda request: offers), aggregation)
    assert origin.startswith("from the task's seed (")
    assert words in origin
    assert digest_of(made.tensors) == digest_of(stored_tensors(fresh_model(made.task)))
    assert made.parents == []


def test_without_a_robust_rule_one_stranger_is_enough(state: StateDir, offer: Callable[..., Offer]) -> None:
    offers = [offer(1), offer(2)]
    daemon = FakeDaemon(state, lambda request: offers[: request.fan_out])
    made, origin = started(daemon, AggregationOptions())
    assert origin == f"from peer {peer_id(1)[:16]}, its version 1"
    assert digest_of(made.tensors) == read_header(offers[0][1]).manifest().weights


def test_who_diverges_at_once_goes_back_to_the_seed(state: StateDir, offer: Callable[..., Offer]) -> None:
    offers = [offer(1), offer(2), offer(3)]
    made, _ = started(FakeDaemon(state, lambda request: offers), TRIMMED)
    seed = digest_of(stored_tensors(fresh_model(made.task)))
    assert digest_of(made.tensors) != seed
    with torch.no_grad():
        for tensor in made.tensors.values():
            tensor.zero_()
    made.recover()  # what a NaN in the first cycle does
    assert digest_of(made.tensors) == seed


def test_a_refused_average_changes_nothing(state: StateDir, offer: Callable[..., Offer]) -> None:
    offers = [offer(1), offer(2), offer(3)]
    made, _ = started(FakeDaemon(state, lambda request: offers), TRIMMED)
    before, parents = digest_of(made.tensors), list(made.parents)
    file = weights.TensorFile.open(offers[0][1])
    with pytest.raises(TrainError, match="there are 2"):
        made.average([Contribution(file, 1)], parse_rule("median"), 1)
    assert digest_of(made.tensors) == before
    assert made.parents == parents
