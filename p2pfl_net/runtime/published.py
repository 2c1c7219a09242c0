"""What this peer's trainer has published, as the server reads it. Thread-safe."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from p2pfl_state import atomic
from p2pfl_state.errors import StateError
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest, parse_header
from p2pfl_state.taskfile import MAX_TASK_BYTES, TaskFile

from p2pfl_net.core.events import FailureKind
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.serving import ServedFile

PREPARED_BYTES = 1 << 30
"""Models up to this size are hashed when they are published (a second at most), larger ones when fetched."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Tells one content of a path from the next: every publication is a new inode."""

    inode: int
    size_bytes: int
    modified_ns: int


def stamp_of(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_ino, status.st_size, status.st_mtime_ns)


class PublishedModel:
    """Opens the published model, checking it once a version."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._checked: tuple[FileStamp, Manifest] | None = None
        self._hashed: tuple[FileStamp, str] | None = None

    def stamp(self) -> FileStamp | None:
        """Changes with every publication; None: nothing is published."""
        try:
            return stamp_of(self._state.model.stat())
        except OSError:
            return None

    def manifest(self) -> Manifest | None:
        """The manifest of the model published now. Raises `MalformedFile` for one that is damaged."""
        handle = self._open()
        if handle is None:
            return None
        try:
            return self._manifest_of(handle)
        finally:
            os.close(handle)

    def prepare(self) -> None:
        """Hashes a new publication before its first fetch, unless it is so large that few may want it."""
        handle = self._open()
        if handle is None:
            return
        try:
            if os.fstat(handle).st_size <= PREPARED_BYTES:
                self._digest_of(handle)
        finally:
            os.close(handle)

    @contextmanager
    def open_model(self) -> Iterator[ServedFile | None]:
        """The published model, open for as long as it is served. A damaged one is not served."""
        handle = self._open()
        if handle is None:
            yield None
            return
        try:
            try:
                manifest = self._manifest_of(handle)
            except StateError as error:
                raise PeerFailed(FailureKind.ABSENT, f"the published model is damaged: {error}") from error
            yield ServedFile(handle, manifest, os.fstat(handle).st_size, self._digest_of(handle))
        finally:
            os.close(handle)

    def task(self) -> bytes | None:
        try:
            data = atomic.read_bounded(self._state.task, MAX_TASK_BYTES)
            if data is not None:
                TaskFile.parse(data)
        except StateError:
            return None
        return data

    def _open(self) -> int | None:
        try:
            return os.open(self._state.model, os.O_RDONLY)
        except OSError:
            return None

    def _manifest_of(self, handle: int) -> Manifest:
        stamp = stamp_of(os.fstat(handle))
        with self._lock:
            if self._checked is not None and self._checked[0] == stamp:
                return self._checked[1]
        with open(os.dup(handle), "rb") as file:
            manifest = parse_header(file, stamp.size_bytes).manifest()
        with self._lock:
            self._checked = (stamp, manifest)
        return manifest

    def _digest_of(self, handle: int) -> str:
        """SHA-256 of the file, computed once a version; others wait for the same computation."""
        stamp = stamp_of(os.fstat(handle))
        with self._hashing:
            if self._hashed is not None and self._hashed[0] == stamp:
                return self._hashed[1]
            digest = hashlib.sha256()
            offset = 0
            while piece := os.pread(handle, _READ_BYTES, offset):
                digest.update(piece)
                offset += len(piece)
            self._hashed = (stamp, digest.hexdigest())
            return self._hashed[1]
