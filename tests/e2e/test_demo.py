"""`make demo`: a small network learns to its end, and leaves nothing behind however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from p2pfl_state import lock
from p2pfl_state.layout import StateDir

from scripts import die_with_parent
from scripts.demo import LONGEST_START_S, final_accuracy
from scripts.experiment import Member, fresh_folder
from scripts.pairs import Pair, PairOptions
from scripts.watching import Watcher
from tests.processes import ROOT, TORCH_PATIENCE_S, Process, Processes, wait_for_trainer

pytestmark = pytest.mark.timeout(900)
PEERS = 4
NAMES = ("accuracy", "cycles", "known_peers", "collection")
PICTURES = {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}


def start(processes: Processes, out: Path, *options: str) -> Process:
    return processes.start_script("demo", f"--out={out}", *options)


def states(out: Path) -> list[StateDir]:
    return [StateDir(out / f"peer-{number}") for number in range(1, PEERS + 1)]


def nothing_runs(out: Path) -> bool:
    held = [lock.is_held(path) for state in states(out) for path in (state.daemon_lock, state.trainer_lock)]
    return not any(held)


@pytest.mark.timeout(1200)
def test_all_peers_learn_all_digits(processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo = start(processes, out, "--seconds=400")  # it ends when all have learned, on a busy machine late
    demo.wait_output("learning", LONGEST_START_S + TORCH_PATIENCE_S)
    assert demo.wait(550) == 0
    shown = demo.output()
    *_, table = shown.partition("final accuracy on all dev examples")
    rows = [line.split("│")[1:-1] for line in table.splitlines() if "peer-" in line]
    assert [row[0].strip() for row in rows] == ["peer-1", "peer-2", "peer-3", "peer-4"]
    assert all(float(row[3].strip().removesuffix(" %")) > 93 for row in rows)
    assert f"plots in {out / 'plots'}" in shown.replace("\n", "")
    assert {path.name for path in (out / "plots").iterdir()} == PICTURES
    assert nothing_runs(out)


@pytest.mark.parametrize(
    ("trained", "averaged", "final"), [(0.95, 0.97, 0.97), (0.95, None, 0.95), (None, None, None)]
)
def test_a_peer_whose_last_round_brought_nothing_ends_with_what_it_trained(
    tmp_path: Path, trained: float | None, averaged: float | None, final: float | None
) -> None:
    pair = Pair(PairOptions(tmp_path, (), ()))
    member = Member("peer", pair, Watcher(pair.state), 0.0)
    line = {"time": 1.0, "final": True, "accuracy_trained": trained, "accuracy_averaged": averaged}
    pair.state.metrics.write_text(json.dumps(line) + "\n")
    member.watcher.look()
    assert final_accuracy(member) == final


def test_the_folder_of_a_running_experiment_is_kept(processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with fresh_folder(out):
        demo = start(processes, out)
        (out / "kept").touch()
        assert demo.wait() == 3
        assert f"peers run in {out}: stop them, or choose another folder with OUT=DIR" in demo.output()
        assert (out / "kept").exists()


@pytest.mark.parametrize("seconds", ["0", "nan", "inf", "-1"])
def test_a_demo_learns_for_some_time(processes: Processes, tmp_path: Path, seconds: str) -> None:
    demo = start(processes, tmp_path / "demo", f"--seconds={seconds}")
    assert demo.wait() == 2
    assert demo.output() == f"demo: SECONDS={seconds} must be above 0 and finite\n"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("moment", ["starting peer 1", "starting peer 3", "learning"])
def test_ctrl_c_at_any_time_is_clean(processes: Processes, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "demo"
    demo = start(processes, out)
    demo.wait_output(moment, LONGEST_START_S + TORCH_PATIENCE_S)
    demo.signal(signal.SIGINT)
    assert demo.wait() == 130
    assert "Traceback" not in demo.output()
    assert nothing_runs(out)


def test_killed_itself_it_leaves_no_process(processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo = start(processes, out)
    demo.wait_output("starting peer 3")
    demo.kill()
    wait_for_trainer(lambda: nothing_runs(out), what="the end of all peers")


def test_a_folder_that_is_not_a_demos_is_kept(processes: Processes, tmp_path: Path) -> None:
    precious = tmp_path / "thesis" / "chapter.tex"
    precious.parent.mkdir()
    precious.write_text("all my work")
    demo = start(processes, precious.parent)
    assert demo.wait() == 3
    assert "is not from an earlier run" in demo.output()
    assert precious.read_text() == "all my work"


def test_a_folder_of_an_earlier_demo_is_kept_while_a_peer_runs_in_it(
    processes: Processes, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "experiment.json").write_text("{}\n")
    daemon = processes.start_daemon(out / "peer-2")
    demo = start(processes, out)
    assert demo.wait() == 3
    assert f"peers run in {out}" in demo.output()
    assert daemon.stop() == 0


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal of 100 x 30."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    yield ours, theirs
    os.close(ours)


def test_a_terminal_gets_a_live_table(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    out = tmp_path / "demo"
    line = [sys.executable, "-m", "scripts", "demo", f"--out={out}"]
    demo = subprocess.Popen(
        die_with_parent.command(line),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(theirs)
    shown = ""
    while "peer-2" not in shown:
        shown += os.read(ours, 65536).decode(errors="replace")
    for heading in ("peers known", "models averaged", "accuracy"):
        assert heading in shown
    demo.send_signal(signal.SIGINT)
    try:
        while part := os.read(ours, 65536):
            shown += part.decode(errors="replace")
    except OSError:  # a pseudo-terminal whose other end is closed reads as an error
        pass
    assert demo.wait(TORCH_PATIENCE_S) == 130
    assert shown.count("\x1b[?25h") == 1, "the cursor is back"
    assert nothing_runs(out)


def test_the_folder_above_all_is_not_replaced(processes: Processes) -> None:
    demo = start(processes, Path("/"))
    assert demo.wait() == 3
    assert demo.output().count("\n") == 1
    assert "choose another with OUT=DIR" in demo.output()
