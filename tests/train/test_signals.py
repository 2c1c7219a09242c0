"""Real signals to the real command before it trains: nothing is there to save, so it ends at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from p2pfl_state import lock
from p2pfl_state.layout import StateDir

from tests.processes import Processes, wait_for_trainer

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_trainer_that_still_reads_its_data(
    processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    """The data is a pipe that this test holds open: reading it would never end."""
    data, state = tmp_path / "endless.csv", StateDir(tmp_path / "peer")
    os.mkfifo(data)
    trainer = processes.start_trainer(state.root, "--data", str(data))

    def reading() -> int | None:
        assert trainer.alive, trainer.output()
        try:
            return os.open(data, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            return None

    pipe = wait_for_trainer(reading, what="the trainer's reading")
    try:
        assert lock.is_held(state.trainer_lock)
        trainer.signal(number)
        assert trainer.wait() == 0
    finally:
        os.close(pipe)
    assert trainer.output() == ""
    assert not lock.is_held(state.trainer_lock)
    assert sorted(path.name for path in state.root.iterdir()) == ["aggregation", "trainer.lock"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_trainer_that_waits_for_its_daemon(
    processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    state = StateDir(tmp_path / "peer")
    held = lock.ProcessLock(state.daemon_lock)
    state.root.mkdir()
    held.acquire()
    try:
        trainer = processes.start_trainer(state.root, "--data", "digits")
        wait_for_trainer(state.metrics.exists, what="all that comes before the wait")
        trainer.signal(number)
        assert trainer.wait() == 0
    finally:
        held.release()
    assert trainer.output() == ""
