"""The calls that have begun and not ended: how many there may be, and for how long.

A call that has begun holds a thread until its message is there, and a place until its answer has been taken.
gRPC for Python waits for both without end, so a caller who says no more, or takes no answer, would keep them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import grpc

MAX_OPEN_CALLS = 192
MAX_OPEN_OF_ADDRESS = 96
"""Of all addresses, and of one: beyond, the oldest ends. Those of honest peers are over in milliseconds, so
it is one that stands still. Guesses: more than a hundred daemons that start at once have open at one of
them."""
MAX_RECEIVING = 24
"""Calls whose messages are received at once: each may hold as much memory as a message may have."""
RECEIVE_S = 0.1
"""So long a message may take although others wait to be received; a call that takes longer ends. A guess: an
exchange of megabytes on a LAN takes less, and a probe can wait as long."""
CALL_S = 10.0
"""How long a call may be open. A guess: longer than callers wait for an answer (`Params`)."""
LOOK_S = 1.0


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
        max_receiving: int = MAX_RECEIVING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_open = max_open
        self._max_of_source = max_of_source
        self._call_s = call_s
        self._max_receiving = max_receiving
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._open: dict[grpc.ServicerContext, _Open] = {}
        """The oldest first."""
        self._waiting: Counter[str] = Counter()
        """How many of them are not admitted, by source."""
        self._receiving: dict[grpc.ServicerContext, float] = {}
        """Since when their messages are received, the oldest first."""

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

    def wait_receiving(self, context: grpc.ServicerContext) -> None:
        """Waits until the message of a call may be received, or the call has ended."""
        with self._changed:
            while context in self._open and len(self._receiving) >= self._max_receiving:
                oldest, since = next(iter(self._receiving.items()))
                left_s = since + RECEIVE_S - self._clock()
                if left_s > 0:
                    self._changed.wait(left_s)
                else:
                    self._forget(oldest)
                    oldest.cancel()  # type: ignore[no-untyped-call]
            if context in self._open:
                self._receiving[context] = self._clock()

    def received(self, context: grpc.ServicerContext) -> None:
        """The message of a call is here."""
        with self._changed:
            if self._receiving.pop(context, None) is not None:
                self._changed.notify()

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
        if self._receiving.pop(context, None) is not None:
            self._changed.notify()

    def _count_out(self, held: _Open) -> None:
        self._waiting[held.source] -= 1
        if not self._waiting[held.source]:
            del self._waiting[held.source]
