"""Uses a published model offline: what `evaluate` and `predict` on the command line do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from p2pfl_state import home, taskfile
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from p2pfl_train import checkpoint, consent
from p2pfl_train.batches import size_of
from p2pfl_train.datasets.images import read_image
from p2pfl_train.datasets.preprocess import expects_pixels
from p2pfl_train.errors import (
    DataError,
    ModelError,
    SourceNotAccepted,
    UsageError,
    WeightsRefused,
    one_line,
)
from p2pfl_train.evaluate import Evaluation, evaluate
from p2pfl_train.learner import fresh_model
from p2pfl_train.models import REGISTRY, architecture
from p2pfl_train.task import Architecture, Task
from p2pfl_train.tasks import TaskOptions, join_task
from p2pfl_train.taskspec import spec_from_taskfile
from p2pfl_train.usertask import is_function
from p2pfl_train.weights import TensorFile, load_published

MAX_MATRIX = 20
"""Classes that a confusion matrix is shown for."""


@dataclass(frozen=True)
class Published:
    """A published model, ready to be used."""

    task: Task
    model: nn.Module
    manifest: Manifest


def evaluation_options(state: StateDir, data: str | None, data_dir: Path | None) -> TaskOptions:
    """Where the evaluation data comes from: the run that made the directory, unless `data` names other.

    What a network's task decides (model, classes, size) is left open, but a user's own function gets
    the options that it had in the run.
    """
    run = _recorded(state)
    chosen = run.data if data is None else data
    if chosen is not None and chosen == run.data and is_function(chosen):
        return replace(run, data_dir=data_dir or run.data_dir)
    return TaskOptions(chosen, data_dir or run.data_dir, seed=run.seed, dev_fraction=run.dev_fraction)


def _recorded(state: StateDir) -> TaskOptions:
    """The options that `startup.data_record` wrote; JSON knows no tuples."""
    saved = checkpoint.load(state.trainer_state)
    record = {"data": None, "data_dir": "data", **(saved.counters.data if saved else {})}
    options: dict[str, Any] = {
        field.name: tuple(value) if isinstance(value := record[field.name], list) else value
        for field in fields(TaskOptions)
        if field.name in record
    }
    return TaskOptions(**{**options, "data_dir": Path(options["data_dir"])})


def load(
    state: StateDir, options: TaskOptions, accepted: frozenset[str], model: str | None = None
) -> Published:
    """The published model of a state directory with the data that `options` name, if any.

    `model`, a registry name or `file.py:Class`, must be what is published, whatever its arguments: they
    stand in the descriptor. Raises `WeightsRefused` where nothing usable is published, `UsageError` for
    another model, and all that `join_task` raises.
    """
    home.check(state)
    file = taskfile.read_task(state.task)
    if file is None or not state.model.exists():
        raise WeightsRefused(
            f"nothing is published in {state.root}: give the --state DIR of a trainer that has run a cycle"
        )
    if TensorFile.open(state.model).manifest().task != file.digest:
        raise WeightsRefused(f"the model in {state.root} is not of the task beside it: train it again")
    spec = spec_from_taskfile(file)
    made_here = options.data is not None and is_function(options.data)
    if not made_here and spec.architecture.source is None and spec.architecture.name not in REGISTRY:
        raise ModelError(
            f"the model {spec.architecture.name} was made by a user's own function, and only that can make "
            "it again: evaluate it with --data module:function"
        )
    if model is not None:
        accepted |= _same_model(model, spec.architecture)
    try:
        task = join_task(options, file, accepted)
    except SourceNotAccepted as error:
        if not consent.is_given(error):
            raise ModelError(f"{error}, or name your own file of it with --model FILE.py:Class") from None
        task = join_task(options, file, accepted | {error.digest})
    module = fresh_model(task)
    manifest = load_published(state.model, module)
    module.eval()
    return Published(task, module, manifest)


def _same_model(name: str, published: Architecture) -> frozenset[str]:
    """The digest of the user's own file, which may then run. Raises `UsageError` for another model."""
    own = architecture(name, {})
    digest = own.source_digest
    if (own.name, digest) != (published.name, published.source_digest):
        code = published.source_digest
        remedy = "leave --model out" + (f", or pass --accept-arch {code} to run its code" if code else "")
        raise UsageError(f"what is published is {published.name}, made by other code than {name}: {remedy}")
    return frozenset() if digest is None else frozenset([digest])


