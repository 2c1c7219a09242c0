"""The figures of a report, against lines made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pfl_train.errors import DataError
from p2pfl_train.plots.summary import PeerSummary, summarise
from tests.train.synthetic_run import START, write_lines


def cycle(
    time: float, number: int, averaged: float | None, trained: float | None, **more: Any
) -> dict[str, Any]:
    record = {"time": START + time, "cycle": number, "models": 5}
    return {**record, "accuracy_averaged": averaged, "accuracy_trained": trained, **more}


def summary_of(tmp_path: Path, *records: dict[str, Any]) -> PeerSummary:
    (one,) = summarise([write_lines(tmp_path / "8000", records, [])])
    return one


def test_times_to_accuracy_count_from_the_first_line_of_any_peer(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a", [cycle(0, 1, 0.2, 0.1), cycle(50, 2, 0.90, 0.97)], [])
    second = write_lines(
        tmp_path / "b", [cycle(20, 1, None, 0.3), cycle(60, 2, 0.96, 0.9), cycle(70, 3, 0.5, 0.5)], []
    )
    a, b = summarise([first, second])
    assert (a.name, a.seconds_to_first, a.seconds_to_090, a.seconds_to_095) == ("a", 0.0, 50.0, None)
    assert (b.name, b.seconds_to_first, b.seconds_to_090, b.seconds_to_095) == ("b", 20.0, 60.0, 60.0)
    late = summarise([first, second], since=START + 20)[1]
    assert (late.seconds_to_first, late.seconds_to_090) == (0.0, 40.0)


def test_last_best_and_final_accuracies(tmp_path: Path) -> None:
    one = summary_of(
        tmp_path,
        cycle(1, 1, 0.97, 0.96),
        cycle(2, 2, 0.95, 0.90),
        cycle(3, 3, None, 0.91),
        {**cycle(4, 3, 0.981, 0.941), "final": True},
    )
    assert (one.last_averaged, one.best_averaged) == (0.95, 0.97)
    assert (one.last_trained, one.best_trained) == (0.91, 0.96)
    assert (one.final_averaged, one.final_trained) == (0.981, 0.941)
    assert one.cycles == 3


def test_the_final_of_the_last_life_counts(tmp_path: Path) -> None:
    one = summary_of(
        tmp_path,
        cycle(1, 1, 0.5, 0.5),
        {"time": START + 2, "final": True, "accuracy_averaged": 0.6, "accuracy_trained": 0.55},
        cycle(30, 2, 0.7, 0.7),
        {"time": START + 31, "final": True, "accuracy_averaged": 0.8},
    )
    assert (one.final_averaged, one.final_trained, one.cycles) == (0.8, None, 2)


def test_rounds_are_counted_with_those_of_a_start_and_of_old_lines(tmp_path: Path) -> None:
    one = summary_of(
        tmp_path,
        cycle(1, 1, None, None, asked=3, answered=2, failed=1),
        cycle(2, 2, None, None, asked=True, answered=True, failed=False),
        cycle(3, 3, None, None, asked=0, answered=0, failed=1),
        cycle(4, 4, None, None),
        cycle(5, 5, None, None, asked=1, answered="yes", failed=2),  # not ours
        {"time": START + 6, "final": True, "asked": 1, "answered": 1},
    )
    assert (one.rounds_asked, one.rounds_answered, one.rounds_failed) == (5, 4, 2)


def test_shares_of_wall_time(tmp_path: Path) -> None:
    parts = {
        "seconds_training": 6.0,
        "seconds_waiting": 1.0,
        "seconds_averaging": 0.5,
        "seconds_publishing": 0.25,
        "seconds_evaluating": 0.25,
    }
    one = summary_of(
        tmp_path,
        cycle(0, 1, None, None, seconds_starting=100.0, **parts),
        cycle(12, 2, None, None, **parts),
    )
    assert one.wall_s == 20.0  # the first cycle's 8 s, and 12 s to the end of the second
    assert one.starting_s == 100.0
    assert one.share_training == pytest.approx(0.6)
    assert one.share_waiting == pytest.approx(0.1)
    assert one.share_averaging == pytest.approx(0.05)
    assert one.share_publishing == one.share_evaluating == pytest.approx(0.025)


def test_the_last_average_of_a_life_counts_in_the_shares(tmp_path: Path) -> None:
    parts = {"seconds_training": 6.0, "seconds_waiting": 0.0}
    last = {"time": START + 20, "final": True, "seconds_waiting": 5.0, "seconds_evaluating": 3.0}
    one = summary_of(tmp_path, cycle(6, 1, None, None, **parts), cycle(12, 2, None, None, **parts), last)
    assert one.wall_s == 20.0
    assert (one.share_waiting, one.share_evaluating) == (0.25, 0.15)
    assert one.share_training == pytest.approx(0.6)


def test_worst_drop_counts_only_averages_after_the_peer_has_passed(tmp_path: Path) -> None:
    one = summary_of(
        tmp_path,
        cycle(1, 1, 0.30, 0.80),  # before 0.90: a large loss that does not count
        cycle(2, 2, 0.92, 0.70),
        cycle(3, 3, 0.85, 0.91),
        cycle(4, 4, 0.94, 0.95),
        cycle(5, 5, 0.10, 0.96, models=0),  # no average was taken
        cycle(6, 6, None, 0.99),
    )
    assert one.worst_drop == pytest.approx(0.06)


def test_worst_drop_of_the_average_right_after_passing_by_training(tmp_path: Path) -> None:
    one = summary_of(tmp_path, cycle(1, 1, 0.50, 0.90))
    assert one.worst_drop == pytest.approx(0.40)


@pytest.mark.parametrize(
    ("records", "drop"),
    [
        ([cycle(1, 1, 0.8, 0.85)], None),
        ([cycle(1, 1, 0.95, 0.6), cycle(2, 2, None, 0.9)], None),
        ([cycle(1, 1, 0.95, 0.6), cycle(2, 2, 0.96, 0.9)], 0.0),
    ],
    ids=["never passed", "never measured", "only gains"],
)
def test_worst_drop_without_a_drop(records: list[dict[str, Any]], drop: float | None, tmp_path: Path) -> None:
    assert summary_of(tmp_path, *records).worst_drop == drop


def test_a_peer_that_never_trained_is_still_listed(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "a", [cycle(1, 1, 0.5, 0.5)], [])
    idle = write_lines(tmp_path / "b", [], [])
    one = summarise([good, idle])[1]
    assert (one.name, one.cycles, one.seconds_to_first, one.last_averaged, one.final_averaged) == (
        "b", 0, None, None, None,
    )  # fmt: skip
    assert (one.wall_s, one.share_training, one.worst_drop) == (0.0, 0.0, None)


def test_nothing_at_all_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="p2pfl-train run"):
        summarise([write_lines(tmp_path / "a", [], [])])
