"""One simulated peer: the trainer's own model, batches, optimiser and step, without a state directory."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
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
from p2pfl_train.learner import MAX_DIVERGED, fresh_model, make_optimiser, take_step
from p2pfl_train.task import Batch, Task
from p2pfl_train.tensors import buffer_names, is_finite, stored_tensors
from p2pfl_train.weights import TensorFile


@dataclass
class Peer:
    """What one peer keeps from round to round."""

    task: Task
    model: nn.Module
    optimiser: Optimizer | None
    """None for one that does not train, as is `batches`."""
    batches: Batches | None
    initial: Tensor | None = None
    """The weights of the task's seed, (parameters,), to begin anew from."""
    diverged: int = 0
    """Calls of `train` in a row that came to nothing."""

    @classmethod
    def of(
        cls, task: Task, training: TrainingOptions, sampling_seed: str, initial: Tensor | None = None
    ) -> Peer:
        """Starts with the weights of the task's seed, as peers do; `initial`: these, where others hold them.

        Raises `ModelError`.
        """
        model = fresh_model(task)
        made = cls(
            task,
            model,
            make_optimiser(model, training.optimiser),
            Batches(task.train, training.batch_size, sampling_seed),
        )
        made.initial = made.weights() if initial is None else initial
        return made

    def train(self, steps: int, row: Tensor) -> float:
        """Takes `steps` steps and writes the weights to `row`, (parameters,); returns the mean loss.

        Where they are not finite, the peer goes back to what it had, without momentum, and the third time
        in a row to the weights of the task's seed, as a trainer does; the loss is NaN then.
        """
        assert self.optimiser is not None
        assert self.batches is not None
        before = self.weights()
        self.model.train()
        total = 0.0
        for _ in range(steps):
            total += take_step(self.task, self.model, self.optimiser, self.batches)
            if not math.isfinite(total):
                break
        row.copy_(self.weights())
        if math.isfinite(total) and is_finite(row):
            self.diverged = 0
            return total / steps
        self.diverged += 1
        if self.diverged >= MAX_DIVERGED and self.initial is not None:
            before, self.diverged = self.initial, 0
        row.copy_(before)
        self.load(row)
        self.optimiser.state.clear()
        return math.nan

    def weights(self) -> Tensor:
        """All floating-point tensors, by name, parameters first; shape (numbers,)."""
        return torch.cat([tensor.reshape(-1) for _, tensor in self._floating()])

    def draws_at_random(self, training: TrainingOptions) -> bool:
        """Whether a step uses torch's random state, as dropout does; found by trying, on a copy."""
        if self.batches is None:
            return False
        inputs, _ = Batches(self.task.train, training.batch_size, "trial").next()
        model = copy.deepcopy(self.model).train()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            before = torch.get_rng_state()
            model(self.task.preprocess(inputs))
            return not torch.equal(before, torch.get_rng_state())

    @property
    def parameters(self) -> int:
        """How many of the numbers in a row are parameters; what follows are buffers."""
        buffers = buffer_names(self.model)
        return sum(tensor.numel() for name, tensor in self._floating() if name not in buffers)

    def variances(self) -> list[slice]:
        """Where running variances are in a row."""
        found, start = [], 0
        for name, tensor in self._floating():
            if name.rpartition(".")[2] == "running_var":
                found.append(slice(start, start + tensor.numel()))
            start += tensor.numel()
        return found

    def row_of(self, file: TensorFile) -> Tensor:
        """A model file of the same layout in the form that `weights` gives."""
        pieces = [piece.clone() for name, _ in self._floating() for piece in file.pieces(name)]
        return torch.cat(pieces)

    @torch.no_grad()
    def load(self, row: Tensor) -> None:
        """Takes weights in the form that `weights` gives; counters stay as they are."""
        start = 0
        for _, tensor in self._floating():
            tensor.copy_(row[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

    def _floating(self) -> list[tuple[str, Tensor]]:
        stored = stored_tensors(self.model)
        buffers = buffer_names(self.model)
        names = sorted(stored, key=lambda name: (name in buffers, name))
        tensors = [(name, stored[name]) for name in names if stored[name].is_floating_point()]
        types = {tensor.dtype for _, tensor in tensors}
        if len(types) != 1 or min(dtype.itemsize for dtype in types) < 4:
            raise UsageError("a simulation needs a model whose tensors are all float32, or all float64")
        return tensors


def plausible(said: Tensor, variances: Sequence[slice]) -> Tensor:
    """What would not be refused: finite, and without negative variances. (parameters,) or (n, parameters)."""
    largest = torch.finfo(said.dtype).max
    result = torch.nan_to_num(said, nan=0.0, posinf=largest, neginf=-largest)
    for columns in variances:
        result[..., columns] = result[..., columns].clamp_min(0)
    return result


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
