"""Builds a `Task` for classification from names and paths, or joins the task of a network.

`build_task` decides everything from the user's options. `join_task` takes architecture, classes,
shape and preprocessing from the network's descriptor and fits the local data to them; what does not
fit is refused, never re-interpreted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from p2pfl_state.manifest import canonical_json
from p2pfl_state.taskfile import TaskFile
from rich.console import Group, RenderableType
from rich.text import Text
from torch.nn import functional

from p2pfl_train import models
from p2pfl_train.batches import size_of
from p2pfl_train.datasets import load as data
from p2pfl_train.datasets import partition
from p2pfl_train.datasets.examples import Examples, Indices, LabelledData, shown
from p2pfl_train.datasets.partition import WHOLE, Shard
from p2pfl_train.datasets.preprocess import expects_pixels, preprocess_function
from p2pfl_train.errors import DataError, UsageError
from p2pfl_train.paths import expanded
from p2pfl_train.task import Task, TaskSpec
from p2pfl_train.taskspec import spec_from_taskfile
from p2pfl_train.usertask import is_function, user_task

LARGE_COLUMN = 10.0
"""A mean or spread above this is not what a network's first layer expects. A guess."""
SHOWN_COLUMNS = 8


@dataclass(frozen=True)
class TaskOptions:
    """What the user chose; texts as they were typed."""

    data: str | None = "digits"
    """A name, a path, `module:function`, or None to only receive (in `join_task`)."""
    data_dir: Path = Path("data")
    """Where data sets known by name are kept."""
    download: bool = True
    model: str | None = None
    """A registry name or `file.py:Class`; None is the default for the data."""
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    shard: str | None = None
    """Like `3/10`; None is everything."""
    partition: str = "paper"
    """`paper`, `iid` or `dirichlet:ALPHA`."""
    labels_per_peer: int | None = None
    fraction: float = 1.0
    """Of this peer's training examples, the part that is kept; stratified."""
    seed: int = 0
    """Of split and partition: the same at all peers that share a data set."""
    dev_fraction: float = 0.2
    image_size: tuple[int, int] | None = None
    """(height, width) for a folder of images."""
    channels: int | None = None
    """1 or 3 for a folder of images; None is what the images need, which other peers' may not."""
    classes: tuple[str, ...] | None = None
    """All class names of the task in order, where this peer may lack some."""
    mean: tuple[float, ...] | None = None
    """With `std`, replaces the normalisation of the data set; the same at all peers."""
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ClassificationTask(Task):
    """A built-in task; knows besides who else holds what."""

    data_name: str = ""
    shard: Shard = WHOLE
    held: npt.NDArray[np.int64] | None = None
    """Training examples of every shard by label, shape (shards, classes); None without data."""


def located(text: str) -> str:
    """`--data` as it can be named from any folder."""
    if text in data.NAMES or is_function(text):
        return text
    return str(expanded(Path(text)).absolute())


def build_task(options: TaskOptions) -> Task:
    """The task that `options` describe. Raises `DataError`, `ModelError`, `UsageError`."""
    if options.data is None:
        raise UsageError("a peer without data needs a network to receive from: give --data, or --join")
    if is_function(options.data):
        return user_task(options.data, options)
    spec, loaded = _decide(options.data, options)
    return _assemble(spec, loaded, options, _own(spec.architecture.source_digest))


def build_tasks(options: TaskOptions, count: int) -> list[Task]:
    """The tasks of all `count` peers that share a data set, as each would build it from its own shard.

    The data is loaded once. Raises as `build_task` does.
    """
    sharded = [replace(options, shard=f"{number}/{count}") for number in range(1, count + 1)]
    if options.data is None or is_function(options.data):
        return [build_task(one) for one in sharded]
    spec, loaded = _decide(options.data, options)
    first = _assemble(spec, loaded, sharded[0], _own(spec.architecture.source_digest))
    division = _Division.of(loaded, count, options)
    subsets: dict[bytes, Examples] = {}  # in the paper's partition many hold the same
    tasks: list[Task] = []
    for one in sharded:
        shard = partition.parse_shard(one.shard or "")
        own = division.own(shard)
        train = subsets.get(own.tobytes()) or loaded.examples.subset(own)
        subsets[own.tobytes()] = train
        held = tuple(int(label) for label in np.unique(train.labels))
        tasks.append(replace(first, train=train, labels_held=held, shard=shard))
    return tasks


