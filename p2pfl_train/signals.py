"""SIGTERM and SIGINT: an end at once before the training, then a question that the loop asks; a second
SIGINT as an order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import typer

EXIT_INTERRUPTED = 130


class StopSignals:
    """While entered, SIGTERM or SIGINT ends the process with exit code `early`, until `training_begins`.

    From then on it makes the object true when called, and a second SIGINT raises `KeyboardInterrupt`
    where it strikes. The handler takes no lock: it could wait there for the very thread that it
    interrupted.
    """

    def __init__(self, early: int = 0) -> None:
        self._early = early
        self._training = False
        self._requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self._requested

    def training_begins(self) -> None:
        """From now on there is something to save, so that an end takes a moment."""
        self._training = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            # Not by an exception: what is interrupted here (imports, the user's code, a download) may
            # swallow it. A process that ends at any point leaves a sound directory, see CONTRACT.md.
            os._exit(self._early)
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals(early: int = 0) -> Iterator[StopSignals]:
    """Entered before torch is imported: that takes seconds, in which a signal must end us cleanly."""
    try:
        with StopSignals(early) as stop:
            yield stop
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
