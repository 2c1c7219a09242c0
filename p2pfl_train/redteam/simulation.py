"""The rounds of a simulation: all train, liars look at it and speak, all pull, some rounds are measured.

Everything random comes from the setting's seed, by round and peer, and not by who computes it: an
engine may spread the peers over processes and machines.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from p2pfl_train.redteam.attacks import SEARCHED, Crowd, Liars
from p2pfl_train.redteam.options import Setting
from p2pfl_train.redteam.peer import plausible
from p2pfl_train.rules.blocks import Cook, Distances, columns_of
from p2pfl_train.rules.definitions import Matrix, Votes

SEARCH_COLUMNS = 16_384
"""Coordinates on which liars try factors, drawn at random: enough to tell them apart."""
SEARCH_RECEIVERS = 3


class Engine(Protocol):
    """Who runs the peers; `Crew` in this process, `RayEngine` on a cluster."""

    @property
    def members(self) -> tuple[int, ...]:
        """Who trains, in the order of the rows."""

    @property
    def initial(self) -> Tensor:
        """See `Crew`, as the rest."""

    variances: list[slice]
    parameters: int

    def train(self, number: int) -> tuple[Tensor, list[float]]: ...

    def settle(self, published: Tensor, distances: Matrix | None, number: int) -> None: ...

    def evaluate(self, indices: Sequence[int], *, everything: bool) -> list[float]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Measured:
    """One measured round."""

    round: int
    loss: float | None
    """Mean training loss of the honest; None when one was no number."""
    accuracies: tuple[float, ...]
    """Of each honest peer, after it aggregated."""
    factor: float | None
    """Of the attack in this round."""
    seconds: float
    """Since the start, measuring included."""
    final: bool = False
    """On all evaluation data."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def worst(self) -> float:
        return min(self.accuracies)


@dataclass(frozen=True)
class Outcome:
    """A whole simulation."""

    setting: Setting
    measured: tuple[Measured, ...]
    seconds: float
    """For the rounds, without loading and measuring."""

    @property
    def final(self) -> Measured:
        return self.measured[-1]

    @property
    def peer_rounds_per_second(self) -> float:
        return self.setting.peers * self.final.round / self.seconds


def members(setting: Setting) -> tuple[int, ...]:
    """The peers that train: the honest, and liars whose lie is in what they learn."""
    return tuple(range(setting.peers)) if setting.attack.kind.trains else setting.honest


def simulate(
    setting: Setting,
    engine: Engine,
    tell: Callable[[Measured], None] = lambda measured: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Runs all rounds, the last one measured on everything, or until `stop`, which is measured quickly."""
    started = time.perf_counter()
    liars = Liars(setting.attack, setting.byzantine, setting.seed)
    liars.begin(engine.initial)
    measured: list[Measured] = []
    spent = 0.0
    for number in range(1, setting.rounds + 1):
        before = time.perf_counter()
        loss, factor = _round(setting, engine, liars, number)
        spent += time.perf_counter() - before
        last, stopped = number == setting.rounds, stop()
        if last or stopped or number % (setting.evaluation.every_cycles or setting.rounds) == 0:
            accuracies = engine.evaluate(setting.honest, everything=last)
            seconds = time.perf_counter() - started
            measured.append(Measured(number, loss, tuple(accuracies), factor, seconds, last))
            tell(measured[-1])
        if stopped:
            break
    return Outcome(setting, tuple(measured), spent)


def _round(setting: Setting, engine: Engine, liars: Liars, number: int) -> tuple[float | None, float | None]:
    """The mean loss of the honest, and the factor of the attack."""
    rows, losses = engine.train(number)
    published = torch.empty(setting.peers, rows.shape[1], dtype=rows.dtype)
    published[list(engine.members)] = rows
    honest, factor = list(setting.honest), None
    if setting.byzantine and not setting.attack.kind.trains:
        crowd = liars.look(published[honest])
        said, factor = liars.speak(crowd, number, lambda push: search(setting, crowd, push, number))
        # What depends on the receiver is said to each: until then a liar says the mean.
        published[list(setting.liars)] = plausible(crowd.mean if said is None else said, engine.variances)
    learned = published[:, : engine.parameters]
    distances = distances_of(learned, honest) if setting.defence.rule.needs_distances else None
    engine.settle(published, distances, number)
    told = [loss for index, loss in zip(engine.members, losses, strict=True) if index in set(honest)]
    loss = float(np.mean(told))
    return (loss if np.isfinite(loss) else None), factor


def distances_of(published: Tensor, honest: Sequence[int]) -> Matrix:
    """Squared distances between all rows; `honest` ones first, for the first is what others are seen from."""
    order = [*honest, *sorted(set(range(len(published))) - set(honest))]
    rows = published.numpy()
    distances = Distances(len(order))
    columns = columns_of(len(order), rows.itemsize)
    for start in range(0, rows.shape[1], columns):
        distances.add([rows[index, start : start + columns] for index in order])
    back = np.argsort(order)
    return distances.squared()[np.ix_(back, back)]


def search(setting: Setting, crowd: Crowd, push: Tensor, number: int) -> float:
    """The factor of `push` that takes some honest peers farthest from the honest mean.

    Tried with the rule and the draws of this round, on a sample of the coordinates.
    """
    rng = random.Random(f"{setting.seed}/search/{number}")
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    size = crowd.honest.shape[1]
    columns = torch.randint(size, (min(size, SEARCH_COLUMNS),), generator=generator)
    honest = list(setting.honest)
    receivers = rng.sample(honest, min(len(honest), SEARCH_RECEIVERS))
    sampled = dict(zip(honest, crowd.honest[:, columns], strict=True))
    mean, push = crowd.mean[columns], push[columns]

    def damage(factor: float) -> float:
        said = torch.add(mean, push, alpha=factor)
        total = 0.0
        for receiver in receivers:
            order = [receiver, *setting.senders(number, receiver)]
            rows = [sampled.get(index, said).numpy() for index in order]
            result = torch.from_numpy(_try(setting, rows))
            total += float(torch.linalg.vector_norm(result - mean))
        return total

    return max(SEARCHED, key=damage)


def _try(setting: Setting, rows: Sequence[np.ndarray]) -> np.ndarray:
    rule, count = setting.defence.rule, len(rows)
    distances = None
    if rule.needs_distances:
        between = Distances(count)
        between.add(rows)
        distances = between.squared()
    votes = Votes(np.full(count, 1 / count), setting.defence.byzantine, 0, distances)
    return Cook(rule.recipe(votes), rows[0].dtype).apply(rows)