def measure(published: Published) -> Evaluation:
    """The model on all of the task's evaluation data. Raises `DataError` when there is none."""
    if size_of(published.task.evaluation) == 0:
        raise DataError("there is nothing to evaluate on: name labelled data with --data")
    return evaluate(published.model, published.task, published.task.evaluation)


def evaluation_json(published: Published, measured: Evaluation) -> dict[str, Any]:
    """The measurement as JSON values; `confusion` has a row for each true class."""
    return {
        "version": published.manifest.version,
        "task": published.manifest.task,
        "examples": measured.examples,
        "loss": measured.loss,
        "accuracy": measured.accuracy,
        "classes": list(published.task.spec.classes),
        "class_accuracies": measured.class_accuracies(),
        "confusion": None if measured.confusion is None else measured.confusion.tolist(),
        "metrics": dict(measured.metrics),
    }


def evaluation_table(published: Published, measured: Evaluation, console: Console) -> Table:
    """The confusion matrix with the accuracy of each class; without the matrix where that is too wide."""
    table = _table(published, measured, matrix=len(published.task.spec.classes) <= MAX_MATRIX)
    if _is_cut(table, console):
        table = _table(published, measured, matrix=False)
    return table


def _is_cut(table: Table, console: Console) -> bool:
    """Whether rich would shorten cells to make the table fit."""
    return table.__rich_measure__(console, console.options.update(width=10_000)).maximum > console.width


def _table(published: Published, measured: Evaluation, *, matrix: bool) -> Table:
    classes = published.task.spec.classes
    accuracy = "–" if measured.accuracy is None else f"{measured.accuracy:.4f}"
    loss = "–" if measured.loss is None else f"{measured.loss:.4f}"
    table = Table(
        title=f"version {published.manifest.version}: accuracy {accuracy}, loss {loss} "
        f"on {measured.examples} examples",
        caption="row: true class, column: predicted class" if matrix else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns = classes if matrix else ()
    table.add_column("class")
    for name in columns:
        table.add_column(Text(name), justify="right")
    table.add_column("accuracy", justify="right")
    rows = [] if measured.confusion is None else measured.confusion.tolist()
    for name, counts, share in zip(classes, rows, measured.class_accuracies(), strict=False):
        cells = [str(count) if count else "·" for count in counts] if columns else []
        table.add_row(Text(name), *cells, "–" if share is None else f"{share:.4f}")
    return table


@torch.no_grad()
def classify(published: Published, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """For each image file its class and the probabilities of all classes, as JSON values.

    An image at a time: the memory does not depend on how many there are. Raises `DataError`,
    `ModelError`.
    """
    spec = published.task.spec
    if len(spec.input_shape) != 3 or spec.input_shape[0] not in (1, 3) or not spec.classes:
        raise DataError(f"this model takes inputs of shape {spec.input_shape}, which are not images")
    if not expects_pixels(spec.preprocessing):
        raise DataError(
            "this model was trained on numbers of its own scale, not on the pixels of image files"
        )
    results = []
    for path in paths:
        image = read_image(path, spec.input_shape)[None]
        try:
            output = published.model(published.task.preprocess(image))
            probabilities = output.softmax(dim=1)[0].tolist()
        except Exception as error:  # the model may be a user's own code
            raise ModelError(f"the model cannot classify {path}: {one_line(error)}") from error
        best = max(range(len(spec.classes)), key=probabilities.__getitem__)
        results.append(
            {
                "image": str(path),
                "class": spec.classes[best],
                "probability": probabilities[best],
                "probabilities": dict(zip(spec.classes, probabilities, strict=True)),
            }
        )
    return results
