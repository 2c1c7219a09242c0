"""One model on its way into a file: checked, hashed as it comes, and verified at its end."""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2pfl_state.errors import MalformedFile
from p2pfl_state.manifest import read_header

from p2pfl_net.core.events import FailureKind
from p2pfl_net.errors import MalformedModel, PeerFailed
from p2pfl_net.wire import models

DISK_RESERVE_BYTES = 64 << 20
"""What transfers leave free on the disk, all of them together."""

_READING = threading.Lock()
"""One tensor file's header at a time: of the largest, tens of megabytes in memory."""
LEAST_CHUNK_BYTES = 4096
MAX_SMALL_CHUNKS = 64
"""So many chunks of a transfer may be smaller than that, on the whole. Ours have 16 KiB or more, but for the
last."""

MAX_UNHASHED = 2
"""Chunks that wait to be hashed: enough to keep both threads busy, and at 2 MiB each little memory."""

Progress = Callable[[int, models.ModelHeader], None]
"""(bytes received so far, header), when the header is accepted and after each chunk."""


class DiskRoom:
    """What the downloads under way will still write: each alone would fit where all do not. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._downloads: list[Download] = []

    @contextmanager
    def reserved(self, download: Download, header: models.ModelHeader) -> Iterator[None]:
        """Room for the rest of a file. Raises `PeerFailed` when there is not so much."""
        with self._lock:
            others = sum(other.missing_bytes for other in self._downloads)
            free = shutil.disk_usage(download.draft.parent).free - others
            if header.offset == 0:
                free += download.part_bytes()  # it begins anew
            if header.size_bytes - header.offset > free - DISK_RESERVE_BYTES:
                reason = f"no space left for a model of {header.size_bytes} bytes: free some disk space"
                raise PeerFailed(FailureKind.LOCAL, reason)
            download.begin(header)
            self._downloads.append(download)
        try:
            yield
        finally:
            with self._lock:
                self._downloads.remove(download)


@dataclass(slots=True, eq=False)
class Download:
    """The state of one file over several attempts."""

    draft: Path
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    received: int = 0
    size_bytes: int = 0
    file_digest: str | None = None
    heard_at: float = field(default_factory=time.monotonic)
    """When something last came (`time.monotonic`), or when it began."""

    @property
    def missing_bytes(self) -> int:
        return max(0, self.size_bytes - self.received)

    def part_bytes(self) -> int:
        """What is on the disk of an earlier attempt."""
        try:
            return self.draft.stat().st_size
        except OSError:
            return 0

    def resume(self, received: int, file_digest: str) -> None:
        """Goes on with what an earlier run left. Raises `PeerFailed` when it is not there."""
        left = received
        with open(self.draft, "rb") as file:
            while left > 0:
                piece = file.read(min(left, models.CHUNK_BYTES))
                if not piece:
                    raise PeerFailed(FailureKind.LOCAL, f"{self.draft} is shorter than it was")
                self.digest.update(piece)
                left -= len(piece)
        self.received, self.file_digest = received, file_digest
        self.heard_at = time.monotonic()

    def begin(self, header: models.ModelHeader) -> None:
        """A header was accepted: what follows goes on where the last attempt broke off, or begins anew."""
        if header.offset == 0:
            self.digest = hashlib.sha256()
            self.received = 0
        self.size_bytes, self.file_digest = header.size_bytes, header.file_digest

    def receive(self, parts: Iterable[bytes], header: models.ModelHeader, progress: Progress) -> None:
        """Writes and hashes the chunks of one call.

        Raises `MalformedModel`, `MalformedMessage`, and `PeerFailed` when the file cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if header.offset == 0 else 0)
        try:
            handle = os.open(self.draft, flags, 0o644)
            try:
                with _hashing(self.digest) as hash_later:
                    for number, part in enumerate(parts):
                        payload = models.chunk_payload(part)
                        if number > MAX_SMALL_CHUNKS + (self.received - header.offset) // LEAST_CHUNK_BYTES:
                            raise MalformedModel("sends its bytes in pieces that are too small")
                        if self.received + len(payload) > header.size_bytes:
                            raise MalformedModel("sends more bytes than announced")
                        _write_all(handle, payload, self.received)
                        hash_later(payload)
                        self.received += len(payload)
                        self.heard_at = time.monotonic()
                        progress(self.received, header)
            finally:
                os.close(handle)
        except OSError as error:
            raise PeerFailed(FailureKind.LOCAL, f"{self.draft}: {error.strerror}") from error
        if self.received != header.size_bytes:
            raise MalformedModel(f"ends after {self.received} of {header.size_bytes} bytes")

    def verify(self, header: models.ModelHeader) -> None:
        """The whole file: digest as announced, a sound safetensors header, the announced manifest.

        Raises `MalformedModel`.
        """
        if self.digest.hexdigest() != header.file_digest:
            raise MalformedModel("the bytes do not have the announced digest")
        try:
            with _READING:
                found = read_header(self.draft)
            if found.manifest() != header.manifest:
                raise MalformedModel("the manifest in the file is not the announced one")
        except MalformedFile as error:
            raise MalformedModel(str(error)) from None


@contextmanager
def _hashing(digest: hashlib._Hash) -> Iterator[Callable[[memoryview], None]]:
    """Yields what takes bytes for `digest`; it has them all when this is left, however it is left.

    A thread of its own, for to hash takes as long as to receive and to write: neither waits for the other.
    """
    waiting: queue.Queue[memoryview | None] = queue.Queue(MAX_UNHASHED)

    def work() -> None:
        while (payload := waiting.get()) is not None:
            digest.update(payload)

    worker = threading.Thread(target=work, name="hash", daemon=True)
    worker.start()
    try:
        yield waiting.put
    finally:
        waiting.put(None)
        worker.join()


def _write_all(handle: int, payload: memoryview, offset: int) -> None:
    while payload:
        written = os.pwrite(handle, payload, offset)
        payload = payload[written:]
        offset += written
