"""Real liars in real networks of daemons: what honest trainers with a robust rule come to among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from p2pfl_state import atomic
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import read_header

from tests.processes import ROOT, Daemon, Process, Processes, wait_for_trainer

pytestmark = pytest.mark.timeout(1800)
MNIST = Path(os.environ.get("P2PFL_DATA_DIR", ROOT / "data"))
"""Where the real data set may lie: its tests skip without."""


def network(processes: Processes, folder: Path, honest: int, liars: int) -> tuple[list[Daemon], list[Daemon]]:
    """Daemons of the honest and of the liars, each booted to the one before."""
    daemons: list[Daemon] = []
    for number in range(honest + liars):
        boot = [daemons[-1].address] if daemons else []
        daemons.append(processes.start_daemon(folder / f"peer-{number + 1}", boot=boot))
    return daemons[:honest], daemons[honest:]


def start_liars(processes: Processes, daemons: Sequence[Daemon], *options: str) -> list[Process]:
    return [processes.start_script("liar", f"--state={daemon.state.root}", *options) for daemon in daemons]


def version(state: StateDir) -> int:
    """Of the published model; 0 before there is one."""
    return read_header(state.model).manifest().version if state.model.exists() else 0


def final(state: StateDir) -> float:
    """Accuracy after the last average, on all evaluation data."""
    *_, line = atomic.read_json_lines(state.metrics)
    assert line.get("final")
    accuracy = line["accuracy_averaged"]
    assert isinstance(accuracy, float), line
    return accuracy


@pytest.mark.parametrize(
    ("attack", "options"),
    [("sign-flip:10", ()), ("label-flip", ("--data=digits", "--shard=4/4"))],
    ids=["sign-flip", "label-flip"],
)
def test_three_honest_peers_learn_beside_a_liar(
    processes: Processes, tmp_path: Path, attack: str, options: tuple[str, ...]
) -> None:
    honest, liars = network(processes, tmp_path, 3, 1)
    learning = [
        processes.start_trainer(
            daemon.state.root,
            *("--data", "digits", "--shard", f"{number}/3", "--partition", "iid", "--deadline", "60"),
            *("--byzantine", "1", "--fan-out", "3", "--blocking"),
        )
        for number, daemon in enumerate(honest, start=1)
    ]
    lying = start_liars(processes, liars, f"--attack={attack}", "--every=0.05", *options)
    wait_for_trainer(lambda: version(liars[0].state) >= 20, "20 lies")
    wait_for_trainer(lambda: all(version(daemon.state) >= 60 for daemon in honest), "60 versions of each")
    assert [trainer.stop() for trainer in learning] == [0, 0, 0]
    assert [liar.stop() for liar in lying] == [0]
    for daemon in honest:
        assert final(daemon.state) > 0.85
        lines = list(atomic.read_json_lines(daemon.state.metrics))
        assert {line["aggregate"] for line in lines} == {"nnm+trimmed_mean"}
        assert 1 in {line["byzantine"] for line in lines}


def test_a_liar_says_what_it_cannot_do(processes: Processes, tmp_path: Path) -> None:
    for options, text in (
        (["--attack=dissensus"], "one model to all"),
        (["--attack=label-flip"], "give it --data"),
        (["--attack=whatever"], "must be one of"),
        ([], "no such directory; start a daemon"),
    ):
        liar = processes.start_script("liar", f"--state={tmp_path / 'state'}", *options)
        assert liar.wait() == 2
        assert text in liar.output()
        assert len(liar.output().splitlines()) == 1
        assert not (tmp_path / "state").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (MNIST / "MNIST").exists(), reason="needs MNIST in data or P2PFL_DATA_DIR")
@pytest.mark.parametrize("attack", ["sign-flip:3", "foe", "alie"])
def test_eight_honest_pairs_and_two_liars_on_mnist(processes: Processes, tmp_path: Path, attack: str) -> None:
    honest, liars = network(processes, tmp_path, 8, 2)
    learning = [
        processes.start_trainer(
            daemon.state.root,
            *("--data", "mnist", "--data-dir", str(MNIST), "--no-download", "--shard", f"{number}/8"),
            *("--partition", "dirichlet:1.0", "--model", "caffe-lenet", "--deadline", "30"),
            *("--expect-byzantine", "0.2", "--fan-out", "9", "--minutes", "4", "--final-evaluation"),
        )
        for number, daemon in enumerate(honest, start=1)
    ]
    lying = start_liars(processes, liars, f"--attack={attack}")
    assert [trainer.wait(900) for trainer in learning] == [0] * 8
    accuracies = [final(daemon.state) for daemon in honest]
    print(f"{attack}: {' '.join(f'{accuracy:.4f}' for accuracy in accuracies)}")
    assert [liar.stop() for liar in lying] == [0, 0]
    assert min(accuracies) > 0.95
