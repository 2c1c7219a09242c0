"""Whole numbers that no float can hold, and nesting that no parser can follow, are refused like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from p2pfl_state.atomic import read_json_lines
from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import Fields
from p2pfl_state.manifest import Manifest

HUGE = 10**400


def test_a_number_too_large_for_a_float_is_malformed() -> None:
    with pytest.raises(MalformedFile, match="field 'seconds'"):
        Fields({"seconds": HUGE}, "a file").number("seconds")


@pytest.mark.parametrize(
    "metric", [HUGE, -HUGE, float("nan"), float("inf")], ids=["huge", "-huge", "nan", "inf"]
)
def test_a_metric_of_a_manifest_must_fit_a_float(metric: float) -> None:
    good = Manifest(version=1, samples=1, task="0" * 64, weights="1" * 64).to_json()
    with pytest.raises(MalformedFile, match="metric 'loss' is not a finite number"):
        Manifest.read({**good, "metrics": {"loss": metric}})


def test_a_line_nested_too_deep_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"[" * 100_000 + b'\n{"event": "joined"}\n')
    assert list(read_json_lines(path)) == [{"event": "joined"}]
