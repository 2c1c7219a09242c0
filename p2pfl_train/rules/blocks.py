"""Runs a recipe over models of any size, a block of columns at a time.

A block is the same columns of all models, one array (columns,) for each, and is small enough to stay in
a processor's second cache while it is worked on. The arrays may be views of files: they are only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2pfl_train.rules.columns import Columns, Floats, Workspace, add_up
from p2pfl_train.rules.definitions import Matrix, Recipe

BLOCK_BYTES = 1 << 20
"""Measured best of 256 KiB to 1 MiB where the second cache is 1 MiB; what streams through does not count."""
MIN_COLUMNS = 256
MAX_ADDITIONS = 5
"""Up to so many additions for each model are quicker than a copy and a product of matrices; measured."""


def columns_of(models: int, element_bytes: int) -> int:
    """How many columns a block of so many models has."""
    return max(MIN_COLUMNS, BLOCK_BYTES // (models * element_bytes))


class Distances:
    """Sums up squared distances over blocks.

    Through the inner products of the differences from the first model: in float32 these are exact enough
    as long as the models differ from each other about as much as from the first. So the first must be
    an honest one, or lie among the honest: seen from a liar far away all others are in one place. A
    difference whose square no number can hold is `inf`.
    """

    def __init__(self, models: int) -> None:
        self._products = np.zeros((models - 1, models - 1))
        self._differences = np.empty((0, 0))

    def add(self, rows: Sequence[Floats]) -> None:
        """`rows`: of each model its columns, float32 or float64."""
        shape, dtype = (len(rows) - 1, len(rows[0])), rows[0].dtype
        if self._differences.shape != shape or self._differences.dtype != dtype:
            self._differences = np.empty(shape, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for row, difference in zip(rows[1:], self._differences, strict=True):
                np.subtract(row, rows[0], out=difference)
            block = torch.from_numpy(self._differences)  # its product takes half the time of numpy's
            self._products += torch.mm(block, block.T).numpy()

    def squared(self) -> Matrix:
        """Shape (models, models), symmetric."""
        products = np.pad(self._products, ((1, 0), (1, 0)))
        lengths = np.diag(products)
        with np.errstate(over="ignore", invalid="ignore"):
            squared = lengths[:, None] + lengths[None, :] - (products + products.T)
        squared = np.where(np.isfinite(squared), np.maximum(squared, 0.0), np.inf)
        np.fill_diagonal(squared, 0.0)
        return np.asarray(squared)


class Cook:
    """Applies one recipe to blocks of one number type, float32 or float64."""

    def __init__(self, recipe: Recipe, dtype: npt.DTypeLike, workspace: Workspace | None = None) -> None:
        """One `workspace` may serve several that take turns."""
        self._dtype = np.dtype(dtype)
        self._trim = recipe.trim
        self._workspace = workspace or Workspace()
        self._columns = Columns(self._workspace)
        weights = recipe.weights
        self._mixer = None if weights is None else _Mixer(weights, self._dtype, self._workspace)

    def apply(self, rows: Sequence[Floats]) -> Floats:
        """The result for these columns of all models, (columns,); good until the next call.

        Where the numbers are near the largest of their type it may be infinite.
        """
        with np.errstate(over="ignore"):
            mixed = rows if self._mixer is None else self._mixer.mix(rows)
            scale = 1.0 if self._mixer is None else self._mixer.scale
            result = self._workspace.take("result", rows[0].shape, self._dtype)
            if self._trim is None:
                np.multiply(mixed[0], scale, out=result)
            else:
                self._columns.trimmed_mean(mixed, self._trim, result, scale)
        return result


class _Mixer:
    """Weighted means of models: the distinct rows of a matrix of weights, each made once.

    Neighbours often have the same neighbours. Where all weights are equal and the models are few, they
    are added up, which needs no copy of them; else it is a product of matrices.
    """

    def __init__(self, weights: Matrix, dtype: np.dtype[Any], workspace: Workspace) -> None:
        self._workspace = workspace
        distinct, place = np.unique(weights, axis=0, return_inverse=True)
        self._place: list[int] = place.reshape(-1).tolist()
        self._weights = torch.from_numpy(distinct.astype(dtype))
        chosen = [np.flatnonzero(row).tolist() for row in distinct]
        used = distinct[distinct != 0]
        few = sum(map(len, chosen)) <= MAX_ADDITIONS * weights.shape[1]
        self._chosen = chosen if few and np.ptp(used) == 0 else None
        self.scale = 1.0 if self._chosen is None else float(used[0])
        """By what the rows that `mix` gives are still to be multiplied."""

    def mix(self, rows: Sequence[Floats]) -> list[Floats]:
        """One array (columns,) for each row of weights; the same one for equal rows."""
        shape = (len(self._weights), len(rows[0]))
        mixed = self._workspace.take("mixed", shape, rows[0].dtype)
        if self._chosen is None:
            block = self._workspace.take("block", (len(rows), len(rows[0])), rows[0].dtype)
            for row, copy in zip(rows, block, strict=True):
                np.copyto(copy, row)
            torch.mm(self._weights, torch.from_numpy(block), out=torch.from_numpy(mixed))
        else:
            for total, chosen in zip(mixed, self._chosen, strict=True):
                add_up([rows[index] for index in chosen], total)
        means = list(mixed)
        return [means[place] for place in self._place]
