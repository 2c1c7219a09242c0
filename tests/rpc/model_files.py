"""Published models without torch: safetensors files written byte by byte, and the task they are of."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl_state import atomic, manifest
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import METADATA_KEY, Manifest
from p2pfl_state.taskfile import TaskFile, write_task


def make_task(name: str = "cnn") -> TaskFile:
    """A task; another name gives another task."""
    architecture: dict[str, Any] = {"name": name, "arguments": {}, "source_sha256": None}
    return TaskFile({"architecture": architecture, "classes": ["a", "b"], "input_shape": [1, 28, 28]}, None)


TASK = make_task()


@dataclass(frozen=True)
class ModelFile:
    """The bytes of one published model and what is true of them."""

    data: bytes
    manifest: Manifest

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def make_model(
    seed: int = 0,
    size_bytes: int = 3_000_000,
    *,
    version: int = 1,
    task: str = TASK.digest,
    weights: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ModelFile:
    """A sound file with `size_bytes` of weights that `seed` names.

    `weights`: a digest to claim instead of the true one. `extra`: further fields of the manifest.
    """
    tensor = random.Random(seed).randbytes(size_bytes)
    true_digest = manifest.weights_digest([("w", "U8", (size_bytes,), [tensor])])
    said = Manifest(version, 100 + seed, task, weights or true_digest, extra=extra or {})
    return ModelFile(assemble(said, tensor), said)


def assemble(said: Manifest, tensor: bytes) -> bytes:
    """A safetensors file of one tensor with this manifest."""
    return header_bytes(said, len(tensor)) + tensor


def header_bytes(said: Manifest, size_bytes: int) -> bytes:
    """All of a safetensors file but its one tensor of `size_bytes`."""
    entry = {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}
    header = json.dumps({"__metadata__": {METADATA_KEY: said.encode()}, "w": entry}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def publish(state: StateDir, model: ModelFile, task: TaskFile = TASK) -> ModelFile:
    """Puts `model` and its task where a trainer does."""
    write_task(state.task, task)
    atomic.write_bytes(state.model, model.data, durable=False)
    return model


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
