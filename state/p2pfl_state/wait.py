"""Waiting for a file to appear or change: file-system events, with a slow poll as a net.

The poll covers file systems without events (network mounts) and machines whose inotify instances
are used up (Linux allows 128 a user). Only creations, renames and removals wake: reading a file
must not wake its own reader.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from watchdog.events import (
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

T = TypeVar("T")

POLL_S = 0.5
"""The net's period: what a lost event costs at most. A guess between latency and wake-ups."""
IDLE_POLL_S = 2.0
"""The same where events come and nobody waits for an answer. A guess likewise."""


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._wake()


class FolderWatch:
    """Watches one folder (not those below it) and wakes who waits. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._changed = threading.Event()
        self._observer = Observer()
        self._observer.daemon = True
        self._observer.schedule(
            _Waker(self._changed.set),
            str(folder),
            recursive=False,
            event_filter=[FileCreatedEvent, FileMovedEvent, FileDeletedEvent],
        )
        try:
            self._observer.start()
            self.has_events = True
        except OSError:  # no inotify instance left, or a file system without events: the poll serves
            self.has_events = False

    def wait_next(self) -> bool:
        """Waits for the next change or the net's next look; whether a change was seen. One waiter only."""
        return self.wait_changed(IDLE_POLL_S if self.has_events else POLL_S)

    def wait_changed(self, timeout_s: float) -> bool:
        """Waits for the next change, at most `timeout_s`; whether one was seen. One waiter only."""
        seen = self._changed.wait(timeout_s)
        self._changed.clear()
        return seen

    def wait_until(self, condition: Callable[[], T | None], timeout_s: float) -> T | None:
        """Waits until `condition` returns something other than None; None after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found is not None:
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.wait_changed(min(left, POLL_S))

    def wake(self) -> None:
        """Wakes whoever waits, as a change would."""
        self._changed.set()

    def close(self) -> None:
        if self.has_events:
            self._observer.stop()
            self._observer.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
