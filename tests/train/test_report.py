"""The lines of metrics.jsonl, field by field."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from p2pfl_state import atomic
from rich.console import Console

from p2pfl_train.evaluate import Evaluation
from p2pfl_train.report import CycleRecord, Report

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
"""What a terminal is told about its cursor."""


def line_of(folder: Path, record: CycleRecord, *, final: bool = False) -> dict[str, Any]:
    """What is written of a record."""
    with Report(folder / "metrics.jsonl", Console(file=io.StringIO()), "own") as report:
        report.write(record, final=final)
    *_, last = atomic.read_json_lines(folder / "metrics.jsonl")
    return dict(last)


def test_both_measurements_of_a_cycle_are_told(tmp_path: Path) -> None:
    record = CycleRecord()
    record.note_trained(Evaluation(10, 0.7, 0.8, None, {"f1": 0.6}))
    record.note_averaged(Evaluation(10, 0.3, 0.9, None, {"f1": 0.8}))
    line = line_of(tmp_path, record)
    assert (line["accuracy_trained"], line["accuracy_averaged"]) == (0.8, 0.9)
    assert (line["dev_loss_trained"], line["dev_loss_averaged"]) == (0.7, 0.3)
    assert (line["metrics_trained"], line["metrics_averaged"]) == ({"f1": 0.6}, {"f1": 0.8})


def test_the_terminal_is_left_alone_until_there_is_a_table(tmp_path: Path) -> None:
    """A signal before the first cycle ends the process at once: nobody would show the cursor again."""
    terminal = io.StringIO()
    with Report(tmp_path / "metrics.jsonl", Console(file=terminal, force_terminal=True), "own") as report:
        report.say("initial weights: from the task's seed")
        assert HIDE not in terminal.getvalue()
        report.write(CycleRecord())
        assert HIDE in terminal.getvalue()
    assert terminal.getvalue().rindex(SHOW) > terminal.getvalue().rindex(HIDE)


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    record = CycleRecord()
    record.note_trained(Evaluation(10, 0.7, 0.8, None))
    line = line_of(tmp_path, record)
    assert (line["accuracy_averaged"], line["dev_loss_averaged"]) == (None, None)
    assert "metrics_averaged" not in line
    assert "metrics_trained" not in line, "a task without metrics of its own"
