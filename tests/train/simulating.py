"""Simulations for tests: small, on the digits, and engines that listen or are two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from p2pfl_state.layout import StateDir
from torch import Tensor

from p2pfl_train.config import EvaluationOptions, OptimiserOptions, TrainingOptions
from p2pfl_train.datasets.examples import Examples
from p2pfl_train.learner import Learner
from p2pfl_train.redteam.attacks import parse_attack
from p2pfl_train.redteam.crew import Crew
from p2pfl_train.redteam.options import Defence, Setting
from p2pfl_train.redteam.simulation import Engine, Outcome, members, simulate
from p2pfl_train.rules.definitions import Matrix
from p2pfl_train.rules.rule import parse_rule
from p2pfl_train.startup import make_learner
from p2pfl_train.tasks import TaskOptions, build_task

torch.set_num_threads(1)

SMALL = TaskOptions(model="mlp", model_arguments={"hidden": 16}, partition="dirichlet:1.0")
_numbers = itertools.count()


def next_number() -> int:
    """Another with each call: modules of one name would be one module."""
    return next(_numbers)


def make(attack: str = "none", rule: str = "nnm+trimmed_mean", lr: float = 0.1, **changes: Any) -> Setting:
    """Eight peers of whom two lie; each pulls five."""
    setting = Setting(
        peers=8,
        byzantine=2,
        attack=parse_attack(attack),
        defence=Defence(parse_rule(rule), fan_out=5, byzantine=2),
        task=SMALL,
        training=TrainingOptions(1, None, 25, OptimiserOptions("sgd", lr)),
        rounds=5,
        evaluation=EvaluationOptions(2, examples=100),
    )
    return replace(setting, **changes)


class Listening(Crew):
    """Keeps what was published in each round."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, members(setting))
        self.heard: list[Tensor] = []

    def settle(self, published: Tensor, distances: Matrix | None, number: int) -> None:
        self.heard.append(published.clone())
        super().settle(published, distances, number)


class Halves:
    """Two crews as one engine: what two workers are, without a cluster."""

    def __init__(self, setting: Setting) -> None:
        everyone = members(setting)
        self._crews = [Crew(setting, everyone[0::2]), Crew(setting, everyone[1::2])]
        self.variances = self._crews[0].variances
        self.parameters = self._crews[0].parameters

    @property
    def members(self) -> tuple[int, ...]:
        return self._crews[0].members + self._crews[1].members

    @property
    def initial(self) -> Tensor:
        return self._crews[0].initial

    def train(self, number: int) -> tuple[Tensor, list[float]]:
        (rows, losses), (more, others) = (crew.train(number) for crew in self._crews)
        return torch.cat([rows, more]), losses + others

    def settle(self, published: Tensor, distances: Matrix | None, number: int) -> None:
        for crew in self._crews:
            crew.settle(published, distances, number)

    def evaluate(self, indices: Sequence[int], *, everything: bool) -> list[float]:
        found = {
            index: crew.evaluate([index], everything=everything)[0]
            for crew in self._crews
            for index in crew.members
        }
        return [found[index] for index in indices]

    def close(self) -> None:
        """Nothing is held."""


def run(setting: Setting) -> Outcome:
    setting.check()
    return simulate(setting, Crew(setting, members(setting)))


def weights_after(setting: Setting, engine: Engine) -> dict[int, Tensor]:
    """Of each member, after all rounds and one more of training."""
    simulate(setting, engine)
    rows, _ = engine.train(setting.rounds + 1)
    return dict(zip(engine.members, rows.clone(), strict=True))


def accuracies(outcome: Outcome) -> list[tuple[float, ...]]:
    return [measured.accuracies for measured in outcome.measured]


def row_of(learner: Learner) -> Tensor:
    return torch.cat([t.reshape(-1) for t in learner.tensors.values() if t.is_floating_point()])


def trainer_of(setting: Setting, index: int, folder: Path) -> Learner:
    """The trainer of one peer, as `p2pfl-train run` makes it."""
    shard = f"{index + 1}/{setting.peers}"
    training = replace(setting.training, sampling_seed=f"{setting.seed}/{shard}")
    state = StateDir(folder / str(index))
    state.root.mkdir()
    return make_learner(state, build_task(replace(setting.task, shard=shard)), None, training)


def build_shard(setting: Setting, index: int) -> Examples:
    train = build_task(replace(setting.task, shard=f"{index + 1}/{setting.peers}")).train
    assert isinstance(train, Examples)
    return train
