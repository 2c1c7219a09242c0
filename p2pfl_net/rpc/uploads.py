"""The uploads under way: at most so many, and none keeps a place that others want and it hardly uses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId, is_loopback, source_of
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.throttle import MAX_UPLOADS, Throttle
from p2pfl_net.wire.models import CHUNK_BYTES

MAX_UPLOADS_OF_PEER = 4
"""Of one peer. One is what it needs; those that it has given up may not have ended yet."""
MAX_UPLOADS_OF_ADDRESS = 12
"""Of one address, so that a machine with many identities leaves places to others. Not of loopback: there
honest peers share an address, and whoever calls from there is on this machine already."""
SLOW_S = 60.0
LEAST_BYTES_S = 16 << 10
"""A reader that takes less, over so long, loses its place when another wants it. Guesses: a slow modem is
faster, and a chunk of 1 MiB needs about that long at that pace."""

MAX_ENDING = 8
"""Uploads that end and still have their place, while another has begun in it."""
LEAST_PARTS = 2
"""The header and a chunk: so much comes of every call, or who calls again would never come to the end."""


@dataclass(slots=True)
class _Upload:
    """One upload under way. Only the time counts against its reader in which a part waits for it."""

    caller: PeerId
    source: str
    began_at: float
    given_at: float | None = None
    """Since when a part waits for the reader; None: the reader waits for us."""
    reader_s: float = 0.0
    """How long parts have waited for it since the last look at its pace, and how much it took."""
    taken_bytes: int = 0
    was_slow: bool = False

    def is_slow(self, now: float) -> bool:
        part_s = 0.0 if self.given_at is None else now - self.given_at
        if part_s >= SLOW_S:
            return True
        reader_s = self.reader_s + part_s
        if reader_s < SLOW_S:
            return self.was_slow
        return self.taken_bytes < LEAST_BYTES_S * reader_s

    def took(self, size_bytes: int, now: float) -> None:
        assert self.given_at is not None
        self.reader_s += now - self.given_at
        self.taken_bytes += size_bytes
        self.given_at = None
        if self.reader_s >= SLOW_S:
            self.was_slow = self.is_slow(now)
            self.reader_s, self.taken_bytes = 0.0, 0


def _caller(upload: _Upload) -> str:
    return upload.caller


def _source(upload: _Upload) -> str:
    return upload.source


class Uploads:
    """Admits uploads and paces them. Thread-safe."""

    def __init__(
        self,
        max_stream_s: float,
        throttle: Throttle | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_stream_s`: how long one may last. `throttle`: what all share; None: as fast as they go."""
        self._max_stream_s = max_stream_s
        self._throttle = throttle
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[grpc.ServicerContext, _Upload] = {}

    @property
    def chunk_bytes(self) -> int:
        """The size of the largest chunks that are sent."""
        return CHUNK_BYTES if self._throttle is None else self._throttle.chunk_bytes

    def run(
        self, context: grpc.ServicerContext, caller: PeerId, host: str, parts: Iterator[bytes]
    ) -> Iterator[bytes]:
        """The parts, while this upload has a place. Raises `PeerFailed`: busy when all are taken, unreachable
        when its time is over, so that the caller goes on from there in another call."""
        upload = self._admit(context, caller, host)
        try:
            for number, part in enumerate(parts):
                is_over = self._clock() - upload.began_at >= self._max_stream_s
                if is_over and number >= LEAST_PARTS:
                    reason = f"an upload lasts at most {self._max_stream_s:g} s here: call again to go on"
                    raise PeerFailed(FailureKind.UNREACHABLE, reason)
                if not self._wait_turn(context, len(part), is_first=number == 0):
                    return
                upload.given_at = self._clock()
                yield part
                upload.took(len(part), self._clock())
        finally:
            with self._lock:
                self._running.pop(context, None)

    def _wait_turn(self, context: grpc.ServicerContext, size_bytes: int, *, is_first: bool) -> bool:
        """False: the upload has ended. The header waits for nobody: who calls sees that somebody is there."""
        if self._throttle is None:
            return True
        if is_first:
            self._throttle.charge(size_bytes)
            return True
        return self._throttle.wait_turn(size_bytes, lambda: not context.is_active())

    def _admit(self, context: grpc.ServicerContext, caller: PeerId, host: str) -> _Upload:
        upload = _Upload(caller, source_of(host), self._clock())
        if self._throttle is not None:
            context.add_callback(self._throttle.wake)
        with self._lock:
            rivals, reason = self._rivals(upload, host)
            if not rivals:
                self._running[context] = upload
                return upload
            slow = [other for other in rivals if self._running[other].is_slow(upload.began_at)]
            greedy = None if slow else self._greedy(upload)
            if greedy is not None:
                self._running[context] = upload
        for other in slow if greedy is None else [greedy]:
            other.cancel()  # type: ignore[no-untyped-call]  # its own thread gives the place back
        if greedy is not None:
            return upload
        raise PeerFailed(FailureKind.BUSY, f"{reason}, try again soon")

    def _greedy(self, upload: _Upload) -> grpc.ServicerContext | None:
        """When all places are taken, the oldest upload of whoever has most, peer or address, if that is more
        than the newcomer would have: it goes on in another call. None: nobody has."""
        running = self._running
        if not MAX_UPLOADS <= len(running) < MAX_UPLOADS + MAX_ENDING:
            return None
        for key in (_caller, _source):
            counts = Counter(map(key, running.values()))
            most, count = counts.most_common(1)[0]
            if count > counts[key(upload)] + 1:
                return next(other for other, held in running.items() if key(held) == most)
        return None

    def _rivals(self, upload: _Upload, host: str) -> tuple[list[grpc.ServicerContext], str]:
        """Those of which one must end before this one may begin; none: it may begin now."""
        running = self._running
        of_peer = [other for other, held in running.items() if held.caller == upload.caller]
        if len(of_peer) >= MAX_UPLOADS_OF_PEER:
            return of_peer, f"more than {MAX_UPLOADS_OF_PEER} uploads at once to one peer"
        of_address = [other for other, held in running.items() if held.source == upload.source]
        if len(of_address) >= MAX_UPLOADS_OF_ADDRESS and not is_loopback(host):
            return of_address, f"more than {MAX_UPLOADS_OF_ADDRESS} uploads at once to one address"
        everybody = list(running) if len(running) >= MAX_UPLOADS else []
        return everybody, "too many uploads at once"
