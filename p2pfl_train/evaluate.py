"""Measures a model on evaluation data: loss, accuracy, confusion matrix, and the task's own metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from p2pfl_train.batches import described, in_order, size_of
from p2pfl_train.errors import DataError, ModelError, one_line
from p2pfl_train.task import Batch, Task

BATCH = 64
"""Examples at a time: their activations stay in the processor's cache, larger batches are slower."""
MAX_CONFUSED = 2000
"""Classes that a confusion matrix is made for, of 32 MB then."""
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
    """Counts, int64, shape (classes, classes): row is the true class, column the predicted one. None also for
    more than `MAX_CONFUSED` classes."""
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
    """Measures `model` on all of `dataset` in evaluation mode; the mode it was in comes back after.

    Outputs are kept only for a task with metrics of its own, which see them all at once. Raises
    `DataError` for data that gives no batch or no class indices, `ModelError` for outputs that do not
    fit the task.
    """
    count = size_of(dataset)
    if count == 0:
        return Evaluation(0, None, None, None)
    was_training = model.training
    model.eval()
    total, right, outputs, targets = 0.0, 0, [], []
    classes = len(task.spec.classes)
    confusion = None
    if 0 < classes <= MAX_CONFUSED:
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for inputs, wanted in in_order(dataset, batch_size):
        try:
            output = model(task.preprocess(inputs))
            total += float(task.loss(output, wanted)) * len(wanted)
        except Exception as error:
            raise ModelError(
                f"the model cannot measure a batch of {described(inputs)}: {one_line(error)}"
            ) from error
        if classes:
            labels, predicted = _labels(output, wanted, classes)
            right += int((labels == predicted).sum())
            if confusion is not None:
                pairs = torch.bincount(labels * classes + predicted, minlength=classes * classes)
                confusion += pairs.view(classes, classes)
        if task.metrics:
            outputs.append(output)
            targets.append(wanted)
    model.train(was_training)
    measured = _measure(task, outputs, targets)
    return Evaluation(
        examples=count,
        loss=total / count if math.isfinite(total) else None,
        accuracy=right / count if classes else None,
        confusion=confusion,
        metrics={name: value for name, value in measured.items() if math.isfinite(value)},
    )


def _measure(task: Task, outputs: list[Tensor], targets: list[Tensor]) -> dict[str, float]:
    if not task.metrics:
        return {}
    try:
        all_outputs, all_targets = torch.cat(outputs), torch.cat(targets)
    except Exception as error:
        raise ModelError(
            f"metrics see all outputs in one tensor, and these do not fit into one ({one_line(error)}): "
            "let the model return one tensor, or leave the task's metrics out"
        ) from error
    measured = {}
    for name, metric in task.metrics.items():
        try:
            measured[name] = float(metric(all_outputs, all_targets))
        except Exception as error:
            raise ModelError(f"the metric {name!r} failed: {one_line(error)}") from error
    return measured


def _labels(output: Tensor, wanted: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """True and predicted classes of one batch, int64, shape (batch,) each."""
    remedy = "leave the task's classes empty and measure with metrics of its own"
    if wanted.dim() != 1 or wanted.dtype.is_floating_point or wanted.dtype.is_complex:
        raise DataError(
            f"the targets of a task with classes are one class index an example, not {described(wanted)}: "
            f"{remedy}"
        )
    shape = (len(wanted), classes)
    if not isinstance(output, Tensor) or output.shape != shape:
        raise ModelError(
            f"the output for a task of {classes} classes has shape {shape}, not {described(output)}: {remedy}"
        )
    labels = wanted.long()
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < classes:
        raise DataError(
            f"the label {low if low < 0 else high} is no class index from 0 to {classes - 1}: "
            "leave such examples out"
        )
    return labels, output.argmax(dim=1)


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
