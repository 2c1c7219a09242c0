"""Runs of the loop in this process, on the digits."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from p2pfl_state import atomic
from p2pfl_state.layout import StateDir
from rich.console import Console

from p2pfl_train import loop
from p2pfl_train.config import (
    RunOptions,
    StopOptions,
    TrainingOptions,
)
from p2pfl_train.startup import TaskSource
from p2pfl_train.tasks import TaskOptions
from tests.train.fake_daemon import Offer, peer_id

torch.set_num_threads(1)

DIGITS = TaskOptions(data="digits", shard="1/3")
QUICK = TrainingOptions(local_steps=2)


def options(state: StateDir, cycles: int | None = 3, **changes: Any) -> RunOptions:
    return replace(RunOptions(state.root, training=QUICK, stop=StopOptions(cycles)), **changes)


def run(
    state: StateDir,
    cycles: int = 3,
    source: TaskOptions = DIGITS,
    stop: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> str:
    """Runs the loop in this process and returns what it said."""
    said = io.StringIO()
    loop.run(options(state, cycles, **changes), TaskSource(source), Console(file=said, width=200), stop)
    return said.getvalue()


def lines(state: StateDir) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of the cycles, and the final ones."""
    every = list(atomic.read_json_lines(state.metrics))
    return [line for line in every if "final" not in line], [line for line in every if "final" in line]


def offering(*states: StateDir) -> Callable[[Any], Sequence[Offer]]:
    return lambda request: [(peer_id(i + 1), other.model) for i, other in enumerate(states)]


def peak_kb() -> int:
    """The most memory that this process had resident; `ru_maxrss` would be that of the parent, if larger."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
