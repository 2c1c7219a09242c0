"""The client's end of a model transfer: whom to call, how long to wait, what is tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError
from p2pfl_proto.v1 import models_pb2 as pb
from p2pfl_state.manifest import Manifest
from p2pfl_state.taskfile import TaskFile

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.errors import MalformedMessage, MalformedModel, PeerFailed
from p2pfl_net.rpc.client import resolve
from p2pfl_net.rpc.connections import Connections, Credentials
from p2pfl_net.rpc.download import DiskRoom, Download, Progress
from p2pfl_net.rpc.keys import check_signature
from p2pfl_net.rpc.options import TRANSFER_OPTIONS
from p2pfl_net.rpc.status import is_unproved
from p2pfl_net.wire import models, versions
from p2pfl_net.wire.versions import Statement

FETCH_MODEL_METHOD = "/p2pfl.v1.Models/FetchModel"
FETCH_TASK_METHOD = "/p2pfl.v1.Models/FetchTask"
TASK_TIMEOUT_S = 10.0
CONNECT_S = 5.0
"""For each step to a connection: who is reached only later is called again."""
RETRY_PAUSE_S = 0.2

_ELSEWHERE = (FailureKind.WRONG_PEER, FailureKind.INCOMPATIBLE)
"""Whoever answers there is not the peer that is wanted: another of its addresses may lead to it."""


class Cancellation:
    """Ends a transfer from another thread, at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._call: grpc.Call | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled.set()
        self.interrupt()

    def interrupt(self) -> None:
        """Ends the call under way; the transfer may make another."""
        with self._lock:
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
    """How long to go on, and to call again, without a new byte."""
    waits_for_busy: bool = False
    """Whether to call again also a peer that asks to be called later."""


