"""The server's end of a model transfer: a header, then the file's bytes as they lie on disk."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from p2pfl_state.manifest import Manifest

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.ledger import Upload
from p2pfl_net.wire import models
from p2pfl_net.wire.versions import Statement


@dataclass(frozen=True, slots=True)
class ServedFile:
    """An open published model. The handle keeps its bytes, also when the trainer replaces the file."""

    handle: int
    manifest: Manifest
    size_bytes: int
    file_digest: str
    statement: Statement
    """This peer's signed word of the version."""


class ModelSource(Protocol):
    """Where the server gets what this peer has published. Thread-safe."""

    def open_model(self) -> AbstractContextManager[ServedFile | None]:
        """The model published now, open; None when there is none."""
        ...

    def task(self) -> bytes | None:
        """The content of the published `task.json`. Raises `PeerFailed` when it is withdrawn."""
        ...


def stream_model(
    me: PeerId,
    source: ModelSource,
    request: models.ModelRequest,
    upload: Upload,
    chunk_bytes: int = models.CHUNK_BYTES,
) -> Iterator[bytes]:
    """The parts of one transfer in wire form, chunks of up to `chunk_bytes`, counted in `upload`. Raises
    `PeerFailed` when there is nothing to send."""
    if request.to is not None and request.to != me:
        raise PeerFailed(FailureKind.WRONG_PEER, "another peer lives here")
    with source.open_model() as served:
        if served is None:
            raise PeerFailed(FailureKind.ABSENT, "no model is published here yet")
        if request.task is not None and served.manifest.task != request.task:
            raise PeerFailed(FailureKind.ABSENT, "the model published here is of another task")
        not_modified = served.manifest.weights in request.have_weights
        offset = request.offset if request.file_digest == served.file_digest else 0
        offset = min(offset, served.size_bytes)
        header = models.ModelHeader(
            me,
            served.manifest,
            served.size_bytes,
            served.file_digest,
            offset,
            not_modified,
            served.statement,
        )
        upload.header = header
        yield models.encode_header(header)
        if not not_modified:
            yield from _chunks(served, offset, upload, chunk_bytes)


def _chunks(served: ServedFile, offset: int, upload: Upload, chunk_bytes: int) -> Iterator[bytes]:
    """The bytes from `offset` on, each chunk in the wire form of its message."""
    for size in models.chunk_sizes(offset, served.size_bytes, chunk_bytes):
        part = _read_behind(models.chunk_prefix(size), served.handle, size, offset)
        upload.sent_bytes += size
        yield part
        offset += size


def _read_behind(prefix: bytes, handle: int, size: int, offset: int) -> bytes:
    """`prefix` and bytes of the file, copied once on their way from it: `BytesIO` gives its buffer away."""
    whole = io.BytesIO()
    whole.seek(len(prefix) + size - 1)
    whole.write(b"\0")  # makes room
    whole.seek(0)
    whole.write(prefix)
    with whole.getbuffer() as buffer:
        if os.preadv(handle, [buffer[len(prefix) :]], offset) < size:
            raise PeerFailed(FailureKind.LOCAL, "the published file became shorter")
    return whole.getvalue()
