"""Waiting for a file to appear or change: file-system events, with a slow poll as a net.

The poll covers file systems without events (network mounts) and machines whose inotify instances
are used up (Linux allows 128 a user). Only creations, renames and removals wake: reading a file
must not wake its own reader.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from watchdog.events import (
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

POLL_S = 0.5
"""The net's period: what a lost event costs at most. A guess between latency and wake-ups."""
IDLE_POLL_S = 0.9
"""The same where events come: below the second that a trainer allows an answer beyond its deadline."""
LONELY_POLL_S = 5.0
"""The same where there is nobody who could wait for an answer. A guess: a trainer that starts takes as long
until it asks."""


class _Waker(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._wake()


class FolderWatch:
    """Watches one folder (not those below it) and wakes who waits. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._changed = threading.Event()
        self._observer: BaseObserver | None = None
        # watchdog warns of an event that comes while it stops. Whoever sets logging up gets that; a
        # command that did not must not print it among its own lines.
        log = logging.getLogger("watchdog")
        if not log.hasHandlers():
            log.addHandler(logging.NullHandler())
        try:
            self._observer = Observer()
            self._observer.daemon = True
            self._observer.schedule(
                _Waker(self._changed.set),
                str(folder.resolve()),  # a symbolic link would itself be watched, not where it leads
                recursive=False,
                event_filter=[FileCreatedEvent, FileMovedEvent, FileDeletedEvent],
            )
            self._observer.start()
        except OSError:  # no inotify instance left, or a file system without events: the poll serves
            self.close()

    @property
    def has_events(self) -> bool:
        """Whether changes wake; if not, only the poll sees them."""
        return self._observer is not None

    def wait_next(self, *, lonely: bool = False) -> bool:
        """Waits for the next change or the net's next look; whether a change was seen. One waiter only.

        `lonely`: the process that makes changes is not there.
        """
        idle_s = LONELY_POLL_S if lonely else IDLE_POLL_S
        return self.wait_changed(idle_s if self.has_events else POLL_S)

    def wait_changed(self, timeout_s: float) -> bool:
        """Waits for the next change, at most `timeout_s`; whether one was seen. One waiter only."""
        seen = self._changed.wait(timeout_s)
        self._changed.clear()
        return seen

    def wake(self) -> None:
        """Wakes whoever waits, as a change would."""
        self._changed.set()

    def close(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
