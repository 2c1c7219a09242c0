"""Some of the peers of a simulation, in one process: they train, pull, aggregate and are measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from p2pfl_train.aggregate import shares
from p2pfl_train.batches import fixed_part, size_of
from p2pfl_train.errors import UsageError
from p2pfl_train.evaluate import evaluate
from p2pfl_train.redteam.attacks import dissensus
from p2pfl_train.redteam.options import Setting
from p2pfl_train.redteam.peer import Peer, flipped, plausible
from p2pfl_train.rules.blocks import Cook, columns_of
from p2pfl_train.rules.columns import Floats, Workspace
from p2pfl_train.rules.definitions import Matrix, Recipe, Votes
from p2pfl_train.task import Task
from p2pfl_train.tasks import build_tasks

T = TypeVar("T")
R = TypeVar("R")

CLAIMED_SAMPLES = 1_000_000
"""What a liar says that it has."""


class Crew:
    """The peers of `members`, by their indices in the setting; each process of a simulation has one."""

    def __init__(self, setting: Setting, members: Sequence[int]) -> None:
        """Raises `DataError`, `ModelError`, `UsageError`."""
        torch.set_num_threads(
            1
        )  # peers are spread over threads: torch's own wait for each other at each step
        self._setting = setting
        self._liars = frozenset(setting.liars)
        self.members = tuple(members)
        tasks = build_tasks(setting.task, setting.peers)
        if not tasks[0].spec.classes or not size_of(tasks[0].evaluation):
            raise UsageError("a simulation measures accuracy: the task must have classes and evaluation data")
        self._samples = [size_of(task.train) for task in tasks]
        if not all(self._samples):
            raise UsageError("each simulated peer needs training data")
        if setting.attack.name != "none":  # as heavy as a receiver lets them be
            self._samples = [
                CLAIMED_SAMPLES if index in self._liars else samples
                for index, samples in enumerate(self._samples)
            ]
        self._peers: dict[int, Peer] = {}
        for index in self.members:
            self._peers[index] = self._peer(tasks[index], index)
        some = next(iter(self._peers.values()))
        self._draws_at_random = some.draws_at_random(setting.training)
        self.variances = some.variances()
        self.parameters = some.parameters
        self._part = fixed_part(tasks[0].evaluation, setting.evaluation.examples)
        self._everything = tasks[0].evaluation

    def _peer(self, task: Task, index: int) -> Peer:
        setting = self._setting
        if index in self._liars and setting.attack.kind.flips_labels:
            task = flipped(task)
        # All start from the same weights; one copy is enough.
        initial = next((peer.initial for peer in self._peers.values()), None)
        return Peer.of(task, setting.training, f"{setting.seed}/{index + 1}/{setting.peers}", initial)

    @property
    def initial(self) -> Tensor:
        """The weights that all start from, (parameters,)."""
        return next(iter(self._peers.values())).weights()

    def train(self, number: int) -> tuple[Tensor, list[float]]:
        """Local steps of all members: their weights, (members, parameters), and losses, NaN where undone."""
        first = self.initial
        rows = torch.empty(len(self.members), len(first), dtype=first.dtype)
        steps = self._setting.training.local_steps

        def train(place: int) -> float:
            index = self.members[place]
            if self._draws_at_random:
                torch.manual_seed(random.Random(f"{self._setting.seed}/{number}/{index}").getrandbits(60))
            return self._peers[index].train(steps, rows[place])

        # torch has one random state for all threads.
        threads = 1 if self._draws_at_random else self._setting.threads
        return rows, _spread(train, range(len(self.members)), threads)

    def settle(self, published: Tensor, distances: Matrix | None, number: int) -> None:
        """Each member pulls, and goes on from what its rule makes of it.

        `published`: what every peer says, (peers, numbers); squared `distances` between their parameters,
        for a rule that asks for them.
        """
        pulls = [self._pull(index, published, distances, number) for index in self.members]
        results = np.empty((len(pulls), published.shape[1]), published.numpy().dtype)
        threads = self._setting.threads
        recipes = [pull.recipe for pull in pulls]
        ends = np.linspace(0, self.parameters, threads + 1).astype(int)
        _spread(lambda part: _aggregate(pulls, recipes, results, *part), list(pairwise(ends)), threads)
        for_buffers = [pull.for_buffers for pull in pulls]
        _aggregate(pulls, for_buffers, results, self.parameters, published.shape[1])
        for index, result in zip(self.members, results, strict=True):
            self._peers[index].load(torch.from_numpy(result))

    def _pull(self, receiver: int, published: Tensor, distances: Matrix | None, number: int) -> _Pull:
        setting = self._setting
        senders = setting.senders(number, receiver)
        order = [receiver, *senders]
        rows = [published[index] for index in order]
        own, others = shares(self._samples[receiver], [self._samples[index] for index in senders])
        seen = None if distances is None else distances[np.ix_(order, order)]
        places = [place for place, index in enumerate(order) if index in self._liars]
        attack = setting.attack.in_round(number, setting.seed)
        if attack.name == "dissensus" and places and receiver not in self._liars:
            honest = [published[index] for index in senders if index not in self._liars]
            lie = dissensus(rows[0], honest, len(places), attack.factor or 1.0)
            said = plausible(lie, self.variances)
            rows = [said if place in places else row for place, row in enumerate(rows)]
            learned = [row[: self.parameters] for row in rows]
            seen = None if seen is None else _with_liar(seen, learned, said[: self.parameters], places)
        votes = Votes(np.array([own, *others]), setting.defence.byzantine, centre=0, distances=seen)
        rule = setting.defence.rule
        recipe = rule.recipe(votes)
        return _Pull([row.numpy() for row in rows], recipe, rule.for_buffers(votes, recipe))

    def evaluate(self, indices: Sequence[int], *, everything: bool) -> list[float]:
        """Accuracy, from 0 to 1, of those of `indices` that are members, on the fixed part or all."""
        part = self._everything if everything else self._part

        def measure(peer: Peer) -> float:
            return evaluate(peer.model, peer.task, part).accuracy or 0.0

        mine = [self._peers[index] for index in indices if index in self._peers]
        return _spread(measure, mine, self._setting.threads)

    def close(self) -> None:
        """Nothing is held but memory."""


def _spread(work: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """`work` on each item, in so many threads; the results in order."""
    if threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


@dataclass(frozen=True)
class _Pull:
    """What one peer aggregates, and how."""

    rows: list[Floats]
    """Of each vote all parameters, the own first."""
    recipe: Recipe
    for_buffers: Recipe


def _with_liar(distances: Matrix, rows: Sequence[Tensor], said: Tensor, places: Sequence[int]) -> Matrix:
    """The distances after the votes at `places` said something else."""
    away = np.array([float(torch.linalg.vector_norm(row - said)) ** 2 for row in rows])
    result = distances.copy()
    result[places, :], result[:, places] = away, away[:, None]
    return result


def _aggregate(
    pulls: Sequence[_Pull], recipes: Sequence[Recipe], results: Floats, start: int, end: int
) -> None:
    """Fills the columns from `start` to `end` of `results`; block by block, all peers on one block."""
    if not pulls or start == end:
        return
    workspace = Workspace()
    cooks = [Cook(recipe, results.dtype, workspace) for recipe in recipes]
    largest = np.finfo(results.dtype).max
    columns = columns_of(len(pulls[0].rows), results.itemsize)
    for first in range(start, end, columns):
        last = min(first + columns, end)
        for pull, cook, result in zip(pulls, cooks, results, strict=True):
            made = cook.apply([row[first:last] for row in pull.rows])
            np.clip(made, -largest, largest, out=result[first:last])
