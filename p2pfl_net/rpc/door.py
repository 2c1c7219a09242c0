"""What every call passes first, whoever makes it: the limits of its address, and a bounded time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import parse_ip, source_of
from p2pfl_net.errors import PeerFailed, RemoteError
from p2pfl_net.rpc.limits import Limit, Limiter
from p2pfl_net.rpc.opencalls import CALL_S, LOOK_S, OpenCalls
from p2pfl_net.rpc.status import code_of, one_line

MAX_REFUSED, MAX_REFUSED_OF_ADDRESS, REFUSED_S = 64, 32, 2.0
"""The same for those that were refused, and whose refusal nobody has taken yet."""

Method = Any
"""A `grpc.RpcMethodHandler`: which of its four fields is there, its two flags say."""


class Door(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before every method. `start` and `close` begin and end its watch over the time of calls."""

    def __init__(
        self,
        limiter: Limiter,
        limits: Mapping[str, tuple[Limit, ...]],
        max_stream_s: float,
        check_caller: Callable[[str, grpc.ServicerContext], None],
    ) -> None:
        """`limits`: what each method counts as, by its path; any other is a call. `check_caller`: whether who
        calls a method has shown who it is, where it must. Raises `RemoteError`."""
        self._check_caller = check_caller
        self._limiter = limiter
        self._limits = limits
        self._max_stream_s = max_stream_s
        self._open = OpenCalls()
        self._refused = OpenCalls(MAX_REFUSED, MAX_REFUSED_OF_ADDRESS, REFUSED_S)
        self._guarded: dict[str, Method] = {}
        self._unknown = grpc.stream_unary_rpc_method_handler(self._refuse_unknown)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="door", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            self._open.end_overdue()
            self._refused.end_overdue()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Method | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Method:
        path = handler_call_details.method
        guarded = self._guarded.get(path)
        if guarded is None:
            method = continuation(handler_call_details)
            if method is None:
                return self._unknown
            guarded = self._guarded[path] = self._guard(path, method)
        return guarded

    def _guard(self, path: str, method: Method) -> Method:
        """The same method, whose one message we wait for ourselves."""
        limits = self._limits.get(path, (Limit.CALLS,))

        def decoded(message: bytes, context: grpc.ServicerContext) -> Any:
            """Here, for of garbage gRPC would log a traceback, and never quite end the call."""
            if method.request_deserializer is None:
                return message
            try:
                return method.request_deserializer(message)
            except DecodeError:
                context.abort(code_of(FailureKind.INVALID), "not a message of this protocol")

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            message = decoded(self._message(path, messages, context, limits), context)
            return method.unary_unary(message, context)

        def stream(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            message = decoded(self._message(path, messages, context, limits), context)
            return self._timed(method.unary_stream(message, context), context)

        def converse(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            source = self._enter(context, limits)
            counted = self._counted(messages, context, source)
            answers = method.stream_stream((decoded(message, context) for message in counted), context)
            return self._timed(answers, context)

        if method.request_streaming:
            assert method.response_streaming, "no such method here"
            return grpc.stream_stream_rpc_method_handler(converse, None, method.response_serializer)
        if method.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, None, method.response_serializer)
        return grpc.stream_unary_rpc_method_handler(answer, None, method.response_serializer)

    def _message(
        self,
        path: str,
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
        limits: tuple[Limit, ...],
    ) -> bytes:
        """The one message of a call, after all that can be refused without it: it may be large."""
        self._enter(context, limits)
        try:
            self._check_caller(path, context)
        except RemoteError as error:
            if error.kind is not FailureKind.UNPROVED:  # as it is for all after a restart of this peer
                self._limiter.refused(source_of(caller_host(context)), one_line(str(error)))
            context.abort(code_of(error.kind), one_line(str(error)))
        self._open.wait_receiving(context)
        message = next(messages, None)
        if message is None:
            context.abort(code_of(FailureKind.INCOMPATIBLE), "a call without a message")
        self._open.received(context)
        return message

    def _timed(self, answers: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """A stream's own time begins with its first answer: before it may be refused."""
        for answer in answers:
            self._open.admit(context, self._max_stream_s + CALL_S)
            yield answer
            break
        try:
            yield from answers
        finally:
            self._open.settle(context)

    def _enter(self, context: grpc.ServicerContext, limits: tuple[Limit, ...]) -> str:
        source = source_of(caller_host(context))
        self._check(context, source, limits)
        self._open.enter(context, source)
        return source

    def _counted(self, messages: Iterator[Any], context: grpc.ServicerContext, source: str) -> Iterator[Any]:
        """Each message of a conversation counts as a call."""
        for message in messages:
            self._check(context, source, (Limit.CALLS,))
            yield message

    def _check(self, context: grpc.ServicerContext, source: str, limits: tuple[Limit, ...]) -> None:
        try:
            for limit in limits:
                self._limiter.check_address(source, limit)
        except PeerFailed as error:
            self._refused.enter(context, source)
            context.abort(code_of(error.kind), str(error))

    def _refuse_unknown(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        self._enter(context, (Limit.CALLS,))
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method here")


def caller_host(context: grpc.ServicerContext) -> str:
    """The IP literal that a call came from (`context.peer()` is `ipv4:1.2.3.4:5` or `ipv6:[::1]:5`)."""
    _, _, rest = context.peer().partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]").strip("[]")
    literal = parse_ip(host.partition("%")[0])
    if literal is None:
        context.abort(code_of(FailureKind.INCOMPATIBLE), "calls must come over IP")
    return literal
