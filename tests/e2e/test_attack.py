"""`make attack`: a tiny gate, its report, and what it says when it is interrupted or wrongly called."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from scripts import attack_report
from scripts.attack_grids import GATE_ATTACKS, ROBUST, Cell, Comparison, Grid, Size, gate, hard, mnist
from tests.processes import Process, Processes

pytestmark = pytest.mark.timeout(900)

SMALL = Size(peers=6, byzantine=1, fan_out=None, rounds=5, partition="paper")


def start(processes: Processes, out: Path, *options: str) -> Process:
    line = ["--data=digits", "--model=mlp", "--peers=6", "--byzantine=1", "--rounds=5", "--jobs=1"]
    return processes.start_script(
        "attack", *line, "--attacks=sign-flip", "--bound=0.0", f"--out={out}", *options
    )


def figures(mean: float, worst: float, **changes: Any) -> dict[str, Any]:
    training = {"local_steps": 1, "batch_size": 25, "optimiser": {"learning_rate": 0.1, "momentum": 0.9}}
    found = {"mean": mean, "worst": worst, "fan_out": 2, "f": 1, "seconds": 3.0, "model": "mlp"}
    return {**found, "training": training, **changes}


# The grids


def test_a_gate_has_each_attack_and_what_to_compare_it_with() -> None:
    cells = gate(SMALL, ["alie", "label-flip"], "median", [0, 1], 0.8).cells
    named = [(cell.attack, cell.byzantine, cell.aggregate, cell.worst_at_least) for cell in cells]
    of_a_seed = [
        ("alie", 1, "median", 0.8),
        ("label-flip", 1, "median", 0.8),
        ("none", 0, "median", 0.8),
        ("none", 0, "fedavg", None),
        ("alie", 1, "fedavg", None),
    ]
    assert named == 2 * of_a_seed
    assert [cell.seed for cell in cells] == [0] * 5 + [1] * 5
    assert {cell.expected for cell in cells} == {1 / 6}


@pytest.mark.parametrize(
    "grid", [gate(SMALL, GATE_ATTACKS, ROBUST, range(3), 0.8), mnist([0, 1]), Grid(hard(0))]
)
def test_the_cells_of_a_grid_have_names_of_their_own(grid: Grid) -> None:
    names = [cell.name for cell in grid.cells]
    assert len(set(names)) == len(names)
    assert not any(sign in name for name in names for sign in "/: ")
    assert {comparison.other.name for comparison in grid.comparisons} <= set(names)


# The report


def test_what_is_not_kept_is_said(tmp_path: Path) -> None:
    good, bad = (
        Cell("alie", 6, 1, worst_at_least=0.8),
        Cell("foe", 6, 1, mean_at_least=0.9, worst_at_least=0.8),
    )
    missing = Cell("shrink", 6, 1, worst_at_least=1.0)
    beside = [Comparison(bad, good, 0.01, "the other"), Comparison(missing, good, 0.0, "what did not run")]
    done = {good.name: figures(0.95, 0.8), bad.name: figures(0.85, 0.7)}
    broken = attack_report.write(tmp_path, Grid([good, bad, missing], beside), done, "digits", None)
    assert broken == [
        f"{bad.name}: mean 0.8500, at least 0.9",
        f"{bad.name}: worst 0.7000, at least 0.8",
        f"{bad.name}: 0.1000 below the other",
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["not_kept"] == broken
    assert (report["data"], report["model"], len(report["cells"])) == ("digits", "mlp", 2)
    text = (tmp_path / "report.md").read_text()
    assert all(f"- {line}\n" in text for line in broken)
    assert "| foe | nnm+trimmed_mean | 3 of 6 | 1 | 0 | 0.8500 | 0.7000 | 0.9 / 0.8 | 3 |" in text
    assert "shrink" not in text


def test_a_report_on_ones_own_data_and_model_has_no_path(tmp_path: Path) -> None:
    cell, model = Cell("alie", 6, 1), f"{tmp_path}/net.py:Net"
    done = {cell.name: figures(0.9, 0.8, model=model)}
    attack_report.write(tmp_path, Grid([cell]), done, f"{tmp_path}/images", model)
    for name in ("report.md", "report.json"):
        assert str(tmp_path) not in (tmp_path / name).read_text()


# The command


def test_a_tiny_gate_and_a_bound_that_is_not_kept(processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "report"
    attack = start(processes, out)
    assert attack.wait() == 0, attack.output()
    assert [line.split()[0] for line in attack.output().splitlines()] == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
        "report:",
    ]
    report = json.loads((out / "report.json").read_text())
    assert (report["data"], report["model"], report["not_kept"]) == ("digits", "mlp", [])
    run = [(one["attack"], one["byzantine"], one["aggregate"]) for one in report["cells"]]
    assert run == [
        ("sign-flip", 1, ROBUST),
        ("none", 0, ROBUST),
        ("none", 0, "fedavg"),
        ("sign-flip", 1, "fedavg"),
    ]
    for one in report["cells"]:
        assert (one["fan_out"], one["f"]) == (2, 0 if one["aggregate"] == "fedavg" else 1)
        assert 0 <= one["worst"] <= one["mean"] <= 1
    text = (out / "report.md").read_text()
    for heading in (
        "Under attack",
        "Without liars",
        "Plain averaging under attack",
        "Bounds that are not kept",
    ):
        assert f"## {heading}\n" in text
    assert text.endswith("None.\n")
    assert str(tmp_path) not in text + json.dumps(report), "no path of this machine"

    again = start(processes, out, "--resume", "--bound=1.0")
    assert again.wait() == 9
    report, last = again.output().splitlines()
    assert last.startswith("attack: 2 bounds are not kept: 6-1-sign-flip-nnm+trimmed_mean-safe-paper-")
    assert len(json.loads((out / "report.json").read_text())["not_kept"]) == 2
    assert ": worst 0." in (out / "report.md").read_text()


def test_ctrl_c_ends_it_and_resume_goes_on(processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "report"
    attack = start(processes, out, "--only=sign-flip")
    attack.wait_output("1/2 ")
    attack.signal(signal.SIGINT)
    assert attack.wait() == 130
    assert attack.output().splitlines()[-1] == "interrupted: no report; --resume goes on from here"
    assert not (out / "report.md").exists()
    (finished,) = (out / "cells").glob("*/simulation.json")
    before = finished.stat().st_mtime_ns

    again = start(processes, out, "--only=sign-flip", "--resume")
    assert again.wait() == 0, again.output()
    assert [line.split()[0] for line in again.output().splitlines()] == ["2/2", "report:"]
    assert finished.stat().st_mtime_ns == before
    assert len(json.loads((out / "report.json").read_text())["cells"]) == 2


def test_resume_keeps_no_cell_of_other_options(processes: Processes, tmp_path: Path) -> None:
    out, only = tmp_path / "report", "--only=sign-flip-fedavg"
    assert start(processes, out, only).wait() == 0
    again = start(processes, out, only, "--lr=0.3", "--resume")
    assert again.wait() == 0, again.output()
    (cell,) = json.loads((out / "report.json").read_text())["cells"]
    assert cell["training"]["optimiser"]["learning_rate"] == 0.3


@pytest.mark.parametrize(
    ("option", "code", "text"),
    [
        ("--peers=1", 2, "--byzantine must be from 1 to below --peers"),
        ("--byzantine=0", 2, "--byzantine must be from 1 to below --peers"),
        ("--byzantine=6", 2, "--byzantine must be from 1 to below --peers"),
        ("--byzantine=3", 9, "no fan-out is safe"),
        ("--bound=2", 2, "BOUND=2.0 must be from 0 to 1"),
        ("--bound=nan", 2, "BOUND=nan"),
        ("--seeds=a", 2, "SEEDS=a must be numbers"),
        ("--rounds=x", 2, "--rounds"),
        ("--rounds=0", 2, "--rounds 0 must be from 1"),
        ("--grid=x", 2, "--grid"),
        ("--jobs=0", 2, "--jobs 0 must be from 1"),
        ("--args='", 2, "no closing quotation"),
        ("--attacks=lies", 2, "--attack 'lies' must be one of none, sign-flip"),
        pytest.param(
            "--only=nothing",
            2,
            "--only",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    processes: Processes, tmp_path: Path, option: str, code: int, text: str
) -> None:
    attack = start(processes, tmp_path / "report", option)
    assert attack.wait() == code
    assert text in attack.output()
    assert len(attack.output().splitlines()) == 1
    assert not (tmp_path / "report" / "report.md").exists()
