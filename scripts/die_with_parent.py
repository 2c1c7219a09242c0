"""Runs a command that the kernel kills when the process that started it is gone, even by `kill -9`.

    python scripts/die_with_parent.py PARENT_PID COMMAND ARGUMENT...

A program of its own, not a `preexec_fn`: that may deadlock in a process with threads. It replaces
itself by the command, so the process id stays. On other systems than Linux it only runs the command.
The parent is the thread that started it: start long-lived processes from the main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent dies; it survives an exec."""


def command(arguments: Sequence[str]) -> list[str]:
    """What to start so that `arguments` run and never outlive the calling process."""
    return [sys.executable, "-I", "-S", str(Path(__file__).absolute()), str(os.getpid()), *arguments]


def main() -> None:
    parent, arguments = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked: nobody would tell us
            return
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main()
