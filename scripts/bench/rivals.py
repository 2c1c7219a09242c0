"""The aggregation rules of other libraries, where they are installed: Flower and byzpy.

`make bench` puts them into `rivals` inside the virtual environment, apart from our own packages and without
most of what they ask for: Flower wants versions of protobuf that are older than ours. They are loaded as
they are; nothing of them is replaced.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FOLDER = Path(sys.prefix) / "rivals"
LAYERS = 6
"""Flower works layer by layer, so it gets the numbers in as many pieces as the model has layers."""
SAMPLES = 100
CLIPPING_STEPS = 3
"""As many as our rule makes."""

Prepare = Callable[[Sequence[Tensor], int], Callable[[], Any]]
"""From the votes, flat, the own one first, and f: the call that is timed. The form that the library wants
is made before."""


@dataclass(frozen=True)
class Rival:
    """One rule of another library."""

    library: str
    rule: str
    """The same as ours is typed."""
    prepare: Prepare
    difference: str = ""
    """Why its result may be another than that of the definition which we follow; empty: no reason known."""
    corrected: Prepare | None = None
    """The same rule, used in such a way that the difference should be gone: the proof of the reason."""

    def __str__(self) -> str:
        return f"{self.library} {self.rule}"


def numbers(result: Any) -> npt.NDArray[Any]:
    """What a rival returned, flat."""
    if isinstance(result, Tensor):
        return result.numpy().ravel()
    return np.concatenate([np.ravel(layer) for layer in result])


def load() -> tuple[list[Rival], list[str]]:
    """The rivals that can be had, and one line for each library: its version, or why it is not there."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    rivals, lines = [], []
    for name, package, rules in (("Flower", "flwr", _flower), ("byzpy", "byzpy", _byzpy)):
        try:
            rivals += rules(name)
            lines.append(f"{name} {metadata.version(package)}")
        except Exception as error:  # noqa: BLE001 - others' code, beside packages not made for it
            reason = " ".join(str(error).split())[:80]
            lines.append(f"{name} left out, it cannot be imported: {reason}")
    return rivals, lines


def _flower(name: str) -> list[Rival]:
    """Functions on lists of (layers, samples)."""
    module = importlib.import_module("flwr.server.strategy.aggregate")

    def layered(function: Callable[..., Any], *options: Callable[[int, int], float]) -> Prepare:
        """`options`: its further arguments, from the number of votes and f."""

        def prepare(votes: Sequence[Tensor], byzantine: int) -> Callable[[], Any]:
            results = [([layer.numpy() for layer in vote.chunk(LAYERS)], SAMPLES) for vote in votes]
            given = [option(len(votes), byzantine) for option in options]
            return lambda: function(results, *given)

        return prepare

    def liars(votes: int, byzantine: int) -> int:
        return byzantine

    return [
        Rival(name, "fedavg", layered(module.aggregate)),
        Rival(name, "median", layered(module.aggregate_median)),
        Rival(
            name,
            "trimmed_mean",
            layered(module.aggregate_trimmed_avg, lambda votes, byzantine: byzantine / votes),
            "takes a share, rounded down: 3/47 of 47 trims 2",
        ),
        Rival(name, "krum", layered(module.aggregate_krum, liars, lambda votes, byzantine: 0)),
        Rival(
            name,
            "multi_krum",
            layered(module.aggregate_krum, liars, lambda votes, byzantine: votes - byzantine),
        ),
    ]


def _byzpy(name: str) -> list[Rival]:
    """Objects that take lists of tensors."""
    columns = importlib.import_module("byzpy.aggregators.coordinate_wise")
    points = importlib.import_module("byzpy.aggregators.geometric_wise")
    clipping = importlib.import_module("byzpy.aggregators.norm_wise.center_clipping")
    mixing = importlib.import_module("byzpy.pre_aggregators")

    def simple(make: Callable[[int, int], Any]) -> Prepare:
        """`make`: the aggregator, from the number of votes and f."""

        def prepare(votes: Sequence[Tensor], byzantine: int) -> Callable[[], Any]:
            aggregator = make(len(votes), byzantine)
            return lambda: aggregator.aggregate(votes)

        return prepare

    def mixed(make: Callable[[int, int], Any]) -> Prepare:
        def prepare(votes: Sequence[Tensor], byzantine: int) -> Callable[[], Any]:
            mixer = mixing.NearestNeighborMixing(byzantine)
            aggregator = make(len(votes), byzantine)
            return lambda: aggregator.aggregate(mixer.pre_aggregate(votes))

        return prepare

    def clipped(votes: Sequence[Tensor], byzantine: int) -> Callable[[], Any]:
        radius = _radius(votes, byzantine)
        aggregator = clipping.CenteredClipping(c_tau=radius, M=CLIPPING_STEPS)
        return lambda: aggregator.aggregate(votes)

    def clipped_around_own(votes: Sequence[Tensor], byzantine: int) -> Callable[[], Any]:
        radius = _radius(votes, byzantine)
        aggregator = clipping.CenteredClipping(c_tau=radius, M=CLIPPING_STEPS, init="zero")
        return lambda: votes[0] + aggregator.aggregate([vote - votes[0] for vote in votes])

    def middle_of_both(votes: Sequence[Tensor], byzantine: int) -> Callable[[], Any]:
        median = columns.CoordinateWiseMedian()
        upside_down = [-vote for vote in votes]
        return lambda: (median.aggregate(votes) - median.aggregate(upside_down)) / 2

    def trimmed(votes: int, byzantine: int) -> Any:
        return columns.CoordinateWiseTrimmedMean(byzantine)

    def krum(votes: int, byzantine: int) -> Any:
        return points.Krum(byzantine)

    def krum_told_one_more(votes: int, byzantine: int) -> Any:
        return points.Krum(byzantine + 1)

    neighbours = "Krum over n-f-1 neighbours, not n-f-2"
    return [
        Rival(name, "trimmed_mean", simple(trimmed)),
        Rival(
            name,
            "median",
            simple(lambda votes, byzantine: columns.CoordinateWiseMedian()),
            "of two middle numbers the lower",
            middle_of_both,
        ),
        Rival(name, "krum", simple(krum), neighbours, simple(krum_told_one_more)),
        Rival(
            name,
            "multi_krum",
            simple(lambda votes, byzantine: points.MultiKrum(byzantine, votes - byzantine)),
            neighbours,
        ),
        Rival(name, "geometric_median", simple(lambda votes, byzantine: points.GeometricMedian())),
        Rival(name, "centered_clipping", clipped, "from the mean, not the own model", clipped_around_own),
        Rival(name, "nnm+trimmed_mean", mixed(trimmed)),
        Rival(
            name,
            "nnm+krum",
            mixed(krum),
            "n-f-1 neighbours, or not the first of equal scores",
        ),
    ]


def _radius(votes: Sequence[Tensor], byzantine: int) -> float:
    """That of our rule: to the farthest of the n - f votes nearest to the own one."""
    away = sorted(float(torch.dist(vote, votes[0])) for vote in votes)
    return away[len(votes) - byzantine - 1]
