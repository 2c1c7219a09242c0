"""The real command, stopped and killed in each step of a round."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import file_weights_digest, read_header
from p2pfl_state.wait import FolderWatch

from tests.processes import TORCH_PATIENCE_S
from tests.train.fake_daemon import FakeDaemon
from tests.train.running import lines, offering, run

pytestmark = pytest.mark.timeout(900)
torch.set_num_threads(1)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "own")


def trainer(state: StateDir, *arguments: str) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "p2pfl_train", "run", "--state", str(state.root), "--data", "digits"]
    return subprocess.Popen(
        [*command, "--local-steps", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(state: StateDir, condition: Callable[[], bool]) -> None:
    """Looks at every change, for some of what is looked for is there for a moment only."""
    give_up_at_s = time.monotonic() + TORCH_PATIENCE_S
    with FolderWatch(state.root) as watch:
        while not condition():
            assert time.monotonic() < give_up_at_s, "the trainer did not come so far"
            watch.wait_next()


def test_sigterm_averages_once_more_and_exits_cleanly(state: StateDir, published: StateDir) -> None:
    with FakeDaemon(state, offering(published)):
        process = trainer(state)
        wait_for(state, lambda: len(lines(state)[0]) >= 3)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=TORCH_PATIENCE_S)
    assert process.returncode == 0, output
    cycles, finals = lines(state)
    assert finals[0]["models"] == 1
    assert read_header(state.model).manifest().version == finals[0]["version"] > cycles[-1]["version"]


def test_a_second_interrupt_stops_at_once_and_nothing_published_is_lost(state: StateDir) -> None:
    with FakeDaemon(state) as daemon:
        process = trainer(state, "--deadline", "3600")
        wait_for(state, lambda: len(lines(state)[0]) >= 2)
        daemon.silent = True
        process.send_signal(signal.SIGINT)
        # the last request, which nobody answers, is what the second signal finds it waiting for
        assert process.stdout is not None
        while "stopping" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=TORCH_PATIENCE_S)
    assert process.returncode == 130, output
    assert output == ""
    assert file_weights_digest(state.model) == read_header(state.model).manifest().weights


KILLED = """
import os, signal, sys
from pathlib import Path
from p2pfl_state.layout import StateDir

step, state, arguments = sys.argv[1], StateDir(Path(sys.argv[2])), sys.argv[3:]
rename = os.replace


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def replace(source, target):
    path = Path(target)
    if step == "model written" and path == state.model and path.exists():
        die()
    if step == "trainer's file written" and path == state.trainer_state:
        die()
    rename(source, target)
    if step == "model replaced" and path == state.model:
        die()
    if step == "request written" and path == state.aggregate and state.trainer_state.exists():
        die()


os.replace = replace
sys.argv = ["p2pfl-train", "run", "--state", str(state.root), *arguments]
from p2pfl_train.__main__ import entry

entry()
"""
"""A trainer that kills itself in a step of its round: nobody outside would look in time."""


@pytest.mark.parametrize(
    "step", ["model written", "model replaced", "trainer's file written", "request written"]
)
def test_a_kill_at_any_step_leaves_a_directory_from_which_a_restart_goes_on(
    state: StateDir, published: StateDir, step: str
) -> None:
    with FakeDaemon(state, offering(published)) as daemon:
        command = [
            sys.executable,
            "-c",
            KILLED,
            step,
            str(state.root),
            "--data",
            "digits",
            "--local-steps",
            "1",
        ]
        killed = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_PATIENCE_S)
        assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
        before = read_header(state.model).manifest()
        assert file_weights_digest(state.model) == before.weights
        highest = max(request.round for request in daemon.requests)
        asked = len(daemon.requests)
        run(state, cycles=1)
        after = lines(state)[0][-1]
        assert after["version"] == before.version + 1
        assert after["cycle"] >= before.version + 1
        assert all(request.round > highest for request in daemon.requests[asked:])
    assert not list(state.root.glob(".*.tmp"))
