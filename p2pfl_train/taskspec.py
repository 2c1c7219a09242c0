"""Between a `TaskSpec` and the `task.json` that travels, validated as what comes from the network."""

from __future__ import annotations

import math
import re
from typing import Any

from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import Fields
from p2pfl_state.manifest import canonical_json
from p2pfl_state.taskfile import TaskFile

from p2pfl_train.datasets.examples import MAX_CLASSES, check_classes
from p2pfl_train.errors import DataError
from p2pfl_train.models import MAX_ARGUMENTS_BYTES, MAX_INPUT_ELEMENTS, MAX_SOURCE_BYTES
from p2pfl_train.task import Architecture, TaskSpec

MAX_DIMENSIONS = 4
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""A registry name or a class name: also what may be printed on a terminal."""
MAX_PREPROCESSING_BYTES = 256 << 10
"""Room for a mean and a standard deviation for each of ten thousand features."""


def spec_to_taskfile(spec: TaskSpec) -> TaskFile:
    """What the trainer publishes beside its weights."""
    return TaskFile(spec.descriptor(), spec.architecture.source)


def spec_from_taskfile(file: TaskFile) -> TaskSpec:
    """The spec that `file` describes; its digest is that of the file.

    Nothing is built or run here. Raises `MalformedFile` for a wrong type, a size past its bound, or a
    field that we do not know: we would train something else than the others.
    """
    fields = Fields(file.descriptor, "task")
    parts = Fields(fields.mapping("architecture"), "task architecture")
    parts.digest_or_none("source_sha256")  # compared with the source when the file was parsed
    name = parts.text("name", limit=200, pattern=_NAME)
    arguments = _bounded(parts.mapping("arguments"), "arguments", MAX_ARGUMENTS_BYTES)
    if file.source is not None and len(file.source.encode()) > MAX_SOURCE_BYTES:
        raise MalformedFile(f"task: the source is larger than {MAX_SOURCE_BYTES >> 10} KiB")
    classes = fields.items("classes", limit=MAX_CLASSES)
    if not all(isinstance(label, str) for label in classes):
        raise MalformedFile("task: classes must be texts")
    try:
        if classes:
            check_classes(classes)
    except DataError as error:
        raise MalformedFile(f"task: {error}") from None
    shape = fields.items("input_shape", limit=MAX_DIMENSIONS)
    if not shape or not all(type(n) is int and 1 <= n <= MAX_INPUT_ELEMENTS for n in shape):
        raise MalformedFile(f"task: input_shape must be 1 to {MAX_DIMENSIONS} sizes")
    if math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise MalformedFile(f"task: an example has more than {MAX_INPUT_ELEMENTS} numbers")
    preprocessing = fields.mapping("preprocessing")
    spec = TaskSpec(
        architecture=Architecture(name, arguments, file.source),
        classes=tuple(classes),
        input_shape=tuple(shape),
        preprocessing=_bounded(preprocessing, "preprocessing", MAX_PREPROCESSING_BYTES),
    )
    if fields.extra or parts.extra or spec.digest != file.digest:
        raise MalformedFile("task: it has fields that this version does not know: use the same version")
    return spec


def _bounded(value: dict[str, Any], what: str, limit_bytes: int) -> dict[str, Any]:
    try:
        size = len(canonical_json(value))
    except (ValueError, RecursionError):
        raise MalformedFile(f"task: {what} hold what JSON cannot") from None
    if size > limit_bytes:
        raise MalformedFile(f"task: {what} are larger than {limit_bytes} bytes")
    return value


def initial_seed(digest: str) -> int:
    """The seed of the first weights, from the task digest: peers that start alone start alike.

    63 bits, so that `torch.manual_seed` takes it.
    """
    return int(digest[:16], 16) >> 1
