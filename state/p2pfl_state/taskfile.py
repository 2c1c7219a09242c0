"""`task.json`: the task that a trainer publishes beside its weights, so that a newcomer can join it.

The daemon serves and checks it without understanding it: the digest of the descriptor names the task,
and the digest of the source is part of the descriptor. Source is data here; whether it is ever run is
the receiving operator's decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION
from p2pfl_state.manifest import canonical_json

MAX_TASK_BYTES = 1 << 20


@dataclass(frozen=True)
class TaskFile:
    """A task's descriptor (what its digest is of) and, for an architecture that is code, its source."""

    descriptor: Mapping[str, Any]
    """JSON object; `architecture.source_sha256` is the digest of `source`, or null."""
    source: str | None

    @property
    def digest(self) -> str:
        """SHA-256 of the descriptor's canonical JSON, in hex: the task digest."""
        return hashlib.sha256(canonical_json(self.descriptor).encode()).hexdigest()

    def encode(self) -> bytes:
        value = {"contract": CONTRACT_VERSION, "descriptor": dict(self.descriptor), "source": self.source}
        return atomic.encode_json(value)

    @classmethod
    def parse(cls, data: bytes) -> TaskFile:
        """Raises `MalformedFile`, also when the source is not the one that the descriptor names, or when
        it would be too large once it is written: characters beyond ASCII then take more bytes."""
        if len(data) > MAX_TASK_BYTES:
            raise MalformedFile(f"task.json is larger than {MAX_TASK_BYTES} bytes")
        value = parse_object(data, "task.json")
        fields = Fields(value, "task.json")
        fields.contract()
        descriptor = fields.mapping("descriptor")
        source = None if value.get("source") is None else fields.text("source", limit=MAX_TASK_BYTES)
        architecture = descriptor.get("architecture")
        if not isinstance(architecture, dict):
            raise MalformedFile("task.json: the descriptor names no architecture")
        digest = None if source is None else hashlib.sha256(source.encode()).hexdigest()
        if architecture.get("source_sha256") != digest:
            raise MalformedFile("task.json: the source is not the one that the descriptor names")
        task = cls(descriptor, source)
        if len(task.encode()) > MAX_TASK_BYTES:
            raise MalformedFile(f"task.json is larger than {MAX_TASK_BYTES} bytes when it is written again")
        return task


def read_task(path: Path) -> TaskFile | None:
    """The task at `path`, or None when there is none. Raises `StateError`."""
    data = atomic.read_bounded(path, MAX_TASK_BYTES)
    return None if data is None else TaskFile.parse(data)


def write_task(path: Path, task: TaskFile) -> None:
    """Replaces `path`. Raises `DirectoryUnusable`, `MalformedFile` for one that breaks the contract."""
    data = task.encode()
    TaskFile.parse(data)
    atomic.write_bytes(path, data)
