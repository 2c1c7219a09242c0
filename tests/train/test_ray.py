"""The same simulation over a Ray cluster; skips without Ray."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pfl_train.redteam.crew import Crew
from p2pfl_train.redteam.options import Setting
from p2pfl_train.redteam.ray_engine import RayEngine
from p2pfl_train.redteam.simulation import members, simulate
from p2pfl_train.tasks import TaskOptions
from tests.processes import TORCH_PATIENCE_S, Processes
from tests.train.simulating import SMALL, accuracies, make

torch.set_num_threads(1)

pytestmark = pytest.mark.timeout(900)
"""Ray takes a minute to start on a busy machine."""


@pytest.fixture
def ray_home() -> Iterator[dict[str, str]]:
    """Ray is there, and what it writes goes into a folder of the test; short, for it makes sockets in it."""
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        yield {"HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}


def clustered(attack: str, threads: int) -> Setting:
    return make(attack, task=replace(SMALL, model_arguments={"hidden": 16, "dropout": 0.2}), threads=threads)


def on_cluster(processes: Processes, ray_home: dict[str, str], name: str, path: Path, *more: str) -> Any:
    """What a function of this module writes to `path`, called in a process of its own.

    Ray keeps processes and sockets in the one that started it, and warns of things that are not ours.
    """
    arguments = "".join(f", {one!r}" for one in more)
    program = (
        "from pathlib import Path; from tests.train import test_ray as here;"
        f"here.{name}(Path({str(path)!r}){arguments})"
    )
    process = processes.start_python("ray", "-c", program, env=ray_home, patience_s=TORCH_PATIENCE_S)
    assert process.wait() == 0
    return json.loads(path.read_text())


def run_on_cluster(path: Path, attack: str) -> None:
    """In a process of its own: accuracies and weights of a run by two workers."""
    setting = clustered(attack, threads=2)
    engine = RayEngine(setting, 2, None)
    try:
        outcome = simulate(setting, engine)
        rows, _ = engine.train(setting.rounds + 1)
        weights = dict(zip(engine.members, rows.tolist(), strict=True))
        path.write_text(json.dumps({"accuracies": accuracies(outcome), "weights": weights}))
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["alie", "label-flip"])
def test_two_workers_do_what_one_process_does(
    processes: Processes, tmp_path: Path, ray_home: dict[str, str], attack: str
) -> None:
    found = on_cluster(processes, ray_home, "run_on_cluster", tmp_path / "found.json", attack)
    setting = clustered(attack, threads=1)
    crew = Crew(setting, members(setting))
    outcome = simulate(setting, crew)
    rows, _ = crew.train(setting.rounds + 1)
    assert [tuple(one) for one in found["accuracies"]] == accuracies(outcome)
    assert sorted(map(int, found["weights"])) == sorted(crew.members)
    for index, row in zip(crew.members, rows, strict=True):
        torch.testing.assert_close(torch.tensor(found["weights"][str(index)]), row, rtol=1e-5, atol=1e-5)


def refuse_on_cluster(path: Path) -> None:
    """In a process of its own: what is raised for a task that no worker can build, and whether Ray stays."""
    try:
        RayEngine(make(task=TaskOptions(data="nowhere:task")), 2, None).close()
    except Exception as error:  # noqa: BLE001 - the test looks at what it is
        told = f"{type(error).__name__}: {error}"
    ray: Any = importlib.import_module("ray")
    path.write_text(json.dumps({"told": told, "left": ray.is_initialized()}))
    ray.shutdown()


@pytest.mark.slow
def test_what_no_worker_can_build_is_told_as_here(
    processes: Processes, tmp_path: Path, ray_home: dict[str, str]
) -> None:
    found = on_cluster(processes, ray_home, "refuse_on_cluster", tmp_path / "found.json")
    assert found["told"].startswith("DataError: --data nowhere:task failed: ModuleNotFoundError")
    assert not found["left"]


@pytest.mark.slow
def test_the_command_on_a_cluster(processes: Processes, tmp_path: Path, ray_home: dict[str, str]) -> None:
    line = ["-m", "p2pfl_train", "simulate", "--engine", "ray", "--workers", "2", "--peers", "3"]
    line += ["--byzantine", "0", "--fan-out", "2", "--rounds", "2", "--out", str(tmp_path / "out")]
    command = processes.start_python("ray", *line, env=ray_home, patience_s=TORCH_PATIENCE_S)
    assert command.wait() == 0
    assert "round 2: loss " in command.output()
    assert (tmp_path / "out" / "simulation.json").exists()
