"""Who holds what: a pure function of all labels and a seed, the same in every process.

Peers never talk about their shards. Each computes all of them from the same labels and the same seed
and takes its own, so that the shards of different machines fit together. Randomness is numpy's
`RandomState`, whose streams are frozen over versions (NEP 19), unlike those of newer generators.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from p2pfl_train.datasets.examples import Indices
from p2pfl_train.errors import DataError, UsageError

PAPER_SHARE = 0.7
"""Of the labels, a peer holds 7 of 10 in the paper; for other numbers of classes the same share."""
MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard(1, 1)
"""The shard of a peer that brings its own data: everything."""


@dataclass(frozen=True)
class Partition:
    """How the training examples are spread: `paper`, `iid` or `dirichlet` with its concentration."""

    kind: str = "paper"
    alpha: float = 0.0
    """Concentration of `dirichlet` for each class: 0.1 is one or two classes a peer, 10 nearly even."""
    labels_per_peer: int | None = None
    """For `paper`; by default 7 of 10, rounded for other numbers of classes."""


def parse_shard(text: str) -> Shard:
    """The shard in `3/10`. Raises `UsageError`."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None:
        raise UsageError(
            f"--shard {text[:40]!r} must be like 3/10: this peer's number and how many there are"
        )
    number, count = int(match[1]), int(match[2])
    if not 1 <= count <= MAX_SHARDS or not 1 <= number <= count:
        raise UsageError(
            f"--shard {text}: the shards of {count} are 1/{count} to {count}/{count}"
            if 1 <= count <= MAX_SHARDS
            else f"--shard {text}: there can be 1 to {MAX_SHARDS} shards"
        )
    return Shard(number, count)


def parse_partition(text: str, labels_per_peer: int | None = None) -> Partition:
    """The partition in `paper`, `iid` or `dirichlet:0.5`. Raises `UsageError`."""
    kind, colon, rest = text.strip().partition(":")
    if labels_per_peer is not None and kind != "paper":
        raise UsageError("--labels-per-peer goes with --partition paper")
    if kind in ("paper", "iid") and not colon:
        return Partition(kind, labels_per_peer=labels_per_peer)
    try:
        alpha = float(rest)
    except ValueError:
        alpha = math.nan
    if kind != "dirichlet" or not 1e-3 <= alpha <= 1e6:
        raise UsageError(
            f"--partition {text[:40]!r} must be paper, iid or dirichlet:ALPHA with ALPHA from 0.001 to 1e6"
        )
    return Partition("dirichlet", alpha)


