"""What this peer's trainer has published, as the server reads it. Thread-safe."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile, StateError
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest, parse_header
from p2pfl_state.taskfile import MAX_TASK_BYTES, TaskFile
from p2pfl_state.withdrawal import is_withdrawn

from p2pfl_net.core.events import FailureKind
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.serving import ServedFile
from p2pfl_net.runtime.versions import Signer
from p2pfl_net.wire.versions import Statement

HASH_WAIT_S = 1.0
"""How long a fetch waits for the hash of a new publication before it is told to come again: less than what
counts as silence."""
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

    def __init__(self, state: StateDir, signer: Signer) -> None:
        self._state = state
        self._signer = signer
        self._lock = threading.Lock()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._closed = threading.Event()
        self._checked: tuple[FileStamp, Manifest, Statement] | None = None
        self._hash: tuple[FileStamp, Future[str]] | None = None

    @property
    def is_withdrawn(self) -> bool:
        """Whether nothing may be served, whatever the trainer publishes."""
        return is_withdrawn(self._state)

    def stamp(self) -> FileStamp | None:
        """Changes with every publication; None: nothing is published, or it is withdrawn."""
        if self.is_withdrawn:
            return None
        try:
            return stamp_of(self._state.model.stat())
        except OSError:
            return None

    def manifest(self) -> Manifest | None:
        """The manifest of the model published now. Raises `StateError` for one that cannot be served."""
        opened = self._open_checked()
        if opened is None:
            return None
        handle, manifest, _ = opened
        os.close(handle)
        return manifest

    def prepare(self) -> None:
        """Begins to hash a new publication, before its first fetch. Does not wait."""
        handle = self._open()
        if handle is not None:
            try:
                self._hash_of(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Ends a computation under way."""
        self._closed.set()
        self._hasher.shutdown(cancel_futures=True)

    @contextmanager
    def open_model(self) -> Iterator[ServedFile | None]:
        """The published model, open for as long as it is served. A damaged one is not served."""
        self._refuse_withdrawn()
        handle = None
        try:
            opened = self._open_checked()
            if opened is None:
                yield None
                return
            handle, manifest, statement = opened
            yield ServedFile(handle, manifest, os.fstat(handle).st_size, self._digest_of(handle), statement)
        except StateError as error:
            raise PeerFailed(FailureKind.ABSENT, f"the published model is not served: {error}") from error
        finally:
            if handle is not None:
                os.close(handle)

    def task(self) -> bytes | None:
        self._refuse_withdrawn()
        try:
            data = atomic.read_bounded(self._state.task, MAX_TASK_BYTES)
            if data is not None:
                TaskFile.parse(data)
        except StateError:
            return None
        return data

    def _refuse_withdrawn(self) -> None:
        if self.is_withdrawn:
            raise PeerFailed(FailureKind.ABSENT, "the model published here is withdrawn")

    def _open(self) -> int | None:
        if self.is_withdrawn:
            return None
        try:
            return os.open(self._state.model, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise atomic.unusable(self._state.model, error) from error

    def _open_checked(self) -> tuple[int, Manifest, Statement] | None:
        """The model published now, and our word on it. Raises `StateError` for what cannot be served."""
        while True:
            handle = self._open()
            if handle is None:
                return None
            with ExitStack() as stack:
                stack.callback(os.close, handle)
                try:
                    found = self._manifest_of(handle)
                except MalformedFile:
                    if self.stamp() in (None, stamp_of(os.fstat(handle))):
                        raise
                    continue  # a newer one may have been signed meanwhile, and no older is
                stack.pop_all()
            return handle, *found

    def _manifest_of(self, handle: int) -> tuple[Manifest, Statement]:
        """What is published, and our word on it. Raises `StateError` for what cannot be served."""
        stamp = stamp_of(os.fstat(handle))
        with self._lock:
            if self._checked is not None and self._checked[0] == stamp:
                return self._checked[1:]
        with open(os.dup(handle), "rb") as file:
            manifest = parse_header(file, stamp.size_bytes).manifest()
        statement = self._signer.sign(manifest)
        with self._lock:
            self._checked = (stamp, manifest, statement)
        return manifest, statement

    def _digest_of(self, handle: int) -> str:
        """SHA-256 of the file. Raises `PeerFailed` when it is not known yet."""
        try:
            return self._hash_of(handle).result(HASH_WAIT_S)
        except (FutureTimeout, CancelledError):
            reason = "the model published here was not hashed yet, try again soon"
            raise PeerFailed(FailureKind.BUSY, reason) from None
        except OSError as error:
            with self._lock:
                self._hash = None
            raise PeerFailed(FailureKind.LOCAL, f"the published model cannot be read: {error}") from error

    def _hash_of(self, handle: int) -> Future[str]:
        """The hash of the file, computed once a version in a thread of its own."""
        stamp = stamp_of(os.fstat(handle))
        with self._lock:
            if self._hash is None or self._hash[0] != stamp:
                if self._hash is not None:
                    self._hash[1].cancel()
                copy = os.dup(handle)
                future = self._hasher.submit(self._compute, copy)
                future.add_done_callback(lambda _: os.close(copy))
                self._hash = (stamp, future)
            return self._hash[1]

    def _compute(self, handle: int) -> str:
        digest = hashlib.sha256()
        offset = 0
        while piece := os.pread(handle, _READ_BYTES, offset):
            if self._closed.is_set():
                raise CancelledError
            digest.update(piece)
            offset += len(piece)
        return digest.hexdigest()
