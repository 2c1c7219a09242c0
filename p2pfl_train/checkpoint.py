"""What the trainer remembers for itself between two lives: optimiser state and counters.

One safetensors file, `trainer.safetensors`: tensors by parameter index and name, the rest as JSON in
its metadata. Nothing is unpickled, also not from our own disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from p2pfl_state.errors import MalformedFile, UnknownContract
from p2pfl_state.fields import Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION
from torch import Tensor
from torch.optim import Optimizer

from p2pfl_train.errors import WeightsRefused
from p2pfl_train.weights import load_tensors, save_tensors

METADATA_KEY = "p2pfl-trainer"


@dataclass(frozen=True)
class Counters:
    """Where a run stands."""

    task: str
    """Task digest that all of this belongs to."""
    version: int = 0
    """Publications so far."""
    cycle: int = 0
    batches: int = 0
    """Training batches drawn."""
    round: int = 0
    """The last round asked for."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The data options of the run, so that `evaluate` finds the same examples; JSON."""


def save(path: Path, optimiser: Optimizer, counters: Counters) -> None:
    """Replaces the file at `path`. Raises `DirectoryUnusable`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float | bool]] = {}
    for index, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif isinstance(value, bool | int | float):
                numbers.setdefault(str(index), {})[name] = value
    record = {
        "contract": CONTRACT_VERSION,
        "optimiser": type(optimiser).__name__,
        "numbers": numbers,
        "task": counters.task,
        "version": counters.version,
        "cycle": counters.cycle,
        "batches": counters.batches,
        "round": counters.round,
        "data": dict(counters.data),
    }
    save_tensors(path, tensors, {METADATA_KEY: json.dumps(record, allow_nan=False)})


@dataclass(frozen=True)
class Saved:
    """A trainer file that was read."""

    counters: Counters
    optimiser_kind: str
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]

    def restore(self, optimiser: Optimizer) -> None:
        """Puts the optimiser state back if it fits; otherwise nothing changes."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in self.tensors.items():
            index, _, name = key.partition(".")
            if not index.isdecimal() or int(index) >= len(parameters):
                return
            # A momentum has the shape of its parameter, a step counter none.
            if tensor.shape not in (parameters[int(index)].shape, torch.Size([])):
                return
            state.setdefault(int(index), {})[name] = tensor
        for index, entries in self.numbers.items():
            if not index.isdecimal() or int(index) >= len(parameters) or not isinstance(entries, dict):
                return
            state.setdefault(int(index), {}).update(entries)
        if self.optimiser_kind != type(optimiser).__name__:
            return
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})


def load(path: Path) -> Saved | None:
    """The file at `path`; None where there is none or it cannot be understood.

    The published weights hold without it, so one that is damaged costs the momentum and not the run.
    Raises `UnknownContract` for a file of another version, which must not be overwritten.
    """
    try:
        tensors, metadata = load_tensors(path)
        fields = Fields(parse_object(metadata.get(METADATA_KEY, "").encode(), path.name), path.name)
        fields.contract()
        counters = Counters(
            task=fields.digest("task"),
            version=fields.integer("version"),
            cycle=fields.integer("cycle"),
            batches=fields.integer("batches"),
            round=fields.integer("round"),
            data=fields.mapping("data"),
        )
        return Saved(counters, fields.text("optimiser"), tensors, fields.mapping("numbers", limit=100_000))
    except UnknownContract:
        raise
    except (WeightsRefused, MalformedFile):
        return None
