"""The uploads under way: at most so many, and none keeps a place that stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.errors import PeerFailed

UPLOAD_STALL_S = 60.0
"""A reader that takes no chunk for so long loses its place when another wants it. A guess: a chunk of 1 MiB
needs that long at 17 kB/s."""


class Uploads:
    """Admits uploads. Thread-safe."""

    def __init__(self, limit: int, stall_s: float = UPLOAD_STALL_S) -> None:
        self._limit = limit
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._progressed: dict[grpc.ServicerContext, float] = {}
        """When the reader of each upload last took a part."""

    def run(self, context: grpc.ServicerContext, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The parts, while this upload has a place. Raises `PeerFailed` when all are taken."""
        self._admit(context)
        try:
            for part in parts:
                self._progressed[context] = time.monotonic()
                yield part
        finally:
            with self._lock:
                self._progressed.pop(context, None)

    def _admit(self, context: grpc.ServicerContext) -> None:
        now = time.monotonic()
        with self._lock:
            if len(self._progressed) < self._limit:
                self._progressed[context] = now
                return
            stalled = [other for other, at in self._progressed.items() if now - at >= self._stall_s]
        for other in stalled:
            other.cancel()  # type: ignore[no-untyped-call]  # its own thread gives the place back
        raise PeerFailed(FailureKind.BUSY, "too many uploads at once, try again soon")
