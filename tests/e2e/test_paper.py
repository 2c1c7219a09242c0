"""`make paper`: the experiment in small, with a kill, and its report."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from p2pfl_state import lock
from p2pfl_state.layout import StateDir

from p2pfl_train.plots.records import CycleLine, History, read_histories
from p2pfl_train.plots.summary import summarise
from scripts.paper_plan import Plan, Times
from scripts.paper_report import all_above_at_once, figures, markdown, spread
from tests.processes import Process, Processes

pytestmark = pytest.mark.timeout(900)
FAILED_SHARE = 0.1
"""Of the rounds, on a busy machine; on an idle one, one of some hundred fails."""
BLANK = CycleLine(
    time=0.0,
    final=False,
    cycle=1,
    accuracy_trained=None,
    accuracy_averaged=None,
    models=1,
    asked=1,
    answered=1,
    failed=0,
    starting_s=0.0,
    training_s=0.1,
    waiting_s=0.0,
    averaging_s=0.0,
    publishing_s=0.0,
    evaluating_s=0.0,
    collection_s=None,
    network_peers=None,
)


def history(*measured: tuple[float, float]) -> History:
    lines = tuple(replace(BLANK, time=time, accuracy_averaged=accuracy) for time, accuracy in measured)
    return History("peer", lines, (), ())


def test_all_at_once_is_when_the_latest_of_all_are_above() -> None:
    first = history((1, 0.96), (5, 0.80), (9, 0.97))
    second = history((2, 0.50), (4, 0.94), (7, 0.99))
    assert all_above_at_once([first, second], 0.95, since=0.0) == 9
    assert all_above_at_once([first, second], 0.90, since=1.0) == 3
    assert all_above_at_once([first, second, history()], 0.5, since=0.0) is None


def test_a_spread_needs_a_value_of_everyone() -> None:
    assert spread([0.5, 1.0]) == {"mean": 0.75, "worst": 0.5}
    assert spread([0.5, None]) is None
    assert spread([]) is None


def test_a_peer_whose_last_round_brought_nothing_counts_with_what_it_trained(tmp_path: Path) -> None:
    final: dict[str, object] = {"time": 2.0, "final": True, "accuracy_trained": 0.6, "accuracy_averaged": 0.9}
    ends = [final, {**final, "accuracy_averaged": None}]
    roots = [tmp_path / "a", tmp_path / "b"]
    for root, end in zip(roots, ends, strict=True):
        root.mkdir()
        cycle = {"time": 1.0, "cycle": 1}
        StateDir(root).metrics.write_text(json.dumps(cycle) + "\n" + json.dumps(end) + "\n")
    plan = Plan(2, 1.0, "mlp", "digits", None, (), False, 4, tmp_path)
    report = figures(plan, summarise(roots, since=0.0), read_histories(roots), Times([0.0]))
    assert report["final_averaged"] == {"mean": 0.75, "worst": 0.6}
    assert report["final_not_averaged"] == 1
    assert "no model came to the last average of 1 of the peers" in markdown(report)

    StateDir(roots[1]).metrics.write_text(json.dumps({"time": 1.0, "cycle": 1}) + "\n")
    report = figures(plan, summarise(roots, since=0.0), read_histories(roots), Times([0.0]))
    assert report["final_averaged"] is None
    assert "final accuracy after averaging: not measured by all" in markdown(report)


def start(processes: Processes, out: Path, *options: str) -> Process:
    line = ["--data=digits", "--model=mlp", "--peers=3", f"--out={out}"]
    return processes.start_script("paper", *line, *options)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_experiment_with_a_kill_and_its_report(processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "report"
    paper = start(processes, out, "--minutes=0.1", "--cycles=100", "--kill", "--args=--fan-out 2")
    assert paper.wait(1000) == 0
    report = json.loads((out / "report.json").read_text())
    assert [peer["name"] for peer in report["peers"]] == ["peer-01", "peer-02", "peer-03"]
    assert report["killed"]["peer"] == "peer-02"
    assert report["killed"]["restarted_s"] > report["killed"]["killed_s"] > 0
    # A peer asks two: the killed one and one that may be busy just then. Once it is suspected, only that one.
    for peer in report["peers"]:
        assert peer["rounds_failed"] <= FAILED_SHARE * peer["rounds_asked"], report["peers"]
    failed = {peer["name"]: peer["rounds_failed"] for peer in report["peers"]}
    assert report["rounds_failed"] == sum(failed.values())
    assert report["killed"]["others_rounds_failed"] == sum(failed.values()) - failed["peer-02"]
    assert report["rounds_answered"] > 0
    assert report["machine"]["cores"] >= 1
    assert "--fan-out" in report["options"]["trainer"]
    assert report["final_averaged"]["worst"] > 0.75, "a peer alone cannot pass 0.71"
    for level in ("0.90", "0.95"):
        times = report["all_above"][level]
        assert times["all_at_once_s"] is None or times["all_at_once_s"] >= times["each_once_s"]
    text = (out / "report.md").read_text()
    assert "peer-02 killed with -9" in text
    assert str(tmp_path) not in text + json.dumps(report), "no path of this machine"
    for name in ("accuracy", "cycles", "known_peers", "collection"):
        assert (out / f"{name}.png").stat().st_size > 1000
        assert f"({name}.png)" in text
    assert not any(lock.is_held(StateDir(path).daemon_lock) for path in (out / "peers").iterdir())


def test_ctrl_c_ends_all_without_a_report(processes: Processes, tmp_path: Path) -> None:
    paper = start(processes, tmp_path / "report")
    paper.wait_output("peer-02 joined")
    paper.signal(signal.SIGINT)
    assert paper.wait() == 130
    assert not (tmp_path / "report" / "report.md").exists()
    assert "no report" in paper.output()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--peers=1", "PEERS=1 must be from 2 to 100"),
        ("--minutes=0", "MINUTES=0.0 must be above 0"),
        ("--minutes=nan", "MINUTES=nan"),
        ("--peers=ten", "--peers"),
        ("--cycles=0", "--cycles 0 must be at least 1"),
        ("--args='", "no closing quotation"),
    ],
)
def test_wrong_usage_is_one_line(processes: Processes, tmp_path: Path, option: str, text: str) -> None:
    paper = start(processes, tmp_path / "report", option)
    assert paper.wait() == 2
    assert text in paper.output()
    assert len(paper.output().splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_a_trainer_that_fails_ends_the_experiment(processes: Processes, tmp_path: Path) -> None:
    paper = start(processes, tmp_path / "report", "--args=--model no-such-model")
    assert paper.wait() == 27
    assert "paper: the trainer ended with exit code 7" in paper.output()
