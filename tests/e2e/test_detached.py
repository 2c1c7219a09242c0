"""Pairs that outlive their starter: started, watched and ended by what the state directory remembers."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

import pytest
from p2pfl_state import atomic, lock, markers
from p2pfl_state.errors import DirectoryInUse, DirectoryUnusable
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

from scripts import detached
from scripts.failures import ScriptFailed
from tests.processes import Process, Processes, wait_for_trainer

pytestmark = pytest.mark.timeout(900)
DIGITS = ("--", "--port=0", "--host=127.0.0.1", "--shard=1/4")


def start(processes: Processes, state: StateDir, *options: str) -> Process:
    return processes.start_script("detached", "start", f"--state={state.root}", *(options or DIGITS))


def end(processes: Processes, state: StateDir) -> dict[str, object]:
    stop = processes.start_script("detached", "stop", f"--state={state.root}")
    assert stop.wait() == 0
    told: dict[str, object] = json.loads(stop.output())
    return told


def test_a_pair_is_started_checked_and_ended(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    started = start(processes, state)
    try:
        assert started.wait() == 0
        marker = markers.read_boot_done(state)
        assert marker is not None
        assert json.loads(started.output()) == {"peer_id": marker.peer_id, "address": marker.address}
        assert lock.is_held(state.daemon_lock), "it lives on"
        wait_for_trainer(lambda: detached.check(state, lambda: False), what="the first cycle")
        assert next(atomic.read_json_lines(state.metrics))["cycle"] == 1
        again = start(processes, state)
        assert again.wait() == 3
        assert "is in use by another daemon" in again.output()
    finally:
        ended = end(processes, state)
    assert ended == {"ended": True}
    assert not lock.is_held(state.daemon_lock)
    assert not lock.is_held(state.trainer_lock)
    assert not state.launcher.exists()
    *_, last = atomic.read_json_lines(state.metrics)
    assert last["final"] is True
    assert end(processes, state) == {"ended": False}


def test_what_fails_at_once_is_told_and_leaves_nothing(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    options = (*DIGITS, "--boot=127.0.0.1:1", "--net-args=--boot-timeout 0.2")
    started = start(processes, state, *options)
    assert started.wait() == 1
    assert "no boot peer let this one in" in started.output()
    assert not state.launcher.exists()
    assert not lock.is_held(state.daemon_lock)


def test_what_fails_later_is_told_by_the_check(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    start(processes, state, *DIGITS, "--data=no/such/data").wait()
    try:
        wait_for_trainer(lambda: not lock.is_held(state.daemon_lock), what="the end of the pair")
        with pytest.raises(ScriptFailed, match="the trainer ended with exit code 6"):
            detached.check(state, lambda: False)
    finally:
        end(processes, state)


def record(state: StateDir, pid: int, started: str) -> None:
    state.root.mkdir()
    value = {"contract": CONTRACT_VERSION, "pid": pid, "started": started, "metrics_bytes": 0}
    atomic.write_json(state.launcher, value)


def sleeper(processes: Processes, *, deaf: bool = False) -> Process:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if deaf else ""
    process = processes.start_python("sleeper", "-c", f"import signal;{ignore}print('up');signal.pause()")
    process.wait_output("up")
    return process


def test_of_two_starts_at_once_one_has_the_pair_and_it_can_be_ended(
    processes: Processes, tmp_path: Path
) -> None:
    state = StateDir(tmp_path / "peer")
    both = [start(processes, state) for _ in range(2)]
    try:
        assert sorted(process.wait() for process in both) == [0, 3]
        (refused,) = (process for process in both if process.wait() == 3)
        assert json.loads(refused.output().splitlines()[0]) == {"in_use": True}
    finally:
        ended = end(processes, state)
    assert ended == {"ended": True}
    assert not lock.is_held(state.daemon_lock)
    assert not lock.is_held(state.trainer_lock)


def test_a_start_keeps_out_of_one_that_is_under_way(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    state.root.mkdir()
    state.launcher_log.write_text("of the other")
    other = lock.ProcessLock(state.launcher_lock)
    other.acquire()
    try:
        refused = start(processes, state)
        assert refused.wait() == 3
    finally:
        other.release()
    assert "is in use by another launcher" in refused.output()
    assert state.launcher_log.read_text() == "of the other"
    assert not state.launcher.exists()


def test_a_start_keeps_out_while_the_recorded_process_lives(processes: Processes, tmp_path: Path) -> None:
    """Its pair may hold no lock: not yet, or because it is being ended."""
    state = StateDir(tmp_path / "peer")
    supervisor = sleeper(processes)
    started = detached.start_of(supervisor.pid)
    assert started is not None
    record(state, supervisor.pid, started)
    before = state.launcher.read_bytes()
    with pytest.raises(DirectoryInUse, match=f"started before, process {supervisor.pid}: stop it first"):
        detached.start(state, DIGITS[1:], lambda: False)
    assert state.launcher.read_bytes() == before
    assert not state.launcher_log.exists()


def test_a_pair_that_cannot_be_recorded_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `launcher.json`, no way to stop it. What is left running fails the test (see conftest)."""
    state = StateDir(tmp_path / "peer")

    def full(path: Path, value: object) -> None:
        raise DirectoryUnusable(f"no space left to write {path}")

    monkeypatch.setattr(atomic, "write_json", full)
    with pytest.raises(DirectoryUnusable, match=r"launcher\.json"):
        detached.start(state, DIGITS[1:], lambda: False)
    assert not lock.is_held(state.daemon_lock)
    assert not lock.is_held(state.launcher_lock)


def test_a_stop_ends_a_start_that_is_under_way(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a boot peer that never answers
        boot = f"--boot=127.0.0.1:{silent.getsockname()[1]}"
        starting = start(processes, state, *DIGITS, boot)
        wait_for_trainer(
            lambda: state.launcher.exists() and lock.is_held(state.daemon_lock),
            what="the daemon",
        )
        assert end(processes, state) == {"ended": True}
        assert starting.wait() == 1
    assert not state.launcher.exists()
    assert not lock.is_held(state.launcher_lock)


def test_a_process_id_that_was_given_to_another_program_is_not_signalled(
    processes: Processes, tmp_path: Path
) -> None:
    state = StateDir(tmp_path / "peer")
    innocent = sleeper(processes)
    started = detached.start_of(innocent.pid)
    assert started is not None
    boot, _, tick = started.partition(" ")
    record(state, innocent.pid, f"{boot} {int(tick) - 1}")
    assert detached.stop(state) is False
    assert innocent.alive
    assert not state.launcher.exists()


def test_a_process_that_does_not_listen_is_killed(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path / "peer")
    deaf = sleeper(processes, deaf=True)
    started = detached.start_of(deaf.pid)
    assert started is not None
    record(state, deaf.pid, started)
    monkeypatch.setattr(detached, "STOP_PATIENCE_S", 0.1)
    assert detached.stop(state) is True
    assert deaf.wait() == -signal.SIGKILL


def test_a_process_that_has_ended_has_no_start(processes: Processes) -> None:
    ended = processes.start("true", [sys.executable, "-c", "pass"])
    assert ended.wait() == 0
    assert detached.start_of(ended.pid) is None
