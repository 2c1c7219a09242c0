"""The standard services, health and reflection, for a few callers at once: neither asks who calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from p2pfl_net.core.events import FailureKind
from p2pfl_net.rpc.status import code_of

MAX_REFLECTIONS = 2
MAX_HEALTH_WATCHES = 2


class Places:
    """For a few callers at once: a stream holds a thread while it is open."""

    def __init__(self, limit: int, what: str) -> None:
        self._free = threading.BoundedSemaphore(limit)
        self._what = what

    @contextmanager
    def one(self, context: grpc.ServicerContext) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            context.abort(code_of(FailureKind.BUSY), f"too many {self._what} at once, try again soon")
        try:
            yield
        finally:
            self._free.release()


class Reflection:
    """The standard service."""

    def __init__(self, services: Sequence[str]) -> None:
        self._servicer: Any = reflection.ReflectionServicer(services)
        self._places = Places(MAX_REFLECTIONS, "reflection streams")

    def ServerReflectionInfo(  # noqa: N802 - the service's own name
        self, request_iterator: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        with self._places.one(context):
            yield from self._servicer.ServerReflectionInfo(request_iterator, context)


class Health(health.HealthServicer):
    """The standard service; gRPC's own would let anybody watch, without a bound."""

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=False)
        self._places = Places(MAX_HEALTH_WATCHES, "health watches")

    def Watch(  # noqa: N802 - the service's own name
        self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None
    ) -> Iterator[Any]:
        with self._places.one(context):
            yield from super().Watch(request, context)
