"""What all uploads together may send in a second."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from p2pfl_net.rpc.limits import Pace
from p2pfl_net.wire.models import CHUNK_BYTES

MAX_UPLOADS = 16
BURST_S = 0.25
"""So many seconds' worth may go at once after a pause: a small model comes without any wait. A guess."""
MAX_DEBT_S = 1.0
"""Who only asks whether there is anything new delays uploads by so much at most. A guess."""
LEAST_CHUNK_BYTES = 16 << 10


class Throttle:
    """Gives each upload its turn: who has sent a chunk stands behind those who wait. Thread-safe."""

    def __init__(self, bytes_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.chunk_bytes = int(min(CHUNK_BYTES, max(LEAST_CHUNK_BYTES, bytes_s / MAX_UPLOADS)))
        """The size of chunks of which so many uploads each get one a second: none seems to stall."""
        self._pace = Pace(bytes_s, max(BURST_S * bytes_s, self.chunk_bytes))
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    def wait_turn(self, size_bytes: int, ended: Callable[[], bool]) -> bool:
        """Waits until so many bytes may go. False: the upload has ended first, which `wake` makes it see."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                while not ended():
                    if self._waiting[0] is not me:
                        self._changed.wait()
                        continue
                    now = self._clock()
                    wait_s = self._pace.wait_s(size_bytes, now)
                    if wait_s <= 0:
                        self._pace.take(size_bytes, now)
                        return True
                    self._changed.wait(wait_s)
                return False
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()

    def charge(self, size_bytes: int) -> None:
        """So many bytes go out of turn: what follows waits for them, within a bound."""
        with self._changed:
            now = self._clock()
            if self._pace.wait_s(size_bytes, now) < MAX_DEBT_S:
                self._pace.take(size_bytes, now)

    def wake(self) -> None:
        """An upload may have ended."""
        with self._changed:
            self._changed.notify_all()
