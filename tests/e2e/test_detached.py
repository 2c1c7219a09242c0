"""Pairs that outlive their starter: started, watched and ended by what the state directory remembers."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from p2pfl_state import atomic, lock, markers
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

from scripts import detached
from scripts.failures import ScriptFailed
from tests.processes import Process, Processes, wait_for

DIGITS = ("--", "--port=0", "--host=127.0.0.1", "--shard=1/4")


def start(processes: Processes, state: StateDir, *options: str) -> Process:
    line = ["-m", "scripts", "detached", "start", f"--state={state.root}", *(options or DIGITS)]
    return processes.start_python("start", *line)


def end(processes: Processes, state: StateDir) -> dict[str, object]:
    stop = processes.start_python("stop", "-m", "scripts", "detached", "stop", f"--state={state.root}")
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
        assert detached.check(state, lambda: False) is True
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
    assert "no boot peer answered" in started.output()
    assert not state.launcher.exists()
    assert not lock.is_held(state.daemon_lock)


def test_what_fails_later_is_told_by_the_check(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    start(processes, state, *DIGITS, "--data=no/such/data").wait()
    try:
        wait_for(lambda: not lock.is_held(state.daemon_lock), what="the end of the pair")
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
