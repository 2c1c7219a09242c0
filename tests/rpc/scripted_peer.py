"""A peer that a test plays by hand: it speaks the protocol and says what the script says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError
from p2pfl_proto.v1 import membership_pb2 as pb
from p2pfl_proto.v1 import models_pb2, versions_pb2
from p2pfl_state.manifest import Manifest

from p2pfl_net.rpc.gate import Gate
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.rpc.options import SERVER_OPTIONS
from p2pfl_net.wire import models, versions
from p2pfl_net.wire.identity import IDENTITY_SERVICE
from p2pfl_net.wire.membership import PROTOCOL_HIGHEST, PROTOCOL_LOWEST
from p2pfl_net.wire.records import SALT_BYTES, record_text
from tests.processes import PATIENCE_S, wait_for
from tests.rpc.callers import ANYBODY, CALL_TIMEOUT_S, calling, new_identity, played_by
from tests.rpc.model_files import TASK, ModelFile
from tests.rpc.peers import Peer

T = TypeVar("T")

JOIN = "/p2pfl.v1.Membership/Join"
PING = "/p2pfl.v1.Membership/Ping"

Parts = Callable[[models_pb2.FetchModelRequest, grpc.ServicerContext], Iterator[bytes]]
"""Answers a FetchModel call with raw messages."""


class Gone(Exception):
    """The caller has ended the call."""


class RpcServer:
    """A gRPC server on loopback with these handlers. A context manager."""

    def __init__(self, identity: Identity, *handlers: grpc.GenericRpcHandler[Any, Any]) -> None:
        self.identity = identity
        self.peer_id = identity.peer_id
        gate = Gate(identity.peer_id, None)
        hello = grpc.unary_unary_rpc_method_handler(lambda request, context: gate.hello(request), None, None)
        greeting = grpc.method_handlers_generic_handler(IDENTITY_SERVICE, {"Hello": hello})
        self._pool = ThreadPoolExecutor(8)
        options = [*SERVER_OPTIONS, ("grpc.max_send_message_length", -1)]
        self._server = grpc.server(self._pool, options=options)
        self._server.add_generic_rpc_handlers((greeting, *handlers))
        credentials = grpc.ssl_server_credentials([(identity.key_pem(), identity.certificate)])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()


class ScriptedPeer(RpcServer):
    """A gRPC server on loopback. A context manager; `join` makes a daemon believe in it."""

    def __init__(self, parts: Parts, *, task: bytes | Callable[[], bytes] | None = None) -> None:
        self.requests: list[models_pb2.FetchModelRequest] = []
        self._incarnation = 1
        self._left = False
        self._parts = parts
        self._task = TASK.encode() if task is None else task
        super().__init__(new_identity(), self._membership(), self._models())

    def sender(self) -> pb.Sender:
        """What it says of itself: alive until it has left, with a published model of the task."""
        return fake_sender(self.identity, self.port, incarnation=self._incarnation, left=self._left)

    def join(self, daemon: Peer) -> None:
        """Registers with a daemon."""
        call_join(daemon.port, pb.JoinRequest(sender=self.sender(), dialled=loopback(daemon.port)))

    @contextmanager
    def visiting(self, daemon: Peer) -> Iterator[None]:
        """A member of the daemon's network for a while."""
        self.join(daemon)
        daemon.wait_published([self.peer_id])
        try:
            yield
        finally:
            self._left = True
            to = bytes.fromhex(daemon.peer_id)
            call_ping(daemon.port, pb.PingRequest(sender=self.sender(), to=to, dialled=loopback(daemon.port)))

    def _refute(self, updates: Iterable[pb.PeerRecord]) -> None:
        """Outlives what is said of it: a busy machine may have let it answer late (SWIM, 4.2)."""
        for record in updates:
            if record.public_key == self.identity.public_key and record.status != pb.PEER_STATUS_ALIVE:
                held = pb.RecordContent.FromString(record.content).incarnation
                self._incarnation = max(self._incarnation, held + 1)

    def _membership(self) -> grpc.GenericRpcHandler[Any, Any]:
        def ping(request: pb.PingRequest, context: grpc.ServicerContext) -> pb.PingReply:
            self._refute(request.updates)
            return pb.PingReply(sender=self.sender())

        def join(request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinReply:
            self._incarnation += 1  # whoever joins through it may have taken it for dead
            return pb.JoinReply(sender=self.sender(), observed_host="127.0.0.1")

        return grpc.method_handlers_generic_handler(
            "p2pfl.v1.Membership",
            {
                "Join": grpc.unary_unary_rpc_method_handler(
                    join,
                    pb.JoinRequest.FromString,
                    pb.JoinReply.SerializeToString,
                ),
                "Ping": grpc.unary_unary_rpc_method_handler(
                    ping,
                    pb.PingRequest.FromString,
                    pb.PingReply.SerializeToString,
                ),
            },
        )

    def _models(self) -> grpc.GenericRpcHandler[Any, Any]:
        def fetch_model(
            request: models_pb2.FetchModelRequest, context: grpc.ServicerContext
        ) -> Iterator[bytes]:
            self.requests.append(request)
            request = models_pb2.FetchModelRequest.FromString(request.SerializeToString())
            request.to = bytes.fromhex(self.peer_id)  # what it answers is of itself, whoever was asked
            try:
                yield from self._parts(request, context)
            except Gone:
                return

        def fetch_task(
            request: models_pb2.FetchTaskRequest, context: grpc.ServicerContext
        ) -> models_pb2.FetchTaskReply:
            task = self._task if isinstance(self._task, bytes) else self._task()
            return models_pb2.FetchTaskReply(task=task)

        return grpc.method_handlers_generic_handler(
            "p2pfl.v1.Models",
            {
                "FetchModel": grpc.unary_stream_rpc_method_handler(
                    fetch_model, models_pb2.FetchModelRequest.FromString, None
                ),
                "FetchTask": grpc.unary_unary_rpc_method_handler(
                    fetch_task,
                    models_pb2.FetchTaskRequest.FromString,
                    models_pb2.FetchTaskReply.SerializeToString,
                ),
            },
        )


# what a script sends -------------------------------------------------------------------------------


def header_part(
    request: models_pb2.FetchModelRequest,
    model: ModelFile,
    *,
    peer_id: bytes | None = None,
    manifest: bytes | Manifest | None = None,
    size_bytes: int | None = None,
    file_digest: bytes | None = None,
    offset: int = 0,
    not_modified: bool = False,
) -> bytes:
    """The header of an honest transfer of `model`, but for what is given."""
    if manifest is None or isinstance(manifest, Manifest):
        manifest = (manifest or model.manifest).encode().encode()
    speaker = played_by(request.to)
    statement = statement_of(speaker, manifest, model.manifest)
    return models_pb2.ModelPart(
        header=models_pb2.ModelHeader(
            statement=statement,
            peer_id=request.to if peer_id is None else peer_id,
            manifest=manifest,
            size_bytes=len(model.data) if size_bytes is None else size_bytes,
            file_digest=bytes.fromhex(model.digest) if file_digest is None else file_digest,
            offset=offset,
            not_modified=not_modified,
        )
    ).SerializeToString()


def statement_of(speaker: Identity, manifest: bytes, said: Manifest) -> versions_pb2.VersionStatement:
    """The word of a peer that these bytes are the manifest of a version."""
    digest = versions.manifest_digest(manifest)
    text = versions.version_text(speaker.peer_id, said.version, said.weights, digest)
    return versions.encode_statement(
        versions.Statement(
            speaker.peer_id, said.version, said.weights, digest, speaker.public_key, speaker.sign(text)
        )
    )


def chunk_parts(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), models.CHUNK_BYTES):
        yield chunk_part(data[start : start + models.CHUNK_BYTES])


