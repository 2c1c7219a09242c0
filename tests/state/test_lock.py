"""Who lives: owners exclude each other, probes disturb nobody, and a kill frees at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from p2pfl_state import lock as lock_module
from p2pfl_state.errors import DirectoryInUse, DirectoryUnusable
from p2pfl_state.lock import ProcessLock, is_held

OWN = """
import sys
from pathlib import Path
from p2pfl_state.errors import DirectoryInUse
from p2pfl_state.lock import ProcessLock
lock = ProcessLock(Path(sys.argv[1]))
try:
    lock.acquire()
except DirectoryInUse:
    print("in use", flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
    lock.release()
"""

PROBE = """
import sys
from pathlib import Path
from p2pfl_state.lock import is_held
print("probing", flush=True)
seen = 0
for _ in range(int(sys.argv[2])):
    seen += is_held(Path(sys.argv[1]))
print(seen, flush=True)
"""


@contextmanager
def running(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, args)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_an_owner_excludes_an_owner_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    assert not is_held(path)
    with running(OWN, path) as owner:
        assert says(owner) == "held"
        assert is_held(path)
        with pytest.raises(DirectoryInUse, match="in use by another daemon: stop it, or choose another"):
            ProcessLock(path).acquire()
        with running(OWN, path) as second:
            assert says(second) == "in use"
        owner.communicate("")
    assert not is_held(path)
    lock = ProcessLock(path)
    lock.acquire()
    with running(OWN, path) as third:
        assert says(third) == "in use"
    lock.release()
    lock.release()


def test_a_killed_owner_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    with running(OWN, path) as owner:
        assert says(owner) == "held"
        owner.kill()
        owner.wait()
        assert not is_held(path)
        lock = ProcessLock(path)
        lock.acquire()
        lock.release()


def test_probes_never_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    path.touch()
    with running(PROBE, path, 20_000) as one, running(PROBE, path, 20_000) as other:
        assert (says(one), says(other)) == ("probing", "probing")
        assert (says(one), says(other)) == ("0", "0")


def test_a_storm_of_probes_never_makes_a_starting_owner_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "START_PATIENCE_S", 30.0)  # this process may get no processor either
    path = tmp_path / "daemon.lock"
    path.touch()
    with running(PROBE, path, 10**9) as one, running(PROBE, path, 10**9) as other:
        assert (says(one), says(other)) == ("probing", "probing")
        for _ in range(100):
            lock = ProcessLock(path)
            lock.acquire()
            assert is_held(path)
            lock.release()
        assert (one.poll(), other.poll()) == (None, None)
        one.kill()
        other.kill()


def test_a_place_where_no_lock_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "daemon.lock"
    with pytest.raises(DirectoryUnusable):
        ProcessLock(path).acquire()
    with pytest.raises(DirectoryUnusable):
        is_held(path)
