"""One simulated peer: the trainer's own model, batches, optimiser and step, without a state directory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from p2pfl_train.batches import Batches
from p2pfl_train.config import TrainingOptions
from p2pfl_train.datasets.examples import Examples
from p2pfl_train.errors import UsageError
from p2pfl_train.learner import fresh_model, make_optimiser, take_step
from p2pfl_train.task import Batch, Task
from p2pfl_train.tensors import is_finite, stored_tensors
from p2pfl_train.weights import TensorFile


@dataclass
class Peer:
    """What one peer keeps from round to round."""

    task: Task
    model: nn.Module
    optimiser: Optimizer | None
    """None for one that does not train, as is `batches`."""
    batches: Batches | None

    @classmethod
    def of(cls, task: Task, training: TrainingOptions, sampling_seed: str) -> Peer:
        """Starts with the weights of the task's seed, as peers do. Raises `ModelError`."""
        model = fresh_model(task)
        return cls(
            task,
            model,
            make_optimiser(model, training.optimiser),
            Batches(task.train, training.batch_size, sampling_seed),
        )

    def train(self, steps: int, row: Tensor) -> float:
        """Takes `steps` steps and writes the weights to `row`, (parameters,); returns the mean loss.

        Where they are not finite, the peer goes back to what it had, without momentum, as a trainer
        does; the loss is NaN then.
        """
        assert self.optimiser is not None
        assert self.batches is not None
        before = self.weights()
        self.model.train()
        losses = [take_step(self.task, self.model, self.optimiser, self.batches) for _ in range(steps)]
        row.copy_(self.weights())
        loss = sum(losses) / len(losses)
        if math.isfinite(loss) and is_finite(row):
            return loss
        row.copy_(before)
        self.load(row)
        self.optimiser.state.clear()
        return math.nan

    def weights(self) -> Tensor:
        """All floating-point tensors, one after the other by name; shape (parameters,)."""
        return torch.cat([tensor.reshape(-1) for tensor in self._floating()])

    def row_of(self, file: TensorFile) -> Tensor:
        """A model file of the same layout in the form that `weights` gives."""
        names = [name for name, tensor in stored_tensors(self.model).items() if tensor.is_floating_point()]
        pieces = [piece.clone() for name in names for piece in file.pieces(name)]
        return torch.cat(pieces)

    @torch.no_grad()
    def load(self, row: Tensor) -> None:
        """Takes weights in the form that `weights` gives; counters stay as they are."""
        start = 0
        for tensor in self._floating():
            tensor.copy_(row[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

    def _floating(self) -> list[Tensor]:
        tensors = [tensor for tensor in stored_tensors(self.model).values() if tensor.is_floating_point()]
        if len({tensor.dtype for tensor in tensors}) != 1 or tensors[0].dtype.itemsize < 4:
            raise UsageError("a simulation needs a model whose tensors are all float32, or all float64")
        return tensors


class Flipped(Dataset[Batch]):
    """A data set with label c turned into C - 1 - c."""

    def __init__(self, dataset: Dataset[Batch], classes: int) -> None:
        self._dataset, self._last = dataset, classes - 1

    def __len__(self) -> int:
        return len(cast(Examples, self._dataset))

    def __getitem__(self, index: int) -> Batch:
        inputs, target = self._dataset[index]
        return inputs, self._last - target


def flipped(task: Task) -> Task:
    """The task with the labels of its training data turned around. Raises `UsageError` without classes."""
    classes = len(task.spec.classes)
    if not classes:
        raise UsageError("--attack label-flip needs a task with classes")
    if isinstance(task.train, Examples):
        return replace(task, train=Examples(task.train.x, classes - 1 - task.train.y))
    return replace(task, train=Flipped(task.train, classes))
