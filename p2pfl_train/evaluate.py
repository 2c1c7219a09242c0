"""Measures a model on evaluation data: loss, accuracy, confusion matrix, and the task's own metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from p2pfl_train.batches import in_order, size_of
from p2pfl_train.errors import ModelError, one_line
from p2pfl_train.task import Batch, Task

BATCH = 64
"""Examples at a time: their activations stay in the processor's cache, larger batches are slower."""
TIME_SHARE = 0.1
"""At most this part of the time goes into evaluation when it limits itself."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured on `examples` examples."""

    examples: int
    loss: float | None
    """Mean over the examples; None when it is not a finite number."""
    accuracy: float | None
    """From 0 to 1; None for a task without classes."""
    confusion: Tensor | None
    """Counts, int64, shape (classes, classes): row is the true class, column the predicted one."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The task's own, as far as they are finite."""

    def class_accuracies(self) -> list[float | None]:
        """For each class the share of its examples that were recognised; None without examples."""
        if self.confusion is None:
            return []
        totals, right = self.confusion.sum(dim=1).tolist(), self.confusion.diagonal().tolist()
        return [hit / total if total else None for hit, total in zip(right, totals, strict=True)]


@torch.no_grad()  # not inference_mode: a model that caches a tensor could not train with it
def evaluate(model: nn.Module, task: Task, dataset: Dataset[Batch], batch_size: int = BATCH) -> Evaluation:
    """Measures `model` on all of `dataset` in evaluation mode; the mode it was in comes back after."""
    was_training = model.training
    model.eval()
    total, outputs, targets = 0.0, [], []
    for inputs, wanted in in_order(dataset, batch_size):
        try:
            output = model(task.preprocess(inputs))
            total += float(task.loss(output, wanted)) * len(wanted)
        except Exception as error:
            shape = tuple(inputs.shape)
            raise ModelError(
                f"the model cannot measure a batch of shape {shape}: {one_line(error)}"
            ) from error
        outputs.append(output)
        targets.append(wanted)
    model.train(was_training)
    count = size_of(dataset)
    if count == 0:
        return Evaluation(0, None, None, None)
    all_outputs, all_targets = torch.cat(outputs), torch.cat(targets)
    measured = {name: _measure(name, task, all_outputs, all_targets) for name in task.metrics}
    confusion = _confusion(all_outputs, all_targets, len(task.spec.classes)) if task.spec.classes else None
    return Evaluation(
        examples=count,
        loss=total / count if math.isfinite(total) else None,
        accuracy=None if confusion is None else int(confusion.diagonal().sum()) / count,
        confusion=confusion,
        metrics={name: value for name, value in measured.items() if math.isfinite(value)},
    )


def _measure(name: str, task: Task, outputs: Tensor, targets: Tensor) -> float:
    try:
        return float(task.metrics[name](outputs, targets))
    except Exception as error:
        raise ModelError(f"the metric {name!r} failed: {one_line(error)}") from error


def _confusion(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    predicted = outputs.argmax(dim=1)
    pairs = torch.bincount(targets * classes + predicted, minlength=classes * classes)
    return pairs.view(classes, classes)


class Schedule:
    """When to evaluate: every so many cycles, or as often as `TIME_SHARE` of the time allows."""

    def __init__(self, every_cycles: int | None, started_at_s: float) -> None:
        self._every_cycles = every_cycles
        self._started_at_s = started_at_s
        self._spent_s = 0.0

    def due(self, cycle: int, now_s: float) -> bool:
        """Whether to evaluate in this cycle; `now_s` on the clock of `started_at_s`."""
        if self._every_cycles is not None:
            return cycle % self._every_cycles == 0
        return self._spent_s <= TIME_SHARE * (now_s - self._started_at_s)

    def spent(self, seconds: float) -> None:
        """Counts time that an evaluation took."""
        self._spent_s += seconds
