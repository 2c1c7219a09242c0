"""Fixtures of all rooms: real processes, and a watch for those that a test leaves behind."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.processes import LOOK_S, Processes

settings.register_profile("p2pfl", deadline=None, print_blob=True)
settings.load_profile("p2pfl")

MARK = "P2PFL_TEST"
"""Environment variable that every process of a test inherits, also one that has lost its parents."""
LEAVING_S = 10.0
"""How long a process that has been told to go may take: the kernel's time for the dead, on a busy machine."""


def pytest_configure() -> None:
    """A shell ignores SIGINT for its background, and every process of a test would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts daemons, trainers and other programs; ends them after the test, whatever happened."""
    with Processes(tmp_path / "outputs") as started:
        yield started


@pytest.fixture(autouse=True)
def no_process_survives(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test after which a process that it started, or a child of one, still runs."""
    if sys.platform != "linux":
        yield
        return
    mark = secrets.token_hex(8)
    before = _children()
    monkeypatch.setenv(MARK, mark)
    yield
    give_up_at_s = time.monotonic() + LEAVING_S
    while left := (_children() - before) | _marked(mark):
        if time.monotonic() >= give_up_at_s:
            pytest.fail("the test left running: " + "; ".join(_command(pid) for pid in sorted(left)))
        time.sleep(LOOK_S)


def _children() -> set[int]:
    """Children of this process that have not been waited for."""
    children: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            children.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:  # the thread has ended
            continue
    return children


def _marked(mark: str) -> set[int]:
    """Processes of this user that inherited the mark."""
    wanted = f"{MARK}={mark}".encode()
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            environment = Path("/proc", name, "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if wanted in environment.split(b"\0"):
            found.add(int(name))
    return found


def _command(pid: int) -> str:
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        words = []
    return f"{pid} {' '.join(word.decode(errors='replace') for word in words) or '(ended, not waited for)'}"
