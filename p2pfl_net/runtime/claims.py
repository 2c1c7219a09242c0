"""Which weights are on their way: two fetches that run at once do not download the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pfl_net.rpc.download import Progress
from p2pfl_net.wire.models import ModelHeader


class AlreadyComing(Exception):
    """Another fetch is downloading what was announced as the same weights, or has just done so."""

    def __init__(self, over: threading.Event) -> None:
        super().__init__()
        self.over = over


@dataclass(frozen=True, slots=True)
class Claims:
    """The weights that downloads under way were announced to bring, and when each is over. Thread-safe."""

    holds: Callable[[str], bool]
    """Whether a file with these weights is here."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    coming: dict[str, threading.Event] = field(default_factory=dict)


def _over() -> threading.Event:
    over = threading.Event()
    over.set()
    return over


class Claim:
    """One fetch's part in it."""

    def __init__(self, claims: Claims) -> None:
        self.waits = True
        """Whether to wait for another fetch of the same weights rather than download them twice."""
        self.named: tuple[str, ...] = ()
        """The weights that the peer was told are here."""
        self._claims = claims
        self._weights: str | None = None

    def checked(self, progress: Progress) -> Progress:
        """`progress`, which raises `AlreadyComing` before the first byte of what is on its way already."""

        def claim_then_progress(received_bytes: int, header: ModelHeader) -> None:
            if header.manifest.weights != self._weights:
                self._take(header.manifest.weights)
            progress(received_bytes, header)

        return claim_then_progress

    def _take(self, weights: str) -> None:
        self.release()
        with self._claims.lock:
            other = self._claims.coming.get(weights)
            if self.waits and other is not None:
                raise AlreadyComing(other)
            if self.waits and weights not in self.named and self._claims.holds(weights):
                raise AlreadyComing(_over())
            if other is None:
                self._weights = weights
                self._claims.coming[weights] = threading.Event()

    def release(self) -> None:
        """The download is over; what it brought is held."""
        if self._weights is not None:
            with self._claims.lock:
                self._claims.coming.pop(self._weights).set()
            self._weights = None
