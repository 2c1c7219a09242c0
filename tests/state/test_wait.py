"""Waiting wakes on events at once, and by the poll where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from p2pfl_state import atomic, wait
from p2pfl_state.wait import FolderWatch
from watchdog.events import FileSystemEvent
from watchdog.observers import Observer

T = TypeVar("T")

NEVER_S = 3600.0


class FirstLook:
    """A condition that starts `act` in a thread when it is first looked at: from then on one waits."""

    def __init__(self, path: Path, act: threading.Thread) -> None:
        self.path = path
        self.looks = 0
        self._act = act

    def __call__(self) -> bytes | None:
        self.looks += 1
        if self.looks == 1:
            self._act.start()
            return None  # however quick it is
        return self.path.read_bytes() if self.path.exists() else None


def wait_until(watch: FolderWatch, condition: Callable[[], T | None]) -> T:
    """As the daemon waits: looks, and looks again at each change, or when the net says so."""
    while (found := condition()) is None:
        watch.wait_next()
    return found


@pytest.fixture
def no_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only events wake."""
    monkeypatch.setattr(wait, "POLL_S", NEVER_S)
    monkeypatch.setattr(wait, "IDLE_POLL_S", NEVER_S)


@pytest.mark.usefixtures("no_net")
def test_a_rename_wakes_without_the_poll(tmp_path: Path) -> None:
    path = tmp_path / ".BOOT_DONE"
    writer = threading.Thread(target=atomic.write_bytes, args=(path, b"up"))
    with FolderWatch(tmp_path) as watch:
        assert watch.has_events
        assert wait_until(watch, FirstLook(path, writer)) == b"up"
    writer.join()


@pytest.mark.usefixtures("no_net")
def test_a_folder_behind_a_symbolic_link_is_watched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "link" / ".BOOT_DONE"
    writer = threading.Thread(target=atomic.write_bytes, args=(path, b"up"))
    with FolderWatch(tmp_path / "link") as watch:
        assert wait_until(watch, FirstLook(path, writer)) == b"up"
    writer.join()


@pytest.mark.usefixtures("no_net")
def test_a_removal_wakes_too(tmp_path: Path) -> None:
    path = tmp_path / ".BOOT_DONE"
    path.touch()
    remover = threading.Thread(target=path.unlink)

    def gone() -> bool | None:
        if not remover.ident:
            remover.start()
        return None if path.exists() else True

    with FolderWatch(tmp_path) as watch:
        assert wait_until(watch, gone)
    remover.join()


def test_reading_wakes_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[FileSystemEvent] = []

    def hear(waker: wait._Waker, event: FileSystemEvent) -> None:
        heard.append(event)
        waker._wake()

    monkeypatch.setattr(wait._Waker, "on_any_event", hear)
    (tmp_path / "file").write_bytes(b"content")
    with FolderWatch(tmp_path) as watch:
        for _ in range(10):
            (tmp_path / "file").read_bytes()
            os.listdir(tmp_path)
        (tmp_path / "file").rename(tmp_path / "renamed")
        assert wait_until(watch, lambda: heard or None)
    assert {event.src_path for event in heard} == {str(tmp_path / "file")}
    assert {event.event_type for event in heard} <= {"moved", "deleted"}


@pytest.mark.parametrize("step", ["__init__", "schedule", "start"])
@pytest.mark.parametrize("error", [OSError(24, "inotify instance limit reached"), FileNotFoundError()])
def test_without_events_the_poll_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, step: str
) -> None:
    def fail(self: object, *arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Observer, step, fail)
    monkeypatch.setattr(wait, "POLL_S", 0.01)
    path = tmp_path / ".BOOT_DONE"
    writer = threading.Thread(target=atomic.write_bytes, args=(path, b"up"))
    with FolderWatch(tmp_path) as watch:
        assert not watch.has_events
        look = FirstLook(path, writer)
        assert wait_until(watch, look) == b"up"
        assert look.looks > 1
    writer.join()


def test_a_waiter_can_be_woken_by_hand(tmp_path: Path) -> None:
    with FolderWatch(tmp_path) as watch:
        watch.wake()
        assert watch.wait_changed(NEVER_S)
        assert not watch.wait_changed(0.0)


def test_closing_ends_its_threads(tmp_path: Path) -> None:
    def watching() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if type(thread).__module__.startswith("watchdog.")}

    before = watching()
    with FolderWatch(tmp_path):
        started = watching() - before
        assert started
    assert not started & watching()


def test_what_the_library_warns_of_is_no_line_of_a_command(tmp_path: Path) -> None:
    program = (
        "import logging, pathlib, sys; from p2pfl_state.wait import FolderWatch\n"
        "with FolderWatch(pathlib.Path(sys.argv[1])):\n"
        "    logging.getLogger('watchdog.observers.inotify').error('called when the thread is inactive')"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert said.stderr == ""
