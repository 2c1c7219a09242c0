"""`p2pfl-train simulate`, as a person types it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from p2pfl_train.config import OptimiserOptions, TrainingOptions
from p2pfl_train.redteam import results
from p2pfl_train.redteam.attacks import parse_attack
from p2pfl_train.redteam.crew import Crew
from p2pfl_train.redteam.options import Defence, Setting
from p2pfl_train.redteam.simulation import members, simulate
from p2pfl_train.tasks import TaskOptions
from tests.processes import TORCH_PATIENCE_S, Processes
from tests.train.command_line import Capture, call, fails

torch.set_num_threads(1)


@pytest.fixture
def line(tmp_path: Path) -> list[object]:
    """A small network: the command and its options, with the folder of its results at the end."""
    options = "--peers 6 --byzantine 1 --fan-out 4 --rounds 3 --evaluate-every 1 --model-arg hidden=16"
    return ["simulate", *options.split(), "--threads", "1", "--out", tmp_path / "out"]


def figures_of(line: list[object]) -> dict[str, Any]:
    folder = line[-1]
    assert isinstance(folder, Path)
    found: dict[str, Any] = json.loads((folder / results.FIGURES).read_text())
    return found


def test_a_small_run_is_told_line_by_line(capsys: Capture, line: list[object]) -> None:
    code, out, err = call(capsys, *line)
    assert (code, err) == (0, "")
    first, *rounds, last = out.splitlines()
    assert first == (
        "6 peers, 1 liar (alie), nnm+trimmed_mean of 4 + 1 models, f = 1, digits dirichlet:1.0, seed 0"
    )
    assert [text.split(":")[0] for text in rounds] == ["round 1", "round 2", "round 3"]
    assert all("honest accuracy 0." in text and " worst, factor " in text for text in rounds)
    assert "peers x rounds a second" in last
    assert str(line[-1]) in last


def test_what_is_written(capsys: Capture, line: list[object]) -> None:
    code, out, err = call(capsys, *line, "--json")
    assert code == 0, err
    assert "round 3: " in err
    figures = json.loads(out)
    assert figures == figures_of(line)
    asked = {"peers": 6, "byzantine": 1, "attack": "alie", "aggregate": "nnm+trimmed_mean", "fan_out": 4}
    kept = {"f": 1, "data": "digits", "model": None, "partition": "dirichlet:1.0", "seed": 0}
    assert {name: figures[name] for name in asked | kept} == asked | kept
    training = figures["training"]
    assert (training["local_steps"], training["batch_size"]) == (1, 25)
    assert training["optimiser"] == {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    assert [one["round"] for one in figures["rounds"]] == [1, 2, 3]
    assert [one["final"] for one in figures["rounds"]] == [False, False, True]
    for one in figures["rounds"]:
        assert len(one["accuracies"]) == 5
        assert one["mean"] == pytest.approx(sum(one["accuracies"]) / 5)
        assert one["worst"] == min(one["accuracies"])
        assert one["loss"] > 0
        assert one["factor"] > 0
    assert (figures["mean"], figures["worst"]) == tuple(figures["rounds"][-1][n] for n in ("mean", "worst"))
    assert figures["peer_rounds_per_second"] > 0
    folder = line[-1]
    assert isinstance(folder, Path)
    assert sorted(path.name for path in folder.iterdir()) == [results.FIGURES, results.PICTURE]
    with Image.open(folder / results.PICTURE) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(set(picture.convert("L").tobytes())) > 20, "there is something to see"


def test_a_run_without_liars_by_plain_averaging(capsys: Capture, line: list[object]) -> None:
    options = ["--byzantine", "0", "--aggregate", "fedavg", "--attack", "none"]
    code, out, _ = call(capsys, *line, *options, "--partition", "iid")
    assert code == 0
    assert out.startswith("6 peers, no liars, fedavg of 4 + 1 models, f = 0, digits iid, seed 0\n")
    assert "factor –" in out


def test_options_of_the_trainer_are_taken(capsys: Capture, line: list[object]) -> None:
    options = "--optimizer adam --lr 0.01 --local-steps 2 --batch-size 10 --seed 5 --attack foe:2"
    assert call(capsys, *line, *options.split())[0] == 0
    figures = figures_of(line)
    assert figures["attack"] == "foe:2"
    assert figures["seed"] == 5
    assert [one["factor"] for one in figures["rounds"]] == [2.0] * 3
    training = figures["training"]
    assert (training["local_steps"], training["batch_size"]) == (2, 10)
    assert training["optimiser"]["name"] == "adam"


def test_fewer_liars_expected_than_there_are_is_said(capsys: Capture, line: list[object]) -> None:
    code, _, err = call(capsys, *line, "--expect-byzantine", 0)
    assert code == 0
    assert err.startswith("the honest expect 0 of 1 liars (--expect-byzantine)")
    assert call(capsys, *line, "--expect-byzantine", 0, "--aggregate", "fedavg")[2] == ""


def test_a_bound_that_is_kept_and_one_that_is_not(capsys: Capture, line: list[object]) -> None:
    assert call(capsys, *line, "--bound", "0.0")[0] == 0
    said = fails(capsys, 9, *line, "--bound", "0.99")
    worst = figures_of(line)["worst"]
    assert f"the worst honest accuracy is {worst:.4f}, below --bound 0.99" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--fan-out 2 --byzantine 2", "2 of 3 models may be liars'"),
        ("--byzantine 3 --fan-out 5", "no fan-out is safe"),
        ("--expect-byzantine 0.5", "no fan-out is safe"),
    ],
)
def test_an_unsafe_plan_is_refused_with_its_remedy(
    capsys: Capture, line: list[object], options: str, words: str
) -> None:
    said = fails(capsys, 9, *line, *options.split())
    assert words in said
    assert "--fan-out " in said or "a network key" in said
    assert not Path(str(line[-1])).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--attack x", "--attack 'x' must be one of none, sign-flip"),
        ("--attack alie:0", "the factor must be a number above 0"),
        ("--aggregate x", "--aggregate 'x' must be one of mean"),
        ("--fan-out 6", "--fan-out 6 must be from 1 to the other peers, 5"),
        ("--fan-out 0", "--fan-out 0 must be from 1"),
        ("--byzantine 6", "--byzantine 6 must be from 0 to below --peers, 6"),
        ("--byzantine -1", "--byzantine -1 must be from 0"),
        ("--peers 1", "must be from"),
        ("--expect-byzantine nan", "--expect-byzantine nan must be from 0"),
        ("--risk 0", "--risk 0.0 must be above 0"),
        ("--engine x", "--engine 'x' must be local or ray"),
        ("--workers 0", "--workers 0 must be from 1"),
        ("--rounds 0", "--rounds 0 must be from 1"),
        ("--rounds x", "--rounds"),
        ("--seed x", "--seed"),
        ("--bound 2", "--bound 2.0 must be from 0 to 1"),
        ("--bound nan", "--bound nan must be from 0 to 1"),
        ("--threads 5000", "--threads 5000 must be from 1 to 1024"),
        pytest.param(
            "--threads 0",
            "--threads 0 must be from 1",
        ),
        ("--optimizer x", "--optimizer 'x' must be sgd or adam"),
        ("--local-steps 0", "--local-steps 0 must be from 1"),
        ("--batch-size 0", "--batch-size 0 must be from 1"),
        ("--lr nan", "--lr nan must be above 0"),
        ("--lr -1", "--lr -1.0 must be above 0"),
        ("--momentum 2", "--momentum 2.0 must be from 0"),
        ("--evaluate-every 0", "--evaluate-every 0 must be from 1"),
        ("--evaluate-examples 0", "--evaluate-examples 0 must be from 1"),
        ("--model-arg hidden", "must be like hidden=64"),
        ("--partition x", "--partition 'x' must be paper"),
        ("--fraction 0", "--fraction 0.0 must be above 0"),
        ("--aggregate krum --fan-out 3 --expect-byzantine 0.1", "withstands 1 liar among at least 5 models"),
    ],
)
def test_a_wrong_option_is_one_line(capsys: Capture, line: list[object], options: str, words: str) -> None:
    assert words in fails(capsys, 2, *line, *options.split())
    assert not Path(str(line[-1])).exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--data nowhere.csv", 6, "nowhere.csv"),
        ("--data nowhere:task", 6, "No module named 'nowhere'"),
        ("--model no-such-model", 7, "unknown model 'no-such-model'"),
        ("--data mnist --no-download --data-dir nowhere", 6, "mnist is not in nowhere"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    capsys: Capture, line: list[object], options: str, code: int, words: str
) -> None:
    assert words in fails(capsys, code, *line, *options.split())


def test_ctrl_c_ends_a_run_with_what_it_has(processes: Processes, line: list[object]) -> None:
    options = [*map(str, line), "--rounds", str(10**9), "--bound", "0.0"]
    simulation = processes.start_python(
        "simulate", "-m", "p2pfl_train", *options, patience_s=TORCH_PATIENCE_S
    )
    simulation.wait_output("round 2: ")
    simulation.signal(signal.SIGINT)
    assert simulation.wait() == 130, "a bound is not kept by half a run"
    found = figures_of(line)["rounds"]
    assert len(found) >= 2
    assert not any(one["final"] for one in found)


def test_a_folder_that_cannot_be_written_is_one_line(
    capsys: Capture, line: list[object], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert "choose another --out DIR" in fails(capsys, 2, *line[:-1], tmp_path / "file")


def test_figures_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    setting = Setting(
        2, 0, parse_attack("none"), Defence(fan_out=1), TaskOptions(model=f"{path}:net"),
        TrainingOptions(1, None, 25, OptimiserOptions("sgd", 0.1)), rounds=1,
    )  # fmt: skip
    outcome = simulate(setting, Crew(setting, members(setting)))
    assert str(tmp_path) not in json.dumps(results.figures(outcome))
