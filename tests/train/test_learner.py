"""One peer's model while it learns: its weights stay the model's own, whatever a step does to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest
from torch import Tensor, nn

from p2pfl_train import weights
from p2pfl_train.aggregate import Contribution
from p2pfl_train.batches import Batches
from p2pfl_train.checkpoint import Counters
from p2pfl_train.config import OptimiserOptions
from p2pfl_train.learner import Learner, fresh_model, make_optimiser
from p2pfl_train.tasks import TaskOptions, build_task
from p2pfl_train.tensors import digest_of, stored_tensors
from p2pfl_train.weights import TensorFile
from tests.train.fake_daemon import peer_id

torch.set_num_threads(1)

Build = Callable[[], nn.Module]


class Clipped(nn.Module):
    """Clips its weights as the papers on critics do: by assigning `.data`, which is other memory."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.fc.weight.data = self.fc.weight.data.clamp(-1.0, 1.0)
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


class Centred(nn.Module):
    """Keeps a running mean by assigning the buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(64))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * flat.mean(0)
        return self.fc(flat - self.mean)  # type: ignore[no-any-return]


def learner_of(folder: Path, build: Build) -> Learner:
    """A learner on the digits with the weights of the task's seed."""
    task = replace(build_task(TaskOptions(data="digits", shard="1/3")), build_model=build)
    model = fresh_model(task)
    folder.mkdir(exist_ok=True)
    return Learner(
        state=StateDir(folder),
        task=task,
        model=model,
        optimiser=make_optimiser(model, OptimiserOptions()),
        batches=Batches(task.train, 32, "0"),
        counters=Counters(task.spec.digest),
    )


def held(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what the model computes with now."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def file_of_ones(path: Path, model: nn.Module, task: str) -> TensorFile:
    """A published model of the same layout, all of whose numbers are 1."""
    tensors = {name: torch.ones_like(tensor) for name, tensor in stored_tensors(model).items()}
    manifest = Manifest(1, 1, task, digest_of(tensors))
    weights.save_tensors(path, tensors, {"p2pfl": manifest.encode()})
    return TensorFile.open(path)


REASSIGNING = pytest.mark.parametrize("build", [Clipped, Centred])


@REASSIGNING
def test_an_average_reaches_a_model_that_assigns_its_tensors_anew(tmp_path: Path, build: Build) -> None:
    made = learner_of(tmp_path / "own", build)
    made.train(3, lambda: False)
    file = file_of_ones(tmp_path / f"{peer_id(1)}.safetensors", made.model, made.counters.task)
    before = held(made.model)
    made.average([Contribution(file, made.samples)])
    for name, tensor in made.model.state_dict().items():
        torch.testing.assert_close(tensor, (before[name] + 1) / 2, msg=name)


@REASSIGNING
@pytest.mark.parametrize("origin", ["published", "network", "seed"])
def test_a_recovery_reaches_a_model_that_assigns_its_tensors_anew(
    tmp_path: Path, build: Build, origin: str
) -> None:
    made = learner_of(tmp_path / "own", build)
    good = held(made.model)
    if origin == "published":
        made.publish({})
    if origin == "network":
        made.initial = file_of_ones(tmp_path / "initial.safetensors", made.model, made.counters.task)
        good = {name: torch.ones_like(tensor) for name, tensor in good.items()}
    made.train(3, lambda: False)
    made.recover()
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, good[name]), name
