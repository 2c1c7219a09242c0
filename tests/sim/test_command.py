"""`p2pfl-net simulate` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rpc.peers import run_command


def test_a_scenario_prints_what_it_took_and_replays(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    line = ["simulate", "--peers", "20", "--seconds", "20", "--joined", "--kill", "0.2@5", "--loss", "0.05"]
    done = run_command(*line, "--json", "--trace", trace)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["converged"]
    assert (outcome["peers"], outcome["live"]) == (20, 16)
    assert len(outcome["detection_s"]) == 4
    assert len(trace.read_text().splitlines()) > 500
    assert json.loads(run_command(*line, "--json").stdout) == outcome
    table = run_command(*line).stdout
    assert "a dead peer is out of every view" in table


@pytest.mark.parametrize(
    "wrong",
    [
        ("--peers", "1"),
        ("--peers", "9", "--latency", "9"),
        ("--peers", "9", "--kill", "2@5"),
        ("--peers", "9", "--partition", "0.5@20"),
        ("--peers", "9", "--kill", "0.2@60"),
        ("--peers", "9", "--pause", "0.2@50-70"),
        (),
        ("--peers", "9", "--loss", "1.5"),
        ("--peers", "9", "--churn", "few"),
        ("--peers", "9", "--trace", "/nowhere/at/all"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_simulated_is_one_line(wrong: tuple[str, ...]) -> None:
    done = run_command("simulate", *wrong)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
