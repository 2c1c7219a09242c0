"""Batches of a data set: in a seeded random order for training, in its own order for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Sized
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from p2pfl_train.datasets.examples import Examples
from p2pfl_train.datasets.partition import stratified
from p2pfl_train.errors import DataError, TrainError, one_line
from p2pfl_train.task import Batch


def size_of(dataset: Dataset[Batch]) -> int:
    """How many examples there are; tasks use map-style data sets, which know."""
    return len(cast(Sized, dataset))


def described(value: object) -> str:
    """What a batch, an output or targets are, for a message: they are the user's, and may be anything."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"shape {tuple(value.shape)} ({kind})"
    return f"type {type(value).__name__}"


def _take(dataset: Dataset[Batch], indices: Tensor) -> Batch:
    """The examples at `indices` as one batch; one indexing operation where the data is in memory.

    Raises `DataError` when the user's own data set fails.
    """
    if isinstance(dataset, Examples):
        return dataset.x[indices], dataset.y[indices]
    try:
        inputs, targets = default_collate([dataset[index] for index in indices.tolist()])
        return inputs, torch.as_tensor(targets)
    except TrainError:
        raise
    except Exception as error:
        raise DataError(
            f"the data set gives no batch of (input, target) pairs from its {size_of(dataset)} examples: "
            f"{one_line(error)}"
        ) from error


class Batches:
    """An endless stream of training batches, passing through all examples in each epoch.

    The stream is a function of the data, the batch size and the seed: one that starts at `drawn`
    batches goes on where another stopped, so a restart repeats nothing. The last, smaller batch of an
    epoch is left out: batch norm cannot train on a single example.
    """

    def __init__(self, dataset: Dataset[Batch], batch_size: int, seed: str, drawn: int = 0) -> None:
        self._dataset = dataset
        self._size = size_of(dataset)
        assert self._size > 0
        self._batch_size = min(batch_size, self._size)
        self._seed = seed
        self.per_epoch = self._size // self._batch_size
        self.drawn = drawn
        self._epoch = -1
        self._order = torch.empty(0)

    def next(self) -> Batch:
        """The next batch: inputs (batch, *input_shape) as the data set stores them, targets (batch,)."""
        epoch, position = divmod(self.drawn, self.per_epoch)
        if epoch != self._epoch:
            digest = hashlib.sha256(f"{self._seed}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            self._order, self._epoch = torch.randperm(self._size, generator=generator), epoch
        self.drawn += 1
        start = position * self._batch_size
        return _take(self._dataset, self._order[start : start + self._batch_size])


def in_order(dataset: Dataset[Batch], batch_size: int) -> Iterator[Batch]:
    """All examples once, in their order, the last batch as small as it comes."""
    for indices in torch.split(torch.arange(size_of(dataset)), batch_size):
        yield _take(dataset, indices)


def fixed_part(dataset: Dataset[Batch], count: int) -> Dataset[Batch]:
    """The same `count` examples every time (all, if there are fewer), stratified where labels are known.

    A data set that is not in memory gives them evenly spread over its order.
    """
    size = size_of(dataset)
    if size <= count:
        return dataset
    if isinstance(dataset, Examples):
        return dataset.subset(stratified(dataset.labels, count, seed=0))
    spread: Sequence[int] = [index * size // count for index in range(count)]
    return Subset(dataset, spread)
