"""`make run`: one pair in the foreground. It ends as a whole, and never leaves a process behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from p2pfl_state import atomic, lock, markers
from p2pfl_state.layout import StateDir
from p2pfl_state.trust import Decision, change_trust

from p2pfl_net import networkkey
from scripts import pairs, run_pair
from tests.processes import ROOT, Process, Processes, wait_for, wait_for_trainer

pytestmark = pytest.mark.timeout(1200)
SMALL = ("--data", "digits", "--shard", "1/4")


def start_pair(processes: Processes, state: Path, *options: str, port: int = 0) -> Process:
    line = ["--host", "127.0.0.1", "--port", str(port), "--state", str(state)]
    return processes.start_script("run", *line, *(options or SMALL))


def holder(lock_file: Path) -> int | None:
    """The process that holds a lock, by the kernel's own list and the files that the process has open."""
    inode = str(lock_file.stat().st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1:4:2] == ["FLOCK", "WRITE"] and words[5].rpartition(":")[2] == inode:
            pid = int(words[4])
            if has_open(pid, lock_file):
                return pid
    return None


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has this very file open. An inode number alone may be another file's on another
    device, and not every file system gives stat the device that /proc/locks tells."""
    for name in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if name.samefile(path):
                return True
        except OSError:  # closed meanwhile, or another user's
            continue
    return False


def wait_metric(state: StateDir, name: str) -> None:
    """Until a cycle of the trainer has something other than false or 0 in a field."""
    wait_for_trainer(
        lambda: any(line.get(name) for line in atomic.read_json_lines(state.metrics)),
        what=name,
    )


def nothing_runs(state: StateDir) -> bool:
    return not lock.is_held(state.daemon_lock) and not lock.is_held(state.trainer_lock)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_both_after_a_last_average(
    processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    state = StateDir(tmp_path / "peer")
    pair = start_pair(processes, state.root)
    wait_metric(state, "answered")
    assert markers.read_boot_done(state) is not None
    daemon, trainer = holder(state.daemon_lock), holder(state.trainer_lock)
    assert daemon is not None
    assert trainer is not None
    niceness = [os.getpriority(os.PRIO_PROCESS, pid) for pid in (daemon, trainer)]
    assert niceness[0] < niceness[1], "training never starves the answers to pings"
    pair.signal(number)
    assert pair.wait() == 0
    assert nothing_runs(state)
    assert not state.boot_done.exists(), "the daemon ended cleanly"
    *_, last = atomic.read_json_lines(state.metrics)
    assert last["final"] is True
    *_, end = atomic.read_json_lines(state.events)
    assert end["event"] == "stopped"
    assert end["time"] >= last["time"], "the daemon was stopped after the trainer"
    assert "the daemon was lost" not in state.trainer_log.read_text()
    assert "first peer of a new network" in state.daemon_log.read_text()
    assert "final: cycle" in state.trainer_log.read_text()
    assert "stopped after cycle" in pair.output()


def test_a_second_ctrl_c_kills(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    pair = start_pair(processes, state.root)
    wait_metric(state, "answered")
    trainer = holder(state.trainer_lock)
    assert trainer is not None
    os.kill(trainer, signal.SIGSTOP)  # it will not end by itself
    pair.signal(signal.SIGINT)
    pair.wait_output("stopping")
    pair.signal(signal.SIGINT)
    assert pair.wait() == 130
    assert nothing_runs(state)


@pytest.mark.parametrize(("who", "status"), [("daemon", 19), ("trainer", 29)])
def test_when_one_dies_the_other_is_stopped_and_the_status_says_which(
    processes: Processes, tmp_path: Path, who: str, status: int
) -> None:
    state = StateDir(tmp_path / "peer")
    pair = start_pair(processes, state.root)
    wait_metric(state, "answered")
    victim = holder(state.daemon_lock if who == "daemon" else state.trainer_lock)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    assert pair.wait() == status
    assert nothing_runs(state)
    assert f"run: the {who} was ended by SIGKILL; the last lines of {state.root / who}.log:" in pair.output()
    if who == "trainer":
        assert not state.boot_done.exists(), "the daemon was stopped cleanly"


def test_killed_itself_it_leaves_no_process(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    pair = start_pair(processes, state.root)
    wait_metric(state, "answered")
    pair.kill()
    wait_for_trainer(lambda: nothing_runs(state), what="the end of both")


def test_a_finished_trainer_ends_the_pair_with_0(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    options = ("--tags", "vision,digits", "--args", "--cycles 3 --local-steps 2")
    pair = start_pair(processes, state.root, *SMALL, *options)
    assert pair.wait() == 0
    assert json.loads(state.peers.read_bytes())["self"]["tags"] == ["digits", "vision"]
    assert "stopped after cycle 3," in pair.output()
    assert nothing_runs(state)
    assert not state.boot_done.exists()


def test_a_peer_that_boots_to_itself_is_the_first(processes: Processes, tmp_path: Path) -> None:
    port = processes.port()
    state = StateDir(tmp_path / "peer")
    pair = start_pair(processes, state.root, *SMALL, "--boot", f"127.0.0.1:{port}", port=port)
    pair.wait_output("0 other peers")
    assert pair.stop() == 0


def test_two_pairs_learn_from_each_other(processes: Processes, tmp_path: Path) -> None:
    first = start_pair(processes, tmp_path / "a", "--shard", "1/2")
    state = StateDir(tmp_path / "a")
    marker = wait_for_trainer(lambda: markers.read_boot_done(state), what="the first pair's network")
    second = start_pair(processes, tmp_path / "b", "--shard", "2/2", "--boot", marker.address)
    second.wait_output("1 other peers")
    for name in "ab":
        wait_metric(StateDir(tmp_path / name), "models")
    assert first.stop() == 0
    assert second.stop() == 0


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--port", "70000"], 2, "--port '70000': a port is a whole number"),
        (["--port", "-1"], 2, "--port"),
        (["--port", "abc"], 2, "--port 'abc'"),
        (["--port", "0"], 2, "PORT=0 needs STATE=DIR"),
        (["--port", "8001", "--boot", "lab1"], 2, "'lab1' is not HOST:PORT"),
        (["--port", "8001", "--args", "'open"], 2, "--args"),
        (["--port", "8001", "--tags", "vision,MNIST"], 2, "--tags: tag 'MNIST'"),
        (["--port", "8001", "--no-such-option"], 2, "--no-such-option; see --help"),
    ],
)
def test_wrong_usage_is_one_line_and_starts_nothing(
    processes: Processes, tmp_path: Path, options: list[str], status: int, text: str
) -> None:
    pair = processes.start_script("run", *options)
    assert pair.wait() == status
    assert text in pair.output()
    assert len(pair.output().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--shard", "11/10"], 22, "--shard 11/10"),
        (["--data", "no/such/path"], 26, "no/such/path"),
        (["--model", "no-such-model"], 27, "no-such-model"),
        (["--boot", "127.0.0.1:1", "--net-args", "--boot-timeout 0.2"], 14, "no boot peer let this one in"),
        (["--net-args=--no-such-option"], 12, "--no-such-option"),
    ],
)
def test_what_one_of_them_refuses_is_shown_with_its_exit_code(
    processes: Processes, tmp_path: Path, options: list[str], status: int, text: str
) -> None:
    state = StateDir(tmp_path / "peer")
    pair = start_pair(processes, state.root, *options)
    assert pair.wait() == status
    assert text in pair.output()
    assert "Traceback" not in pair.output()
    assert nothing_runs(state)


def test_a_boot_peer_that_is_silent_is_told_while_it_is_waited_for(
    processes: Processes, tmp_path: Path
) -> None:
    state = StateDir(tmp_path / "peer")
    pair = start_pair(
        processes, state.root, *SMALL, "--boot", "127.0.0.1:1", "--net-args", "--boot-timeout 600"
    )
    wait_for(
        lambda: "no boot peer has answered yet: 127.0.0.1:1 (" in pair.output(), what="the line about it"
    )
    pair.signal(signal.SIGTERM)
    assert pair.wait() == 0
    assert nothing_runs(state)


def test_a_taken_port_ends_the_pair(processes: Processes, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        pair = start_pair(processes, tmp_path / "peer", *SMALL, port=taken.getsockname()[1])
        assert pair.wait() == 15
    assert "the daemon ended with exit code 5" in pair.output()


def test_a_directory_in_use_is_left_alone(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    daemon = processes.start_daemon(state.root)
    pair = start_pair(processes, state.root)
    assert pair.wait() == 3
    assert "is in use by another daemon" in pair.output()
    assert not state.daemon_log.exists(), "nothing was started"
    assert daemon.stop() == 0


def test_another_process_with_the_key_is_told_of(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    pair = start_pair(processes, state.root, "--data", "none")
    marker = wait_for(lambda: markers.read_boot_done(state), what="the pair")
    copy = StateDir(tmp_path / "copy")
    copy.root.mkdir()
    copy.key.write_bytes(state.key.read_bytes())
    copy.key.chmod(0o600)
    serve = ("-m", "p2pfl_net", "serve", "--state", copy.root, "--host", "127.0.0.1", "--port", "0")
    processes.start_python("twin", *serve, "--boot", marker.address)
    pair.wait_output("ANOTHER PROCESS USES THE KEY")
    pair.signal(signal.SIGINT)
    assert pair.wait() == 0


def test_a_private_pair_that_serves_the_approved_only(processes: Processes, tmp_path: Path) -> None:
    key = tmp_path / "lab.key"
    networkkey.make(key)
    options = ("--network-key", str(key), "--trust", "approve", "--data", "none")
    pair = start_pair(processes, tmp_path / "peer", *options)
    said = pair.wait_output("Ctrl-C stops it")
    assert "private network, models to and from approved peers only" in said
    pair.signal(signal.SIGINT)
    assert pair.wait() == 0


def test_that_nobody_is_approved_is_told(tmp_path: Path) -> None:
    def why(*net: str) -> str:
        return run_pair._why_nothing(pairs.Pair(pairs.PairOptions(tmp_path, net, ())))

    assert why("--trust", "approve") == f" (nobody is approved here: p2pfl-net trust list --state {tmp_path})"
    assert "trainer.log" in why()
    change_trust(StateDir(tmp_path), lambda decided: decided.approve("a" * 64, Decision(1e9)))
    assert "trainer.log" in why("--trust", "approve")


@pytest.mark.parametrize("wrong", ["NETWORK_KEYY=lab.key", "PROT=8001", "trust=approve"])
def test_make_takes_no_variable_that_it_does_not_know(wrong: str) -> None:
    line = ["make", "--no-print-directory", "-n", "run", "PORT=8001"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    said = subprocess.run([*line, wrong], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert f"no such variable here: {wrong.partition('=')[0]}" in said.stderr
    good = [*line, "NETWORK_KEY=lab.key", "TRUST=approve", "BOOT=lab1:8000"]
    said = subprocess.run(good, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert "--network-key='lab.key' --trust='approve'" in said.stdout
