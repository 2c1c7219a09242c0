"""SIGINT, SIGTERM or SIGHUP asks for an end; a SIGINT after it insists on one at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_INTERRUPTED = 130
"""What a shell shows for a program that Ctrl-C ended."""


class StopSignals:
    """While entered, signals are noted and do nothing else."""

    def __init__(self) -> None:
        self.asked = False
        self.insisted = False
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Not any second signal: make and timeout pass on a SIGTERM that their group got already.
        self.insisted = self.asked and (self.insisted or number == signal.SIGINT)
        self.asked = True

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
            numbers.append(signal.SIGHUP)
        for number in numbers:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
