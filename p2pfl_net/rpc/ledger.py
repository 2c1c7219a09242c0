"""The transfers of the published model under way: to whom, how far, and how to end them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import PeerFailed
from p2pfl_net.wire.models import ModelHeader
from p2pfl_net.wire.trust import Standing


class Admission(Protocol):
    """Who may have what this peer has published. Thread-safe."""

    def check(self, caller: PeerId) -> None:
        """Raises `PeerFailed` (forbidden) for whoever may not."""
        ...

    def request(self, caller: PeerId, host: str, reason: str) -> Standing:
        """Keeps for a person what a caller asks for. Raises `PeerFailed`."""
        ...


@dataclass(slots=True, eq=False)
class Upload:
    """One transfer of the published model to a caller."""

    caller: PeerId
    host: str
    """IP literal that the caller came from."""
    header: ModelHeader | None = None
    """What was announced; None: nothing was, for the call was refused."""
    sent_bytes: int = 0
    """Of the model, handed to the connection."""
    is_complete: bool = False
    started_at: float = field(default_factory=time.monotonic)


class Ledger:
    """Lets transfers begin, ends them when a person says so, and tells of each that began. Thread-safe."""

    def __init__(self, admission: Admission, on_served: Callable[[Upload], None]) -> None:
        """`on_served` is called once for each transfer, at its end, and must not raise."""
        self.admission = admission
        self._on_served = on_served
        self._lock = threading.Lock()
        self._running: dict[Upload, grpc.ServicerContext] = {}

    def run(self, context: grpc.ServicerContext, upload: Upload, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The parts, for whoever may have them. Raises `PeerFailed`.

        In the list first, then the check: a decision that comes in between finds the transfer there.
        """
        with self._lock:
            self._running[upload] = context
        try:
            self.admission.check(upload.caller)
            for part in parts:
                if upload not in self._running:
                    raise PeerFailed(FailureKind.UNREACHABLE, "this transfer was ended")
                yield part
            upload.is_complete = True
        finally:
            self._tell([upload])

    def end(self, is_over: Callable[[PeerId], bool]) -> None:
        """Ends the transfers to these callers at once.

        That is: nothing more is handed to their connections. What was handed there before still leaves, and
        where a reader stands still, gRPC keeps the thread until it has left or the connection breaks; so the
        end is told here.
        """
        with self._lock:
            over = [
                (upload, context) for upload, context in list(self._running.items()) if is_over(upload.caller)
            ]
        self._tell([upload for upload, _ in over])
        for _, context in over:
            context.cancel()  # type: ignore[no-untyped-call]

    def _tell(self, uploads: Iterable[Upload]) -> None:
        """Strikes transfers off the list; who does so first tells of them."""
        with self._lock:
            for upload in uploads:
                if self._running.pop(upload, None) is not None and upload.header is not None:
                    self._on_served(upload)
