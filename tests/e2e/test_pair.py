"""Real daemons and real trainers together: peers that learn more than their own data shows them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from p2pfl_state import atomic, markers
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import read_header

from tests.processes import ROOT, Daemon, Process, Processes, wait_for_trainer

pytestmark = pytest.mark.timeout(1200)
DIGITS = ("--data", "digits", "--partition", "paper", "--deadline", "60")
"""With time for each round, so that none fails because the machine is busy."""
PEERS = 3


def lines(state: StateDir) -> list[dict[str, Any]]:
    return list(atomic.read_json_lines(state.metrics))


def latest(state: StateDir, field: str) -> Any:
    """The last value of a field of metrics.jsonl that is not null."""
    values = [line[field] for line in lines(state) if line.get(field) is not None]
    return values[-1] if values else None


def version(state: StateDir) -> int:
    """Of the published model; 0 before there is one."""
    return read_header(state.model).manifest().version if state.model.exists() else 0


def wait_version(state: StateDir, wanted: int) -> None:
    wait_for_trainer(lambda: version(state) >= wanted, what=f"version {wanted}")


def wait_accuracy(state: StateDir, wanted: float) -> None:
    wait_for_trainer(
        lambda: (latest(state, "accuracy_averaged") or 0.0) > wanted,
        what=f"an accuracy above {wanted}",
    )


def peers(state: StateDir) -> list[dict[str, Any]]:
    """The peers that a daemon lists; none before it has written its list."""
    value = json.loads(state.peers.read_bytes()) if state.peers.exists() else {"peers": []}
    listed: list[dict[str, Any]] = value["peers"]
    return listed


def publishes(peer_id: str, state: StateDir) -> bool:
    """Whether the daemon of `state` knows a peer as one whose model can be had now."""
    return any(
        peer["id"] == peer_id and peer["published"] and peer["state"] == "alive" for peer in peers(state)
    )


def wait_listed(state: StateDir, wanted: set[str]) -> None:
    wait_for_trainer(
        lambda: {peer["id"] for peer in peers(state)} == wanted,
        what="the list of all peers",
    )


def chain(processes: Processes, folder: Path, count: int) -> list[Daemon]:
    """Daemons, each booted to the one before."""
    daemons: list[Daemon] = []
    for number in range(1, count + 1):
        boot = [daemons[-1].address] if daemons else []
        daemons.append(processes.start_daemon(folder / f"peer-{number}", boot=boot))
    return daemons


def run_json(*arguments: str | Path) -> Mapping[str, Any]:
    """What a command prints with --json."""
    line = [sys.executable, "-m", *map(str, arguments), "--json"]
    ran = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    value: dict[str, Any] = json.loads(ran.stdout)
    return value


def test_three_peers_learn_all_digits_from_each_other(processes: Processes, tmp_path: Path) -> None:
    daemons = chain(processes, tmp_path, PEERS)
    trainers = [
        processes.start_trainer(
            daemon.state.root, *DIGITS, "--shard", f"{number}/{PEERS}", "--final-evaluation"
        )
        for number, daemon in enumerate(daemons, 1)
    ]
    for daemon in daemons:  # a peer alone cannot pass 0.7 with 7 of 10 digits
        wait_accuracy(daemon.state, 0.9)
    stopped = [trainer.stop() for trainer in trainers]
    assert stopped == [0] * PEERS
    tasks = set()
    for daemon in daemons:
        state = daemon.state
        *cycles, final = lines(state)
        assert final["final"] is True
        assert not any(line["failed"] for line in [*cycles, final])
        assert not any(line["refused"] for line in [*cycles, final])
        others = {other.peer_id for other in daemons} - {daemon.peer_id}
        wait_listed(state, others)
        manifest = read_header(state.model).manifest()
        assert {parent.peer_id for parent in manifest.parents} <= others
        tasks.add(manifest.task)
    assert len(tasks) == 1, "one task"
    root = daemons[0].state.root
    measured = run_json("p2pfl_train", "evaluate", "--state", root)
    *_, final = lines(daemons[0].state)
    averaged, trained = final["accuracy_averaged"], final["accuracy_trained"]
    assert measured["accuracy"] == pytest.approx(trained if averaged is None else averaged)
    assert run_json("p2pfl_net", "status", "--state", root)["trainer"] == "stopped"
    assert [daemon.stop() for daemon in daemons] == [0] * PEERS


def start_pair(processes: Processes, folder: Path) -> tuple[Daemon, Daemon, Process]:
    """Two daemons; the second has a published model; a trainer on the first that has averaged it."""
    first, second = chain(processes, folder, 2)
    other = processes.start_trainer(second.state.root, *DIGITS, "--shard", "2/2", "--cycles", "3")
    assert other.wait() == 0
    trainer = processes.start_trainer(first.state.root, *DIGITS, "--shard", "1/2")
    wait_for_trainer(lambda: any(line["models"] for line in lines(first.state)), what="an average")
    return first, second, trainer


def test_a_killed_daemon_takes_the_network_away_and_not_the_training(
    processes: Processes, tmp_path: Path
) -> None:
    daemon, second, trainer = start_pair(processes, tmp_path)
    state, peer_id = daemon.state, daemon.peer_id
    before = markers.read_boot_done(state)
    assert before is not None
    daemon.kill()
    wait_version(state, version(state) + 5)
    assert trainer.alive
    again = processes.start_daemon(state.root, boot=[second.address])
    assert again.peer_id == peer_id
    assert again.wait_ready().instance != before.instance
    seen = len(lines(state))
    wait_for_trainer(
        lambda: any(line["models"] for line in lines(state)[seen:]),
        what="an average after the restart",
    )
    assert trainer.stop() == 0


def test_a_killed_trainer_goes_on_from_what_it_published(processes: Processes, tmp_path: Path) -> None:
    daemon, _, trainer = start_pair(processes, tmp_path)
    state = daemon.state
    trainer.kill()
    published, rounds = version(state), latest(state, "round")
    seen = len(lines(state))
    served = read_header(state.model).manifest().weights
    fetched = tmp_path / "fetched.safetensors"
    run_json("p2pfl_net", "get", daemon.address, "--out", fetched)
    assert read_header(fetched).manifest().weights == served, "the daemon goes on serving it"
    again = processes.start_trainer(state.root, *DIGITS, "--shard", "1/2")
    wait_for_trainer(
        lambda: any(line["models"] for line in lines(state)[seen:]),
        what="an average after the restart",
    )
    assert again.stop() == 0
    later = lines(state)[seen:]
    assert later[0]["version"] > published
    assert all(line["round"] > rounds for line in later if line["asked"])
    assert not any(line["failed"] for line in later)


def test_a_trainer_may_start_before_its_daemon(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    trainer = processes.start_trainer(state.root, *DIGITS, "--cycles", "2")
    wait_for_trainer(lambda: state.trainer_lock.exists(), what="the trainer's lock")
    daemon = processes.start_daemon(state.root)
    assert trainer.wait() == 0
    assert version(state) >= 2
    assert daemon.stop() == 0


def test_a_newcomer_with_nothing_but_an_address_receives_the_model(
    processes: Processes, tmp_path: Path
) -> None:
    first, _, trainer = start_pair(processes, tmp_path)
    newcomer = processes.start_daemon(tmp_path / "newcomer", boot=[first.address])
    receiver = processes.start_trainer(newcomer.state.root)
    wait_version(newcomer.state, 1)
    assert newcomer.state.task.read_bytes() == first.state.task.read_bytes()
    assert receiver.stop() == 0
    assert trainer.stop() == 0
    assert read_header(newcomer.state.model).manifest().task == read_header(first.state.model).manifest().task


def test_the_network_gives_a_new_trainer_its_first_weights(processes: Processes, tmp_path: Path) -> None:
    first, second = chain(processes, tmp_path, 2)
    teacher = processes.start_trainer(first.state.root, *DIGITS, "--cycles", "60")
    assert teacher.wait() == 0
    taught = latest(first.state, "accuracy_trained")
    assert taught > 0.9
    wait_for_trainer(lambda: publishes(first.peer_id, second.state), what="the news of the model")
    one_tiny_step = ("--cycles", "1", "--local-steps", "1", "--lr", "1e-6")
    pupil = processes.start_trainer(second.state.root, *DIGITS, "--shard", "2/3", *one_tiny_step)
    assert pupil.wait() == 0
    assert latest(second.state, "accuracy_trained") > 0.85, "one tiny step does not teach that"


def test_a_directory_has_one_daemon_and_one_trainer(processes: Processes, tmp_path: Path) -> None:
    daemon = processes.start_daemon(tmp_path / "peer")
    twin = processes.start_daemon(tmp_path / "peer", ready=False)
    assert twin.wait() == 3
    assert "is in use by another daemon" in twin.output()
    trainer = processes.start_trainer(tmp_path / "peer", *DIGITS)
    wait_version(daemon.state, 1)
    second = processes.start_trainer(tmp_path / "peer", *DIGITS)
    assert second.wait() == 3
    assert "is in use by another trainer" in second.output()
    assert trainer.stop() == 0
    assert daemon.stop() == 0


def test_a_stop_while_libraries_are_loaded_is_clean(processes: Processes, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "peer")
    os.mkfifo(tmp_path / "never-written")
    (tmp_path / "torch.py").write_text(
        f"print('torch on its way in', flush=True)\nopen({str(tmp_path / 'never-written')!r})\n"
    )
    line = ("-m", "p2pfl_train", "run", "--state", state.root, *DIGITS)
    trainer = processes.start_python("trainer", *line, env={"PYTHONPATH": str(tmp_path)})
    trainer.wait_output("torch on its way in")
    assert not state.trainer_lock.exists(), "it has not begun"
    assert trainer.stop() == 0


def test_peers_that_cannot_be_averaged_say_so(processes: Processes, tmp_path: Path) -> None:
    first, second = chain(processes, tmp_path, 2)
    trainers = [
        processes.start_trainer(first.state.root, "--data", "digits"),
        processes.start_trainer(second.state.root, "--data", "digits", "--model", "paper-cnn"),
    ]
    for trainer in trainers:
        trainer.wait_output("nothing to average: 1 peers are here and train another task")
    assert [trainer.stop() for trainer in trainers] == [0, 0]
    assert trainers[0].output().count("nothing to average") == 1


def test_peers_without_each_others_tags_say_so(processes: Processes, tmp_path: Path) -> None:
    first = processes.start_daemon(tmp_path / "first", "--tags", "digits,lab-1")
    second = processes.start_daemon(tmp_path / "second", "--tags", "digits,lab-2", boot=[first.address])
    trainers = [processes.start_trainer(peer.state.root, *DIGITS) for peer in (first, second)]
    for trainer in trainers:
        trainer.wait_output("nothing to average: 1 peers train this task, but none has all tags of this one")
    assert [trainer.stop() for trainer in trainers] == [0, 0]
    assert trainers[0].output().count("nothing to average") == 1


def test_code_from_the_network_is_laid_down_to_be_read(processes: Processes, tmp_path: Path) -> None:
    first, second = chain(processes, tmp_path, 2)
    source = (
        "from torch import nn\n\n\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self) -> None:\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    (tmp_path / "mynet.py").write_text(source)
    teacher = processes.start_trainer(
        first.state.root, "--data", "digits", "--model", f"{tmp_path}/mynet.py:Net", "--cycles", "2"
    )
    assert teacher.wait() == 0
    newcomer = processes.start_trainer(second.state.root)
    assert newcomer.wait() == 7
    assert "which is not accepted" in newcomer.output()
    assert second.state.received_source.read_text() == source
    digest = hashlib.sha256(source.encode()).hexdigest()
    accepting = processes.start_trainer(second.state.root, "--accept-arch", digest)
    wait_version(second.state, 1)
    assert accepting.stop() == 0


def test_a_reader_that_has_seen_enough_is_no_error(processes: Processes, tmp_path: Path) -> None:
    daemon = processes.start_daemon(tmp_path / "peer")
    for command in ("status", "peers"):
        line = [sys.executable, "-m", "p2pfl_net", command, "--state", str(daemon.state.root), "--json"]
        reading, writing = os.pipe()
        os.close(reading)
        try:
            ran = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False)
        finally:
            os.close(writing)
        assert ran.stderr == b""
        assert ran.returncode == 141
