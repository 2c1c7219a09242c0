"""Labelled examples in memory, and the names of their classes.

A class is known by its name; an index means something only together with an ordered list of names.
Every reader therefore ends in `relabel`: a peer that lacks a class keeps the indices of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from p2pfl_train.errors import DataError
from p2pfl_train.task import Batch

Indices = npt.NDArray[np.int64]
"""Positions in a data set, or class indices; shape (n,)."""

MAX_CLASSES = 32_768
"""More than ImageNet-21k has. Bounds what a stray label, or a task from the network, makes us build."""
MAX_CLASS_NAME = 256
MAX_DATA_BYTES = 16 << 30
"""A data set is held in memory: past this we say so instead of letting the machine swap. A guess."""


@dataclass(frozen=True, eq=False)
class Examples(Dataset[Batch]):
    """Examples as tensors, so that a batch is one indexing operation and needs no loader."""

    x: Tensor
    """uint8 or float32, shape (n, *input_shape)."""
    y: Tensor
    """Class indices, int64, shape (n,)."""

    def __post_init__(self) -> None:
        assert self.x.dtype in (torch.uint8, torch.float32), self.x.dtype
        assert self.y.dtype == torch.int64, self.y.dtype
        assert self.y.shape == self.x.shape[:1], (self.x.shape, self.y.shape)

    def __len__(self) -> int:
        return self.y.shape[0]

    def __getitem__(self, index: int) -> Batch:
        return self.x[index], self.y[index]

    def subset(self, indices: Indices | Tensor | Sequence[int]) -> Examples:
        """A copy of the examples at `indices`, in that order; the whole set can then be freed."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Examples(self.x[chosen], self.y[chosen])

    @property
    def labels(self) -> Indices:
        """The class indices as an array that shares memory with `y`."""
        return np.asarray(self.y.numpy(), dtype=np.int64)

    @classmethod
    def none(cls, input_shape: Sequence[int]) -> Examples:
        """No examples of `input_shape`: what a peer that only receives has."""
        return cls(torch.empty((0, *input_shape)), torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True, eq=False)
class LabelledData:
    """A whole data set of one machine, before it is split and sharded."""

    examples: Examples
    classes: tuple[str, ...]
    """Ordered class names; `examples.y` indexes them."""
    name: str
    """The data set's name, or the path it came from; for people."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """JSON: how a stored example becomes a model input; empty means as it is. See `preprocess.py`."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example, (channels, height, width) for images."""
        return tuple(self.examples.x.shape[1:])


def check_classes(classes: Sequence[str]) -> None:
    """Raises `DataError` unless these are distinct, printable, bounded names."""
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"there must be 1 to {MAX_CLASSES} classes, not {len(classes)}")
    for name in classes:
        if not name or len(name) > MAX_CLASS_NAME or not name.isprintable():
            raise DataError(
                f"class name {name[:40]!r} must be 1 to {MAX_CLASS_NAME} printable characters: rename it"
            )
    if len(set(classes)) != len(classes):
        twice = next(name for name, count in Counter(classes).items() if count > 1)
        raise DataError(f"class {twice!r} is listed twice: name every class once")


def relabel(data: LabelledData, classes: Sequence[str]) -> LabelledData:
    """The same examples with labels that index `classes`.

    Raises `DataError` when the data has a class that `classes` does not: what the task does not know
    is refused, for any other index would be a lie.
    """
    check_classes(classes)
    if tuple(classes) == data.classes:
        return data
    position = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in data.classes if name not in position]
    if unknown:
        raise DataError(
            f"{data.name} has the class {unknown[0]!r}, which is not among {shown(classes)}: "
            "leave it out, or train a task that has it"
        )
    table = torch.tensor([position[name] for name in data.classes], dtype=torch.int64)
    return replace(data, examples=Examples(data.examples.x, table[data.examples.y]), classes=tuple(classes))


def shown(names: Sequence[str], limit: int = 12) -> str:
    """The first `limit` names in one short text for a message."""
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text}, … ({len(names)})"