def _decide(name_or_path: str, options: TaskOptions) -> tuple[TaskSpec, LabelledData]:
    """What is trained, and all data of this machine."""
    loaded = data.load(
        name_or_path,
        data_dir=options.data_dir,
        download=options.download,
        image_size=options.image_size,
        channels=options.channels,
        classes=options.classes,
    )
    loaded = _with_normalisation(loaded, options)
    name = options.model or models.default_model(loaded.name, loaded.input_shape)
    architecture = models.architecture(name, options.model_arguments)
    return TaskSpec(architecture, loaded.classes, loaded.input_shape, loaded.preprocessing), loaded


def join_task(options: TaskOptions, file: TaskFile, accepted: frozenset[str]) -> Task:
    """The network's task with this peer's data, or without any if `options.data` is None.

    `accepted` holds the SHA-256 of sources that may run; the user's own `--model file.py:Class` is one
    of them. Raises `MalformedFile` for a descriptor that is none, `ModelError` for a model that is
    unknown, oversized or not accepted, `DataError` for data with unknown classes or another shape,
    `UsageError` when the options ask for another task.
    """
    spec = spec_from_taskfile(file)
    if options.data is not None and is_function(options.data):
        task = user_task(options.data, options)
        if task.spec.digest != spec.digest:
            raise DataError(
                f"--data {options.data} makes another task than the network trains: use the same code, and "
                "the same options where it takes them"
            )
        return task
    if options.model is not None:
        own = models.architecture(options.model, options.model_arguments)
        if replace(spec, architecture=own).digest != spec.digest:
            raise UsageError(
                f"the network trains {spec.architecture.name}, not {options.model} with these arguments: "
                "leave --model out, or start a network of its own"
            )
        accepted |= _own(own.source_digest)
    if options.classes is not None and options.classes != spec.classes:
        raise UsageError(f"the network's classes are {shown(spec.classes)}: leave --classes out")
    if options.data is None:
        return _assemble(spec, None, options, accepted)
    if not spec.classes:
        raise DataError("the network's task has no classes: join it with --data module:function")
    is_image = len(spec.input_shape) == 3
    loaded = data.load(
        options.data,
        data_dir=options.data_dir,
        download=options.download,
        image_size=(spec.input_shape[1], spec.input_shape[2]) if is_image else None,
        channels=spec.input_shape[0] if is_image else None,
        classes=spec.classes,
    )
    _check_fit(loaded, spec)
    return _assemble(spec, loaded, options, accepted)


def _own(digest: str | None) -> frozenset[str]:
    return frozenset() if digest is None else frozenset([digest])


def _check_fit(loaded: LabelledData, spec: TaskSpec) -> None:
    if loaded.input_shape != spec.input_shape:
        raise DataError(
            f"{loaded.name} has examples of shape {loaded.input_shape}, the network's are "
            f"{spec.input_shape}: bring the data to that shape"
        )
    pixels = loaded.examples.x.dtype == torch.uint8
    if pixels != expects_pixels(spec.preprocessing):
        have, want = ("uint8", "float") if pixels else ("float", "uint8")
        raise DataError(f"{loaded.name} holds {have} values, the network's task {want}: convert the data")


def _with_normalisation(loaded: LabelledData, options: TaskOptions) -> LabelledData:
    if options.mean is None and options.std is None:
        return loaded
    if options.mean is None or options.std is None:
        raise UsageError("--mean and --std go together")
    given = {"mean": list(options.mean), "std": list(options.std)}
    return replace(loaded, preprocessing={**loaded.preprocessing, **given})


def _assemble(
    spec: TaskSpec, loaded: LabelledData | None, options: TaskOptions, accepted: frozenset[str]
) -> ClassificationTask:
    preprocess = preprocess_function(spec.preprocessing, spec.input_shape)
    build_model = models.model_factory(
        spec.architecture, spec.input_shape, len(spec.classes), accepted=accepted
    )
    shard = WHOLE if options.shard is None else partition.parse_shard(options.shard)
    held = None
    train = evaluation = Examples.none(spec.input_shape)
    if loaded is not None:
        division = _Division.of(loaded, shard.count, options)
        held = division.held()
        train = loaded.examples.subset(division.own(shard))
        evaluation = loaded.examples.subset(division.dev)
    return ClassificationTask(
        spec=spec,
        build_model=build_model,
        train=train,
        evaluation=evaluation,
        loss=functional.cross_entropy,
        preprocess=preprocess,
        labels_held=tuple(int(label) for label in np.unique(train.labels)),
        data_name=loaded.name if loaded is not None else "",
        shard=shard,
        held=held,
    )