def split(labels: Indices, dev_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Sorted (train, dev) indices of all examples; the dev part is stratified over the classes.

    Every class with at least two examples is in both parts, if the dev part has room for all. Raises
    `UsageError` for a fraction outside 0 … 0.9, `DataError` when no training example would be left.
    """
    if not 0 <= dev_fraction <= 0.9:
        raise UsageError(f"the dev fraction {dev_fraction} must be from 0 to 0.9")
    count = round(len(labels) * dev_fraction)
    if dev_fraction and len(labels) > 1:
        count = max(1, count)
    sizes = np.bincount(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    dev = _draw(labels, _allocate(sizes, count, room=np.maximum(sizes - 1, 0)), seed)
    train = np.setdiff1d(np.arange(len(labels), dtype=np.int64), dev, assume_unique=True)
    if not len(train):
        raise DataError("there are no examples to train on: add some")
    return train, dev


def stratified(labels: Indices, count: int, seed: int) -> Indices:
    """Sorted indices of `count` examples (all, if there are fewer) with the classes in proportion.

    Every class is present if `count` has room for all. The same for the same arguments.
    """
    sizes = np.bincount(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    return _draw(labels, _allocate(sizes, count, room=sizes), seed)


def _allocate(sizes: npt.NDArray[np.integer[Any]], count: int, *, room: Indices) -> Indices:
    """How many of each class, by largest remainder; at most `room`, at least one where both allow."""
    count = min(count, int(room.sum()))
    present = room > 0
    if count <= 0:
        return np.zeros(len(sizes), dtype=np.int64)
    exact = count * sizes / max(1, int(sizes[present].sum())) * present
    quota = np.minimum(np.floor(exact).astype(np.int64), room)
    if count >= int(present.sum()):
        quota = np.maximum(quota, present.astype(np.int64))
    while quota.sum() < count:
        quota[_first_best(exact - quota, quota < room)] += 1
    while quota.sum() > count:  # the ones given to rare classes are taken from those with most too many
        quota[_first_best(quota - exact, quota > 1)] -= 1
    return quota


def _first_best(score: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_]) -> int:
    return int(np.where(allowed, score, -np.inf).argmax())


def _draw(labels: Indices, quota: Indices, seed: int) -> Indices:
    """`quota[c]` random examples of each class c, as sorted indices."""
    order = _random(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=len(quota)))])
    parts = [by_class[start : start + n] for start, n in zip(starts, quota, strict=False) if n]
    return np.sort(np.concatenate(parts)).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)


def _random(*seed: int) -> np.random.RandomState:
    return np.random.RandomState([part % 2**32 for part in seed])


def labels_of(shard: Shard, classes: int, labels_per_peer: int | None = None) -> list[int]:
    """The labels that a peer holds in the paper's partition, in its order.

    With k' = number - 1 and L labels a peer: (L·k' … L·k' + L - 1) mod C. Raises `UsageError`.
    """
    held = max(1, round(PAPER_SHARE * classes)) if labels_per_peer is None else labels_per_peer
    if not 1 <= held <= classes:
        raise UsageError(f"--labels-per-peer {held} must be from 1 to the number of classes, {classes}")
    first = held * (shard.number - 1)
    return [label % classes for label in range(first, first + held)]


def shards(labels: Indices, classes: int, partition: Partition, count: int, seed: int) -> list[Indices]:
    """Positions in `labels` of all `count` shards, each sorted.

    `iid` and `dirichlet` shards are disjoint and cover everything; those of `paper` overlap as the
    formula has it. One shard alone is everything, in any partition. Raises `DataError`, `UsageError`.
    """
    if count == 1:
        return [np.arange(len(labels), dtype=np.int64)]
    if partition.kind == "paper":
        held = [
            frozenset(labels_of(Shard(number, count), classes, partition.labels_per_peer))
            for number in range(1, count + 1)
        ]  # at most `classes` different sets; shards of the same labels share one array
        positions = {wanted: np.flatnonzero(np.isin(labels, sorted(wanted))) for wanted in held}
        return [positions[wanted] for wanted in held]
    if len(labels) < count:
        raise DataError(f"{len(labels)} training examples do not fill {count} shards: use fewer")
    if partition.kind == "iid":
        order = _random(seed, 1).permutation(len(labels))
        return [np.sort(part).astype(np.int64) for part in np.array_split(order, count)]
    return _dirichlet(labels, classes, partition.alpha, count, seed)


def _dirichlet(labels: Indices, classes: int, alpha: float, count: int, seed: int) -> list[Indices]:
    """Equal shards, each with its own class mixture q ~ Dir(α·C·p), p that of all data over C classes.

    Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification, 2019 (arXiv:1909.06335), with α counted by class, as is usual since: for even data
    the symmetric Dir(α, …, α). Examples are drawn without replacement; a class that is
    used up leaves the mixture, so that late shards take what is left.
    """
    random = _random(seed, 2)
    order = random.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    left = np.bincount(labels, minlength=classes)
    ends = np.cumsum(left)
    prior = left / left.sum()
    result = []
    for size in [len(part) for part in np.array_split(order, count)]:
        taken = _take(random, _mixture(random, alpha, prior), left, size)
        parts = [by_class[ends[c] - left[c] : ends[c] - left[c] + taken[c]] for c in np.flatnonzero(taken)]
        left = left - taken
        result.append(np.sort(np.concatenate(parts)).astype(np.int64))
    return result


def _mixture(
    random: np.random.RandomState, alpha: float, prior: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """One draw of Dir(α·C·prior), C the classes with examples; the others have no share."""
    mixture = np.zeros(len(prior))
    present = np.flatnonzero(prior)
    weights = random.standard_gamma(alpha * len(present) * prior[present])
    if weights.sum() > 0:
        mixture[present] = weights / weights.sum()
    else:  # for a tiny α all gammas underflow; the limit of the distribution is a single class
        mixture[random.choice(present, p=prior[present])] = 1.0
    return mixture


def _take(
    random: np.random.RandomState, mixture: npt.NDArray[np.float64], left: Indices, size: int
) -> Indices:
    """How many of each class a shard of `size` takes out of `left`. Ends: a pass fills it or uses one up."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        share = np.where(left > taken, mixture, 0.0)
        if share.sum() <= 1e-300:
            share = (left - taken).astype(np.float64)
        drawn = random.multinomial(missing, share / share.sum())
        taken = np.minimum(taken + drawn, left)
    return taken


def table(held: npt.NDArray[np.int64], classes: Sequence[str], own: Shard, *, max_rows: int = 24) -> Table:
    """All shards by label, the own one marked; `held` has the examples, shape (shards, classes).

    Past `max_rows` shards or 20 classes the rest is summed up, so that the table fits a screen.
    """
    columns = min(len(classes), 20)
    result = Table(title=f"training examples by label, shard {own}", title_justify="left")
    result.add_column("shard", justify="right")
    for name in classes[:columns]:
        result.add_column(Text(name), justify="right")  # a Text: names are no markup
    if columns < len(classes):
        result.add_column(f"{len(classes) - columns} more", justify="right")
    result.add_column("all", justify="right")
    rows = list(range(min(len(held), max_rows)))
    if own.number - 1 not in rows:
        rows[-1] = own.number - 1
    for row in rows:
        cells = [str(n) if n else "·" for n in held[row, :columns]]
        if columns < len(classes):
            cells.append(str(held[row, columns:].sum()))
        mine = row == own.number - 1
        name = f"→ {row + 1}/{own.count}" if mine else f"{row + 1}/{own.count}"
        result.add_row(name, *cells, str(held[row].sum()), style="bold green" if mine else None)
    if len(rows) < len(held):
        result.caption = f"{len(held) - len(rows)} more shards"
    return result
