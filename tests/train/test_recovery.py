"""What a NaN undoes, and what cannot be learned from, in the running loop."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import read_header
from rich.console import Console
from torch import Tensor, nn

from p2pfl_train import learner, loop, weights
from p2pfl_train.config import (
    EvaluationOptions,
    ExchangeOptions,
    OptimiserOptions,
    TrainingOptions,
)
from p2pfl_train.errors import ModelError, WeightsRefused
from p2pfl_train.exchange import Exchange
from p2pfl_train.learner import Learner
from p2pfl_train.report import CycleRecord, Report
from p2pfl_train.startup import make_learner
from p2pfl_train.task import Task
from p2pfl_train.tasks import build_task
from p2pfl_train.tensors import stored_tensors
from tests.train.fake_daemon import FakeDaemon, peer_id
from tests.train.running import DIGITS, QUICK, lines, options, run

torch.set_num_threads(1)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "own")


def test_a_loss_that_is_never_a_number_ends_with_a_clear_error(state: StateDir) -> None:
    with FakeDaemon(state):
        run(state, cycles=1)
        good = state.model.read_bytes()
        wild = TrainingOptions(local_steps=20, optimiser=OptimiserOptions(learning_rate=1e9))
        with pytest.raises(WeightsRefused, match="lower --lr"):
            run(state, cycles=9, training=wild)
        assert state.model.read_bytes() == good


class Stumbling:
    """A loss that is NaN in the steps that it is told."""

    def __init__(self, bad_steps: set[int]) -> None:
        self.step = 0
        self.bad_steps = bad_steps

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        self.step += 1
        loss = nn.functional.cross_entropy(output, targets)
        return loss * math.nan if self.step in self.bad_steps else loss


def run_task(state: StateDir, task: Task, cycles: int) -> tuple[Learner, str]:
    """The loop on a task that is made here."""
    said = io.StringIO()
    chosen = options(state, cycles, evaluation=EvaluationOptions(every_cycles=10**6, final=False))
    with FakeDaemon(state), Exchange(state, 1) as own_exchange:
        own_exchange.wait_for_boot()
        with Report(state.metrics, Console(file=said, width=200), "own") as report:
            made = make_learner(state, task, None, QUICK)
            loop.Loop(chosen, made, own_exchange, report, lambda: False).run(CycleRecord())
    return made, said.getvalue()


def test_after_a_nan_training_goes_on_from_the_published_weights(state: StateDir) -> None:
    # two steps a cycle: cycles 3 and 5 stumble, never three in a row
    task = replace(build_task(DIGITS), loss=Stumbling({5, 8}))
    made, said = run_task(state, task, cycles=6)
    cycles, _ = lines(state)
    assert [line["loss"] is None for line in cycles] == [False, False, True, False, True, False]
    assert [line["version"] for line in cycles] == [1, 2, 2, 3, 3, 4]
    assert said.count("going back to the last good model") == 2
    assert read_header(state.model).manifest().version == 4
    assert weights.load_published(state.model, made.model).version == 4


def test_a_nan_in_the_first_cycle_starts_again_from_the_seed(state: StateDir) -> None:
    task = replace(build_task(DIGITS), loss=Stumbling({1, 2}))
    run_task(state, task, cycles=3)
    assert [line["version"] for line in lines(state)[0]] == [0, 0, 1]


def test_a_model_that_cannot_train_is_a_clear_error(state: StateDir) -> None:
    def broken(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets[:-1])

    with pytest.raises(ModelError, match="cannot train"):
        run_task(state, replace(build_task(DIGITS), loss=broken), cycles=1)


def test_a_model_that_makes_training_diverge_costs_cycles_and_not_the_run(
    state: StateDir, published: StateDir, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.safetensors"
    made = learner.fresh_model(build_task(DIGITS))
    with torch.no_grad():
        for tensor in stored_tensors(made).values():
            tensor.fill_(1e30)
    weights.save_model(huge, made, read_header(published.model).manifest())
    with FakeDaemon(state) as daemon:
        run(state, cycles=1)
        daemon.offers = lambda request: [(peer_id(1), huge)]
        said = run(state, cycles=8, exchange=ExchangeOptions(blocking=True))
    cycles, _ = lines(state)
    assert said.count("going back to the last good model") >= 3
    assert len(cycles) == 1 + 8
    diverged = [line["loss"] is None for line in cycles]
    assert not any(first and second for first, second in itertools.pairwise(diverged))
    assert not any(line["models"] for line, bad in zip(cycles, diverged, strict=True) if bad)


def test_poison_that_was_published_ends_no_trainer(state: StateDir, published: StateDir) -> None:
    """Three cycles in a row are lost, and what they go back to is no better: it begins anew, also in a later
    life without the liar."""
    task = replace(build_task(DIGITS), loss=Stumbling({1, 2, 3}))
    with FakeDaemon(state) as daemon:
        daemon.offers = lambda request: [(peer_id(1), published.model)]
        run(state, cycles=2, exchange=ExchangeOptions(blocking=True))
    assert read_header(state.model).manifest().parents
    made, said = run_task(state, task, cycles=5)
    assert said.count("beginning anew from the seed") == 1
    losses = [line["loss"] for line in lines(state)[0]]
    assert [loss is None for loss in losses] == [False, False, True, True, True, False, False]
    assert made.published is not None


class InPlace(torch.autograd.Function):
    """Its backward fails, as that of an in-place operation does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("modified by an inplace operation")


def no_backward(output: Tensor, targets: Tensor) -> Tensor:
    applied: Tensor = InPlace.apply(nn.functional.cross_entropy(output, targets))
    return applied


def no_scalar(output: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, targets, reduction="none")


@pytest.mark.parametrize("loss", [no_backward, no_scalar])
def test_a_loss_that_cannot_be_learned_from_is_a_clear_error(
    state: StateDir, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    with pytest.raises(ModelError, match="cannot train"):
        run_task(state, replace(build_task(DIGITS), loss=loss), cycles=1)


def test_a_model_that_cannot_be_built_is_a_clear_error(state: StateDir) -> None:
    def broken() -> nn.Module:
        raise KeyError("width")

    with pytest.raises(ModelError, match="cannot be built: KeyError: 'width'"):
        run_task(state, replace(build_task(DIGITS), build_model=broken), cycles=1)
