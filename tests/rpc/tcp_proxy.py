"""A TCP link under the test's control: it can be slow, and it can be cut."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

READ_BYTES = 1 << 16


class TcpProxy:
    """Forwards connections to `port` on loopback. A context manager; `port` is where it listens."""

    def __init__(
        self,
        target_port: int,
        *,
        delay_s: float = 0.0,
        cut_after_bytes: int | None = None,
        records: bool = False,
        source_host: str = "127.0.0.1",
    ) -> None:
        """`delay_s`: latency of each direction. `cut_after_bytes`: resets the first connection that has
        carried so many bytes from the target, once. `records`: keeps all that it carries. `source_host`:
        whence the target sees them come; all of 127.0.0.0/8 is this machine."""
        self._source_host = source_host
        self._records = records
        self.target_port = target_port
        """Where new connections go; a test may change it."""
        self._delay_s = delay_s
        self._cut_after_bytes = cut_after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.connections = 0
        self.carried_bytes = 0
        """From the target to the callers, over all connections."""
        self.recorded = bytearray()
        """All that it carried, both directions together."""
        self.cuts = 0
        self.held = threading.Event()
        """Set while the link holds what comes from the target."""
        self._hold_at_bytes: int | None = None
        self._released = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self.release()
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def hold_after(self, count_bytes: int) -> None:
        """Carries `count_bytes` more from the target, then nothing until `release`."""
        self._released.clear()
        self._hold_at_bytes = self.carried_bytes + count_bytes

    def release(self) -> None:
        self._hold_at_bytes = None
        self._released.set()

    def cut(self) -> None:
        """Breaks every connection that is open."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for opened in sockets:
            try:
                opened.shutdown(socket.SHUT_RDWR)
            except OSError:  # broken already
                continue

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            try:
                target = socket.create_connection(
                    ("127.0.0.1", self.target_port), source_address=(self._source_host, 0)
                )
            except OSError:
                caller.close()
                continue
            self.connections += 1
            with self._lock:
                self._sockets += [caller, target]
            if self._closing.is_set():  # accepted while all were cut
                self.cut()
            for ends in ((caller, target), (target, caller)):
                thread = threading.Thread(target=self._carry, args=(*ends, ends[0] is target))
                self._threads.append(thread)
                thread.start()

    def _count(self, count_bytes: int) -> None:
        """Counts what came from the target; here the link is held or cut."""
        self.carried_bytes += count_bytes
        if self._hold_at_bytes is not None and self.carried_bytes >= self._hold_at_bytes:
            self.held.set()
            self._released.wait()
        if self._cut_after_bytes is not None and self.carried_bytes >= self._cut_after_bytes:
            self._cut_after_bytes = None
            self.cuts += 1
            self.cut()

    def _carry(self, source: socket.socket, sink: socket.socket, from_target: bool) -> None:
        try:
            while data := source.recv(READ_BYTES):
                if self._closing.wait(self._delay_s):
                    break
                sink.sendall(data)
                if self._records:
                    self.recorded += data
                if from_target:
                    self._count(len(data))
        except OSError:
            pass
        finally:
            for end in (source, sink):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            source.close()