class ModelClient:
    """Fetches models and tasks. Thread-safe; one transfer a thread."""

    def __init__(self, credentials: Credentials) -> None:
        self._connections = Connections(credentials, TRANSFER_OPTIONS, limit=64)
        self._disk = DiskRoom()

    def close(self) -> None:
        self._connections.close()

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
        download = Download(draft)
        if resume is not None:
            download.resume(*resume)
        deadline = time.monotonic() + wanted.timeout_s
        with _watched(download, wanted, cancellation) as silent:
            header = self._fetch_from_any(wanted, download, cancellation, progress, deadline, silent)
        if not header.not_modified:
            download.verify(header)
        return header

    def _fetch_from_any(
        self,
        wanted: Wanted,
        download: Download,
        cancellation: Cancellation,
        progress: Progress,
        deadline: float,
        silent: threading.Event,
    ) -> models.ModelHeader:
        """Calls one address after the other, from where the last transfer broke off, while there is hope."""
        left = [literal for address in wanted.addresses for literal in resolve(address)]
        calls = unproved = 0
        while True:
            heard_at = download.heard_at
            try:
                return self._attempt(wanted, left[0], download, cancellation, progress, deadline)
            except PeerFailed as error:
                if error.kind in _ELSEWHERE:
                    if len(left) == 1:
                        raise
                    del left[0]
                    continue
                if error.kind is FailureKind.BUSY:
                    if not wanted.waits_for_busy:
                        raise
                elif error.kind is FailureKind.UNPROVED:
                    unproved += 1
                    if unproved > len(wanted.addresses) + 1:
                        raise
                elif not error.kind.is_unreachable:
                    raise
                elif download.heard_at == heard_at:  # nothing came from there: perhaps from another
                    left.append(left.pop(0))
                    calls += 1
                if silent.is_set():
                    reason = f"no byte for {wanted.patience_s:g} s"
                    raise PeerFailed(FailureKind.UNREACHABLE, reason) from None
                now = time.monotonic()
                nobody = calls >= len(left) and download.file_digest is None
                out_of_time = now >= deadline or now - download.heard_at >= wanted.patience_s
                if nobody or out_of_time or cancellation.wait(RETRY_PAUSE_S):
                    raise

    def _attempt(
        self,
        wanted: Wanted,
        address: Address,
        download: Download,
        cancellation: Cancellation,
        progress: Progress,
        deadline: float,
    ) -> models.ModelHeader:
        """One call: receives from where the last one broke off, or anew if the file is another."""
        request = models.ModelRequest(
            wanted.to, wanted.task, download.received, download.file_digest, wanted.have_weights
        )
        timeout_s = max(0.01, deadline - time.monotonic())
        connection = self._connections.to(address, wanted.to, min(timeout_s, CONNECT_S))
        method = connection.channel.unary_stream(
            FETCH_MODEL_METHOD, pb.FetchModelRequest.SerializeToString, None
        )
        try:
            token = connection.token(min(timeout_s, CONNECT_S))
            call = method(models.encode_request(request), timeout=timeout_s, metadata=token)
            cancellation.guard(call)
            try:
                first = next(iter(call), None)
                if first is None:
                    raise MalformedModel("a transfer without a header")
                header = models.decode_header(first, check_signature)
                _check_header(header, connection.peer_id, wanted, download)
                if not header.not_modified:
                    with self._disk.reserved(download, header):
                        progress(download.received, header)
                        download.receive(call, header, progress)
            finally:
                cancellation.guard(None)
                call.cancel()  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            if is_unproved(error):  # as after its restart: with a new token in the next attempt
                connection.forget_token()
            raise self._connections.failed(address, error, timeout_s) from None
        except ValueError as error:  # the channel was closed in this instant
            raise PeerFailed(FailureKind.UNREACHABLE, str(error)) from None
        return header

    def fetch_version(
        self, address: Address, to: PeerId, publisher: PeerId, version: int, *, timeout_s: float
    ) -> tuple[Statement, Manifest]:
        """What a peer has seen of a version. Raises `PeerFailed`, `MalformedMessage`."""
        literal = resolve(address)[0]
        connection = self._connections.to(literal, to, timeout_s)
        try:
            data = connection.unary(versions.FETCH_VERSION_METHOD)(
                versions.encode_question(publisher, version),
                timeout=timeout_s,
                metadata=connection.token(timeout_s),
            )
        except grpc.RpcError as error:
            if is_unproved(error):
                connection.forget_token()
            raise self._connections.failed(literal, error, timeout_s) from None
        except ValueError as error:  # the channel was closed in this instant
            raise PeerFailed(FailureKind.UNREACHABLE, str(error)) from None
        statement, manifest = versions.decode_answer(data, check_signature)
        if (statement.publisher, statement.version) != (publisher, version):
            raise MalformedMessage("another version than was asked for")
        return statement, manifest

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
        literal = resolve(address)[0]
        connection = self._connections.to(literal, to, timeout_s)
        method = connection.channel.unary_unary(
            FETCH_TASK_METHOD, pb.FetchTaskRequest.SerializeToString, pb.FetchTaskReply.FromString
        )
        try:
            token = connection.token(timeout_s)
            call = method.future(pb.FetchTaskRequest(to=bytes.fromhex(to)), timeout=timeout_s, metadata=token)
            cancellation.guard(call)
            try:
                reply = call.result()
            finally:
                cancellation.guard(None)
        except grpc.RpcError as error:
            if is_unproved(error):
                connection.forget_token()
            raise self._connections.failed(literal, error, timeout_s) from None
        except grpc.FutureCancelledError:
            raise PeerFailed(FailureKind.UNREACHABLE, "cancelled") from None
        except (DecodeError, ValueError) as error:
            raise PeerFailed(FailureKind.UNREACHABLE, str(error)) from None
        return models.decode_task(reply, wanted)


@contextmanager
def _watched(download: Download, wanted: Wanted, cancellation: Cancellation) -> Iterator[threading.Event]:
    """Ends the call in which nothing has come for `patience_s`: gRPC knows only a time-out for the whole of
    it. The event says that it was so."""
    silent, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(max(0.0, download.heard_at + wanted.patience_s - time.monotonic())):
            if time.monotonic() >= download.heard_at + wanted.patience_s:
                silent.set()
                cancellation.interrupt()
                return

    if wanted.patience_s >= wanted.timeout_s:
        yield silent
        return
    watcher = threading.Thread(target=watch, name="patience", daemon=True)
    watcher.start()
    try:
        yield silent
    finally:
        ended.set()
        watcher.join()


def _check_header(header: models.ModelHeader, sender: PeerId, wanted: Wanted, download: Download) -> None:
    """Refuses, before a byte is written, what was not asked for."""
    if header.peer_id != sender:
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