@dataclass(frozen=True)
class _Division:
    """Who holds what of one data set."""

    labels: Indices
    train: Indices
    dev: Indices
    shards: list[Indices]
    """Positions in `train`."""
    how: partition.Partition
    options: TaskOptions
    names: tuple[str, ...]
    data_name: str

    @classmethod
    def of(cls, loaded: LabelledData, count: int, options: TaskOptions) -> _Division:
        """Raises `DataError`, `UsageError`."""
        if not 0 < options.fraction <= 1:
            raise UsageError(f"--fraction {options.fraction} must be above 0 and at most 1")
        how = partition.parse_partition(options.partition, options.labels_per_peer)
        labels = loaded.examples.labels
        train, dev = partition.split(labels, options.dev_fraction, options.seed)
        shards = partition.shards(labels[train], len(loaded.classes), how, count, options.seed)
        return cls(labels, train, dev, shards, how, options, loaded.classes, loaded.name)

    def held(self) -> npt.NDArray[np.int64]:
        """All shards' label counts, shape (shards, classes)."""
        classes = len(self.names)
        counts = [np.bincount(self.labels[self.train[part]], minlength=classes) for part in self.shards]
        return np.stack(counts).astype(np.int64)

    def own(self, shard: Shard) -> Indices:
        """The examples of one shard. Raises `DataError` when there are none."""
        own = self.train[self.shards[shard.number - 1]]
        if self.options.fraction < 1:
            count = max(1, round(self.options.fraction * len(own)))
            chosen = partition.stratified(self.labels[own], count, self.options.seed + shard.number)
            own = own[chosen]
        if not len(own):
            wanted = partition.labels_of(shard, len(self.names), self.how.labels_per_peer)
            names = shown([self.names[label] for label in wanted])
            raise DataError(f"shard {shard} of {self.data_name} has no examples (its labels: {names})")
        return own


def describe(task: Task) -> RenderableType:
    """What is trained and on what, for the start of a run: a few lines and the table of the partition."""
    spec = task.spec
    shape = " x ".join(map(str, spec.input_shape))
    architecture = spec.architecture
    arguments = canonical_json(dict(architecture.arguments))  # ASCII: it may come from the network
    lines = [
        f"task {spec.digest[:16]}: {architecture.name} {arguments}, input {shape}, "
        f"classes {shown(spec.classes) or 'none'}"
    ]
    train, evaluation = size_of(task.train), size_of(task.evaluation)
    if train == 0:
        lines.append("no data: receives only")
        return Text("\n".join(lines))
    name = f"{task.data_name}: " if isinstance(task, ClassificationTask) else ""
    labels = shown([spec.classes[label] for label in task.labels_held if label < len(spec.classes)])
    lines.append(f"{name}{train} training examples of {labels or 'all'}, {evaluation} to evaluate on")
    if isinstance(task.train, Examples) and (hint := _scale_hint(task.train, spec)) is not None:
        lines.append(hint)
    text = Text("\n".join(lines))
    if isinstance(task, ClassificationTask) and task.held is not None:
        return Group(text, partition.table(task.held, spec.classes, task.shard))
    return text


def _scale_hint(train: Examples, spec: TaskSpec) -> str | None:
    """For columns far from 0 and 1, with which training hardly moves; it says nothing to other peers."""
    if len(spec.input_shape) != 1 or spec.preprocessing or not len(train):
        return None
    std, mean = torch.std_mean(train.x, dim=0, correction=0)
    if float(torch.maximum(mean.abs(), std).max()) <= LARGE_COLUMN:
        return None
    columns = zip(mean.tolist(), std.tolist(), strict=True)
    means, stds = zip(*((f"{m:.3g}", f"{s or 1.0:.3g}") for m, s in columns), strict=True)
    example = (
        f"--mean {','.join(means)} --std {','.join(stds)}" if len(means) <= SHOWN_COLUMNS else "--mean, --std"
    )
    return f"values this large learn badly: scale the columns, the same at all peers ({example})"
