"""What every call passes first, whoever makes it: the limits of its address, and a bounded time at the door.

A call that has begun holds a thread until its message is there, and a place until its answer has been taken.
gRPC for Python waits for both without end, so a caller who says no more, or takes no answer, would keep them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import parse_ip, source_of
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.limits import Limit, Limiter
from p2pfl_net.rpc.status import code_of

MAX_OPEN_CALLS = 192
MAX_OPEN_OF_ADDRESS = 96
"""Of all addresses, and of one: beyond, the oldest ends. Those of honest peers are over in milliseconds, so
it is one that stands still. Guesses: more than a hundred daemons that start at once have open at one of
them."""
MAX_REFUSED, MAX_REFUSED_OF_ADDRESS, REFUSED_S = 64, 32, 2.0
"""The same for those that were refused, and whose refusal nobody has taken yet."""
CALL_S = 10.0
"""How long a call may be open. A guess: longer than callers wait for an answer (`Params`)."""
LOOK_S = 1.0

Method = Any
"""A `grpc.RpcMethodHandler`: which of its four fields is there, its two flags say."""


@dataclass(slots=True)
class _Open:
    source: str
    until: float
    is_admitted: bool = False
    """A stream that has begun to answer: it has its own bounds, and its own time."""


class OpenCalls:
    """The calls that have begun and not ended. Thread-safe."""

    def __init__(
        self,
        max_open: int = MAX_OPEN_CALLS,
        max_of_source: int = MAX_OPEN_OF_ADDRESS,
        call_s: float = CALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_open = max_open
        self._max_of_source = max_of_source
        self._call_s = call_s
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[grpc.ServicerContext, _Open] = {}
        """The oldest first."""
        self._waiting: Counter[str] = Counter()
        """How many of them are not admitted, by source."""

    def enter(self, context: grpc.ServicerContext, source: str) -> None:
        """A call has begun. Where there are too many, the oldest ends."""
        with self._lock:
            oldest = None
            if self._waiting[source] >= self._max_of_source:
                oldest = self._oldest(source)
            elif self._waiting.total() >= self._max_open:
                oldest = self._oldest(None)
            if oldest is not None:
                self._forget(oldest)
            self._open[context] = _Open(source, self._clock() + self._call_s)
            self._waiting[source] += 1
        if oldest is not None:
            oldest.cancel()  # type: ignore[no-untyped-call]
        if not context.add_callback(partial(self.leave, context)):
            self.leave(context)

    def admit(self, context: grpc.ServicerContext, seconds: float) -> None:
        """A stream has begun, which may last longer than a call."""
        with self._lock:
            held = self._open.get(context)
            if held is not None:
                self._count_out(held)
                held.is_admitted, held.until = True, self._clock() + seconds

    def settle(self, context: grpc.ServicerContext) -> None:
        """A stream has said all: what is left of it is a call like any other."""
        with self._lock:
            held = self._open.pop(context, None)
            if held is not None:
                self._open[context] = _Open(held.source, self._clock() + self._call_s)
                self._waiting[held.source] += 1

    def leave(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._forget(context)

    def end_overdue(self) -> None:
        """Ends the calls whose time is over."""
        now = self._clock()
        with self._lock:
            overdue = [context for context, held in self._open.items() if held.until <= now]
            for context in overdue:
                self._forget(context)
        for context in overdue:
            context.cancel()  # type: ignore[no-untyped-call]

    def _oldest(self, source: str | None) -> grpc.ServicerContext | None:
        return next(
            (
                context
                for context, held in self._open.items()
                if not held.is_admitted and source in (None, held.source)
            ),
            None,
        )

    def _forget(self, context: grpc.ServicerContext) -> None:
        held = self._open.pop(context, None)
        if held is not None and not held.is_admitted:
            self._count_out(held)

    def _count_out(self, held: _Open) -> None:
        self._waiting[held.source] -= 1
        if not self._waiting[held.source]:
            del self._waiting[held.source]


class Door(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before every method. `start` and `close` begin and end its watch over the time of calls."""

    def __init__(
        self, limiter: Limiter, limits: Mapping[str, tuple[Limit, ...]], max_stream_s: float
    ) -> None:
        """`limits`: what each method counts as, by its path; any other is a call."""
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

        def answer(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return method.unary_unary(self._message(messages, context, limits), context)

        def stream(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            message = self._message(messages, context, limits)
            return self._timed(method.unary_stream(message, context), context)

        def converse(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            source = self._enter(context, limits)
            return self._timed(
                method.stream_stream(self._counted(messages, context, source), context), context
            )

        coding = (method.request_deserializer, method.response_serializer)
        if method.request_streaming:
            assert method.response_streaming, "no such method here"
            return grpc.stream_stream_rpc_method_handler(converse, *coding)
        if method.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, *coding)
        return grpc.stream_unary_rpc_method_handler(answer, *coding)

    def _message(
        self, messages: Iterator[Any], context: grpc.ServicerContext, limits: tuple[Limit, ...]
    ) -> Any:
        """The one message of a call, after the limits of the address: a refusal costs no more than that."""
        self._enter(context, limits)
        message = next(messages, None)
        if message is None:
            context.abort(code_of(FailureKind.INCOMPATIBLE), "a call without a message")
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
