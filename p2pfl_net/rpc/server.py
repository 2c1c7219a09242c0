"""The daemon's gRPC server: decodes, hands the message over, replies."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from p2pfl_proto.v1 import models_pb2
from p2pfl_state.manifest import Manifest

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId, source_of
from p2pfl_net.core.messages import Accuse, Join, Request, Response
from p2pfl_net.errors import MalformedMessage, PeerFailed, PortUnavailable, RemoteError
from p2pfl_net.rpc.door import MAX_REFUSED, Door, caller_host
from p2pfl_net.rpc.gate import Gate
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.rpc.ledger import Ledger, Upload
from p2pfl_net.rpc.limits import Limit, Limiter, Limits
from p2pfl_net.rpc.opencalls import MAX_OPEN_CALLS
from p2pfl_net.rpc.options import MAX_CONNECTIONS_OPTION, SERVER_OPTIONS
from p2pfl_net.rpc.rotations import FormerIds
from p2pfl_net.rpc.serving import ModelSource, stream_model
from p2pfl_net.rpc.standard import MAX_HEALTH_WATCHES, MAX_REFLECTIONS, Health, Reflection
from p2pfl_net.rpc.status import code_of, one_line
from p2pfl_net.rpc.throttle import MAX_UPLOADS, Throttle
from p2pfl_net.rpc.trusting import answer_request
from p2pfl_net.rpc.uploads import Uploads
from p2pfl_net.wire import models
from p2pfl_net.wire.calls import CALLS, MEMBERSHIP_SERVICE, Call
from p2pfl_net.wire.fields import parse
from p2pfl_net.wire.identity import IDENTITY_SERVICE
from p2pfl_net.wire.records import Opener
from p2pfl_net.wire.trust import TRUST_SERVICE
from p2pfl_net.wire.versions import VERSIONS_SERVICE, Statement, decode_question, encode_answer

POOL_THREADS = MAX_OPEN_CALLS + MAX_UPLOADS + MAX_REFLECTIONS + MAX_HEALTH_WATCHES + 16
"""One for all that may stand still, and some more, so that a ping never waits for it. Each is made when it is
needed for the first time."""
MAX_CONCURRENT_CALLS = POOL_THREADS + MAX_REFUSED

MODELS_SERVICE = "p2pfl.v1.Models"

_JOINS = (Limit.CALLS, Limit.JOINS)
_STREAMS = (Limit.STREAMS,)
_REQUESTS = (Limit.CALLS, Limit.REQUESTS)
LIMITS: Mapping[str, tuple[Limit, ...]] = {
    CALLS[Join].path: _JOINS,
    CALLS[Accuse].path: (Limit.CALLS, Limit.ACCUSATIONS),
    f"/{TRUST_SERVICE}/Request": _REQUESTS,
    f"/{MODELS_SERVICE}/FetchModel": _STREAMS,
    f"/{health.SERVICE_NAME}/Watch": _STREAMS,
    f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": _STREAMS,
}
"""What a call counts as; any other is a call."""

OF_PEERS = tuple(
    f"/{name}/" for name in (MEMBERSHIP_SERVICE, MODELS_SERVICE, VERSIONS_SERVICE, TRUST_SERVICE)
)
"""What only who shows who it is may call."""

Exchange = Callable[[Request, str], Response]
"""Hands a request from a host (IP literal) to the core and waits for the reply. Raises `RemoteError`."""

SeenVersions = Callable[[PeerId, int], tuple[Statement, Manifest] | None]
"""What is known here of a peer's version."""


