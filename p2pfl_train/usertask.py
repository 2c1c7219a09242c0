"""A task of the user's own, `--data module:function`: called, and checked once where it is made."""

from __future__ import annotations

import importlib
import inspect
import operator
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl_state.errors import StateError
from p2pfl_state.taskfile import TaskFile
from torch.utils.data import Dataset, IterableDataset

from p2pfl_train.batches import size_of
from p2pfl_train.errors import DataError, TrainError, one_line
from p2pfl_train.task import Batch, Task
from p2pfl_train.taskspec import spec_from_taskfile, spec_to_taskfile

if TYPE_CHECKING:
    from p2pfl_train.tasks import TaskOptions


def is_function(text: str) -> bool:
    """Whether `--data` names a function, and not a path that looks like one."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None and not Path(text).exists()


def user_task(text: str, options: TaskOptions) -> Task:
    """Calls the user's function, imported from the current folder; it may take the options.

    Raises `DataError` for one that fails, or whose task breaks what the rest of the program relies on.
    """
    module_name, _, function_name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        task = function(options) if inspect.signature(function).parameters else function()
    except TrainError:
        raise
    except ModuleNotFoundError as error:
        where = f"; run this in the folder of {module_name}" if error.name == module_name else ""
        raise DataError(f"--data {text} failed: {one_line(error)}{where}") from None
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        raise DataError(f"--data {text} failed: {one_line(error)}") from None
    if not isinstance(task, Task):
        raise DataError(f"--data {text} returned a {type(task).__name__}, not a p2pfl_train.task.Task")
    _check_size(f"--data {text}: train", task.train)
    _check_size(f"--data {text}: evaluation", task.evaluation)
    _check_spec(text, task)
    return task


def _check_size(what: str, dataset: Dataset[Batch]) -> None:
    try:
        if isinstance(dataset, IterableDataset):
            raise TypeError("an IterableDataset")
        size_of(dataset)
    except Exception as error:  # noqa: BLE001 - the user's __len__ may raise anything
        raise DataError(
            f"{what} must be a data set with __len__ and __getitem__ ({one_line(error)}): examples are "
            "drawn by their index"
        ) from None


def _check_spec(text: str, task: Task) -> None:
    """It must survive the way to another peer: what that refuses is refused here, before any training."""
    try:
        spec_from_taskfile(TaskFile.parse(spec_to_taskfile(task.spec).encode()))
    except Exception as error:  # noqa: BLE001 - the user may have put anything there
        reason = str(error) if isinstance(error, StateError) else one_line(error)
        raise DataError(
            f"--data {text}: other peers cannot read its spec ({reason}): names and JSON values only"
        ) from None
    try:
        held = [operator.index(label) for label in task.labels_held]
    except TypeError as error:
        raise DataError(f"--data {text}: labels_held must be class indices ({one_line(error)})") from None
    if task.spec.classes and not all(0 <= label < len(task.spec.classes) for label in held):
        raise DataError(f"--data {text}: labels_held must be from 0 to {len(task.spec.classes) - 1}")
