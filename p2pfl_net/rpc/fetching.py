"""The client's end of a model transfer: into a file, hashed on the way, resumed where it broke off."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError
from p2pfl_proto.v1 import models_pb2 as pb
from p2pfl_state.errors import MalformedFile
from p2pfl_state.manifest import read_header
from p2pfl_state.taskfile import TaskFile

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.errors import MalformedModel, PeerFailed
from p2pfl_net.rpc.client import Channels, resolve
from p2pfl_net.rpc.options import TRANSFER_OPTIONS
from p2pfl_net.rpc.status import failure_of, is_unconnected
from p2pfl_net.wire import models

FETCH_MODEL_METHOD = "/p2pfl.v1.Models/FetchModel"
FETCH_TASK_METHOD = "/p2pfl.v1.Models/FetchTask"
TASK_TIMEOUT_S = 10.0
RETRY_PAUSE_S = 0.2
DISK_RESERVE_BYTES = 64 << 20
"""What a transfer leaves free on the disk."""

Progress = Callable[[int, models.ModelHeader], None]
"""(bytes received so far, header), when the header is accepted and after each chunk."""


class Cancellation:
    """Ends a transfer from another thread, at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._call: grpc.Call | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled.set()
            call = self._call
        if call is not None:
            call.cancel()  # type: ignore[no-untyped-call]

    def guard(self, call: grpc.Call | None) -> None:
        """Names the call that a cancellation must end."""
        with self._lock:
            self._call = call
            cancelled = self._cancelled.is_set()
        if cancelled and call is not None:
            call.cancel()  # type: ignore[no-untyped-call]

    def wait(self, seconds: float) -> bool:
        """Waits for a cancellation; whether there is one."""
        return self._cancelled.wait(seconds)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to fetch, and its bounds."""

    addresses: tuple[Address, ...]
    """Tried in turn."""
    timeout_s: float
    to: PeerId | None = None
    task: TaskDigest | None = None
    have_weights: tuple[str, ...] = ()
    max_bytes: int = 1 << 40
    patience_s: float = 20.0
    """How long a broken transfer is tried again without a new byte."""


@dataclass(slots=True)
class _Download:
    """The state of one file over several attempts."""

    draft: Path
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    received: int = 0
    file_digest: str | None = None

    def restart(self) -> None:
        self.digest = hashlib.sha256()
        self.received = 0


class ModelClient:
    """Fetches models and tasks. Thread-safe; one transfer a thread."""

    def __init__(self) -> None:
        self._channels = Channels(TRANSFER_OPTIONS, limit=64)

    def close(self) -> None:
        self._channels.close()

    def fetch(
        self,
        wanted: Wanted,
        draft: Path,
        cancellation: Cancellation,
        progress: Progress,
        resume: tuple[int, str] | None = None,
    ) -> models.ModelHeader:
        """Fetches a model into `draft` and verifies size, digest and manifest.

        `resume`: (bytes already in `draft`, digest of the file that they are of). The header that is
        returned may say `not_modified`: then `draft` was not written. Raises `PeerFailed`,
        `MalformedModel`, `MalformedMessage`; `draft` then may hold a part, to be resumed or deleted.
        """
        download = _Download(draft)
        if resume is not None:
            download.received, download.file_digest = resume
            _hash_part(download)
        deadline = time.monotonic() + wanted.timeout_s
        progressed_at, seen = time.monotonic(), download.received
        turn = 0
        while True:
            address = wanted.addresses[turn % len(wanted.addresses)]
            turn += 1
            try:
                header = self._attempt(wanted, address, download, cancellation, progress, deadline)
            except PeerFailed as error:
                now = time.monotonic()
                if download.received > seen:
                    progressed_at, seen = now, download.received
                out_of_addresses = turn >= len(wanted.addresses) and download.file_digest is None
                out_of_patience = now - progressed_at > wanted.patience_s or now >= deadline
                if error.kind is not FailureKind.UNREACHABLE or out_of_addresses or out_of_patience:
                    raise
                if cancellation.wait(RETRY_PAUSE_S):
                    raise
                continue
            if not header.not_modified:
                _verify(download, header)
            return header

    def _attempt(
        self,
        wanted: Wanted,
        address: Address,
        download: _Download,
        cancellation: Cancellation,
        progress: Progress,
        deadline: float,
    ) -> models.ModelHeader:
        """One call: receives from where the last one broke off, or anew if the file is another."""
        request = models.ModelRequest(
            wanted.to, wanted.task, download.received, download.file_digest, wanted.have_weights
        )
        timeout_s = max(0.01, deadline - time.monotonic())
        literal = resolve(address)
        method = self._channels.to(literal).unary_stream(
            FETCH_MODEL_METHOD, pb.FetchModelRequest.SerializeToString, None
        )
        try:
            call = method(models.encode_request(request), timeout=timeout_s)
            cancellation.guard(call)
            try:
                first = next(iter(call), None)
                if first is None:
                    raise MalformedModel("a transfer without a header")
                header = models.decode_header(first)
                _check_header(header, wanted, download)
                if not header.not_modified:
                    _receive(call, header, download, progress)
            finally:
                cancellation.guard(None)
                call.cancel()  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            if is_unconnected(error):
                self._channels.drop(literal)
            raise failure_of(error, timeout_s) from None
        except ValueError as error:  # the channel was closed in this instant
            raise PeerFailed(FailureKind.UNREACHABLE, str(error)) from None
        return header

    def fetch_task(
        self,
        address: Address,
        to: PeerId,
        wanted: TaskDigest,
        *,
        timeout_s: float,
        cancellation: Cancellation,
    ) -> TaskFile:
        """The task that a peer serves, checked by its digest. Raises as `fetch`."""
        method = self._channels.to(resolve(address)).unary_unary(
            FETCH_TASK_METHOD, pb.FetchTaskRequest.SerializeToString, pb.FetchTaskReply.FromString
        )
        try:
            call = method.future(pb.FetchTaskRequest(to=bytes.fromhex(to)), timeout=timeout_s)
            cancellation.guard(call)
            try:
                reply = call.result()
            finally:
                cancellation.guard(None)
        except grpc.RpcError as error:
            raise failure_of(error, timeout_s) from None
        except grpc.FutureCancelledError:
            raise PeerFailed(FailureKind.UNREACHABLE, "cancelled") from None
        except (DecodeError, ValueError) as error:
            raise PeerFailed(FailureKind.UNREACHABLE, str(error)) from None
        return models.decode_task(reply, wanted)


def _check_header(header: models.ModelHeader, wanted: Wanted, download: _Download) -> None:
    """Refuses, before a byte is written, what was not asked for or does not fit on the disk."""
    if wanted.to is not None and header.peer_id != wanted.to:
        raise PeerFailed(FailureKind.WRONG_PEER, "another peer lives there")
    if wanted.task is not None and header.manifest.task != wanted.task:
        raise MalformedModel("a model of another task than was asked for")
    if header.not_modified:
        if header.manifest.weights not in wanted.have_weights:
            raise MalformedModel("says that we have weights which we never named")
        return
    if header.size_bytes > wanted.max_bytes:
        raise MalformedModel(f"a model of {header.size_bytes} bytes, over the bound of {wanted.max_bytes}")
    if header.offset not in (0, download.received):
        raise MalformedModel("a transfer that begins where nobody asked")
    free = shutil.disk_usage(download.draft.parent).free
    if header.size_bytes - header.offset > free - DISK_RESERVE_BYTES:
        reason = f"no space left for a model of {header.size_bytes} bytes: free some disk space"
        raise PeerFailed(FailureKind.LOCAL, reason)


def _receive(
    call: grpc.CallIterator[bytes], header: models.ModelHeader, download: _Download, progress: Progress
) -> None:
    """Writes and hashes the chunks of one call."""
    if header.offset == 0:
        download.restart()
    download.file_digest = header.file_digest
    progress(download.received, header)
    try:
        handle = os.open(
            download.draft, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if header.offset == 0 else 0), 0o644
        )
        try:
            for part in call:
                payload = models.chunk_payload(part)
                if download.received + len(payload) > header.size_bytes:
                    raise MalformedModel("sends more bytes than announced")
                _write_all(handle, payload, download.received)
                download.digest.update(payload)
                download.received += len(payload)
                progress(download.received, header)
        finally:
            os.close(handle)
    except OSError as error:
        raise PeerFailed(FailureKind.LOCAL, f"{download.draft}: {error.strerror}") from error
    if download.received != header.size_bytes:
        raise MalformedModel(f"ends after {download.received} of {header.size_bytes} bytes")


def _write_all(handle: int, payload: memoryview, offset: int) -> None:
    while payload:
        written = os.pwrite(handle, payload, offset)
        payload = payload[written:]
        offset += written


def _hash_part(download: _Download) -> None:
    """Hashes the part that is already on disk."""
    left = download.received
    with open(download.draft, "rb") as file:
        while left > 0:
            piece = file.read(min(left, models.CHUNK_BYTES))
            if not piece:
                raise PeerFailed(FailureKind.LOCAL, f"{download.draft} is shorter than it was")
            download.digest.update(piece)
            left -= len(piece)


def _verify(download: _Download, header: models.ModelHeader) -> None:
    """The whole file: digest as announced, a sound safetensors header, the announced manifest."""
    if download.digest.hexdigest() != header.file_digest:
        raise MalformedModel("the bytes do not have the announced digest")
    try:
        if read_header(download.draft).manifest() != header.manifest:
            raise MalformedModel("the manifest in the file is not the announced one")
    except MalformedFile as error:
        raise MalformedModel(str(error)) from None