class Server:
    """Serves membership and models on one port, with the standard health and reflection services."""

    def __init__(
        self,
        identity: Identity,
        exchange: Exchange,
        source: ModelSource,
        opener: Opener,
        seen: SeenVersions,
        ledger: Ledger,
        network_key: bytes | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        note: Callable[[str, dict[str, object]], None] = lambda event, fields: None,
    ) -> None:
        """`network_key`: only those who hold it may call; None: anybody who says who it is. `note`
        takes events for the log, from any thread: see `Limiter`."""
        self._identity = identity
        self._me = identity.peer_id
        self._gate = Gate(identity.peer_id, network_key, former=identity.former)
        self._exchange = exchange
        self._opener = opener
        self._seen = seen
        self._source = source
        self._ledger = ledger
        self._limiter = Limiter(limits, note, time.monotonic)
        self._door = Door(self._limiter, LIMITS, limits.max_stream_s, self._check_caller)
        rate = limits.max_upload_bytes_s
        self._uploads = Uploads(limits.max_stream_s, None if rate is None else Throttle(rate))
        self._health = Health()
        self._server = grpc.server(
            ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="rpc"),
            options=[*SERVER_OPTIONS, (MAX_CONNECTIONS_OPTION, limits.max_connections)],
            interceptors=[self._door],
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        self._server.add_generic_rpc_handlers(
            (
                self._identity_handlers(),
                self._membership_handlers(),
                self._models_handlers(),
                self._versions_handlers(),
                self._trust_handlers(),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        services = (
            IDENTITY_SERVICE,
            MEMBERSHIP_SERVICE,
            MODELS_SERVICE,
            VERSIONS_SERVICE,
            TRUST_SERVICE,
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        )
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(services), self._server)

    @property
    def former_ids(self) -> FormerIds:
        """Who the callers were before their keys were replaced."""
        return self._gate.former_ids

    def bind(self, host: str, port: int) -> int:
        """Binds `host` (IP literal) and `port` (0: any free one) and returns the port.

        Raises `PortUnavailable`.
        """
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            return self._server.add_secure_port(target, self._credentials())
        except RuntimeError:
            raise PortUnavailable(f"cannot listen on {target}: {_why_not(host)}") from None

    def _credentials(self) -> grpc.ServerCredentials:
        pair = (self._identity.key_pem(), self._identity.certificate)
        return grpc.ssl_server_credentials([pair])

    def start(self) -> None:
        self._say_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._door.start()
        self._server.start()

    def say_serving(self) -> None:
        """The peer has joined: the health service answers SERVING."""
        self._say_health(health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones finish for at most `grace_s`, then ends."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._ledger.end(lambda caller: True)  # what this cut off, before anything else is closed
        self._door.close()

    def _say_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", MEMBERSHIP_SERVICE, MODELS_SERVICE):
            self._health.set(service, status)

    # handlers: they parse the request's bytes themselves, for gRPC would log a traceback for garbage ----

    def _identity_handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {"Hello": grpc.unary_unary_rpc_method_handler(self._hello, None, None)}
        return grpc.method_handlers_generic_handler(IDENTITY_SERVICE, handlers)

    def _membership_handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {
            call.name: grpc.unary_unary_rpc_method_handler(partial(self._exchange_bytes, call), None, None)
            for call in CALLS.values()
        }
        return grpc.method_handlers_generic_handler(MEMBERSHIP_SERVICE, handlers)

    def _models_handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        return grpc.method_handlers_generic_handler(
            MODELS_SERVICE,
            {
                "FetchModel": grpc.unary_stream_rpc_method_handler(self._fetch_model, None, None),
                "FetchTask": grpc.unary_unary_rpc_method_handler(
                    self._fetch_task,
                    None,
                    models_pb2.FetchTaskReply.SerializeToString,
                ),
            },
        )

    def _versions_handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {"FetchVersion": grpc.unary_unary_rpc_method_handler(self._fetch_version, None, None)}
        return grpc.method_handlers_generic_handler(VERSIONS_SERVICE, handlers)

    def _trust_handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {"Request": grpc.unary_unary_rpc_method_handler(self._request_trust, None, None)}
        return grpc.method_handlers_generic_handler(TRUST_SERVICE, handlers)

    def _hello(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return self._gate.hello(data)
        except RemoteError as error:
            _abort(context, error)

    def _exchange_bytes(self, call: Call, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            caller = self._caller(context, *LIMITS.get(call.path, (Limit.CALLS,)))
            parsed = call.parse_request(data)
            self._check_records(context, caller, call.count_records(parsed))
            message = call.decode_request(parsed, self._opener)
            if message.sender.record.peer_id != caller:
                raise MalformedMessage("speaks for another peer: the token is not of the sender")
            reply = self._exchange(message, caller_host(context))
        except RemoteError as error:
            _abort(context, error)
        assert isinstance(reply, call.response)
        return call.encode_response(reply)

    def _fetch_model(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            upload = Upload(self._caller(context, Limit.STREAMS), caller_host(context))
            request = models.decode_request(parse(models_pb2.FetchModelRequest, data))
            parts = stream_model(self._me, self._source, request, upload, self._uploads.chunk_bytes)
            admitted = self._uploads.run(context, upload.caller, upload.host, parts)
            yield from self._ledger.run(context, upload, admitted)
        except RemoteError as error:
            _abort(context, error)

    def _fetch_task(self, data: bytes, context: grpc.ServicerContext) -> models_pb2.FetchTaskReply:
        try:
            caller = self._caller(context, Limit.CALLS)
            request = parse(models_pb2.FetchTaskRequest, data)
            if request.to and request.to.hex() != self._me:
                raise PeerFailed(FailureKind.WRONG_PEER, "another peer lives here")
            self._ledger.admission.check(caller)
            task = self._source.task()
        except RemoteError as error:
            _abort(context, error)
        if task is None:
            context.abort(code_of(FailureKind.ABSENT), "no task is published here")
        return models_pb2.FetchTaskReply(task=task)

    def _fetch_version(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            self._ledger.admission.check(self._caller(context, Limit.CALLS))
            seen = self._seen(*decode_question(data))
        except RemoteError as error:
            _abort(context, error)
        if seen is None:
            context.abort(code_of(FailureKind.ABSENT), "this version was not seen here")
        return encode_answer(*seen)

    def _request_trust(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            caller, host = self._caller(context, *_REQUESTS), caller_host(context)
            return answer_request(self._me, caller, self._ledger.admission, data, host)
        except RemoteError as error:
            _abort(context, error)

    def _caller(self, context: grpc.ServicerContext, *limits: Limit) -> PeerId:
        """Who calls, within its limits; those of its address it has passed. Raises `RemoteError`."""
        caller = self._gate.caller(context.invocation_metadata())
        for limit in limits:
            self._limiter.check_peer(caller, limit)
        return caller

    def _check_caller(self, path: str, context: grpc.ServicerContext) -> None:
        """Before its message is received. A token is verified once: whose it is costs little afterwards."""
        if path.startswith(OF_PEERS):
            self._gate.caller(context.invocation_metadata())

    def _check_records(self, context: grpc.ServicerContext, caller: PeerId, count: int) -> None:
        """Before they are looked at, one by one."""
        if count:
            self._limiter.check_address(source_of(caller_host(context)), Limit.RECORDS, count)
            self._limiter.check_peer(caller, Limit.RECORDS, count)


def _why_not(host: str) -> str:
    """Why gRPC could not bind a port of `host`, which it does not tell, and what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except OSError as error:
        return f"{error.strerror}; give the --host of an interface of this machine, or :: for all"
    return "the port is taken or not allowed; choose another --port, or --port 0 to have one chosen"


def _abort(context: grpc.ServicerContext, error: RemoteError) -> NoReturn:
    context.abort(code_of(error.kind), one_line(str(error)))