def chunk_part(payload: bytes) -> bytes:
    return models_pb2.ModelPart(chunk=payload).SerializeToString()


def honest(model: ModelFile) -> Parts:
    """Serves `model` as a daemon would, from the start."""

    def parts(request: models_pb2.FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield header_part(request, model)
        yield from chunk_parts(model.data)

    return parts


def stall(context: grpc.ServicerContext) -> None:
    """Waits until the caller has given up. Raises `Gone`."""
    ended = threading.Event()
    if context.add_callback(ended.set):
        assert ended.wait(PATIENCE_S), "the caller never gave up"
    raise Gone


# calls as a peer makes them ------------------------------------------------------------------------


def loopback(port: int) -> pb.Address:
    return pb.Address(host="127.0.0.1", port=port)


def fake_sender(
    identity: Identity, port: int, *, published: bool = True, incarnation: int = 1, left: bool = False
) -> pb.Sender:
    """A peer on loopback that speaks the protocol."""
    near = pb.LocalAddresses(salt=bytes(SALT_BYTES), addresses=[loopback(port)])
    content = pb.RecordContent(
        incarnation=incarnation,
        left=left,
        task=bytes.fromhex(TASK.digest) if published else b"",
        published=published,
    )
    return pb.Sender(
        protocol=pb.ProtocolRange(lowest=PROTOCOL_LOWEST, highest=PROTOCOL_HIGHEST),
        record=sealed(identity, content, near),
        model_version=1 if published else 0,
    )


def sealed(
    identity: Identity, content: pb.RecordContent, near: pb.LocalAddresses | None = None
) -> pb.PeerRecord:
    """What a peer says of itself, whether true or not, under its signature."""
    local = b"" if near is None else near.SerializeToString()
    content.local = hashlib.sha256(local).digest() if local else b""
    data = content.SerializeToString()
    return pb.PeerRecord(
        public_key=identity.public_key,
        content=data,
        signature=identity.sign(record_text(data)),
        local=local,
        status=pb.PEER_STATUS_LEFT if content.left else pb.PEER_STATUS_ALIVE,
    )


def raw_call(port: int, method: str, data: bytes, timeout_s: float = CALL_TIMEOUT_S) -> bytes:
    """One unary call with these bytes as its message, by the peer that they say. Raises `grpc.RpcError`."""
    with calling(port, _speaker(method, data), ("grpc.max_send_message_length", -1)) as channel:
        answer: bytes = channel.unary_unary(method, None, None)(data, timeout=timeout_s)
        return answer


def _speaker(method: str, data: bytes) -> Identity:
    """Who speaks in a message, where a test plays it."""
    kinds: dict[str, type[pb.JoinRequest | pb.PingRequest]] = {JOIN: pb.JoinRequest, PING: pb.PingRequest}
    if method not in kinds:
        return ANYBODY
    message = kinds[method]()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return ANYBODY
    return played_by(message.sender.record.public_key)


def is_busy(error: grpc.RpcError) -> bool:
    """Whether a peer asks to be called again later."""
    return isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def unless_busy(call: Callable[[], T]) -> T | None:
    """What a call brings; None where the peer asks to be called again later. Raises `grpc.RpcError`."""
    try:
        return call()
    except grpc.RpcError as error:
        if not is_busy(error):
            raise
        return None


def patient_call(port: int, method: str, data: bytes) -> bytes:
    """As `raw_call`, again while the peer is busy."""
    call = partial(raw_call, port, method, data)
    return wait_for(partial(unless_busy, call), what=f"a peer that has time for {method}")


def call_join(port: int, request: pb.JoinRequest) -> pb.JoinReply:
    return pb.JoinReply.FromString(patient_call(port, JOIN, request.SerializeToString()))


def call_ping(port: int, request: pb.PingRequest) -> pb.PingReply:
    return pb.PingReply.FromString(patient_call(port, PING, request.SerializeToString()))
