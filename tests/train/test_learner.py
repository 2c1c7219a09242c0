"""One peer's model while it learns: its weights stay the model's own, whatever a step does to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest, read_header
from torch import Tensor, nn
from torch.optim import Optimizer

from p2pfl_train import checkpoint, weights
from p2pfl_train.aggregate import Contribution
from p2pfl_train.batches import Batches
from p2pfl_train.checkpoint import Counters
from p2pfl_train.config import OptimiserName, OptimiserOptions
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
        made.initial = file_of_ones(tmp_path / f"{'a' * 64}.safetensors", made.model, made.counters.task)
        good = {name: torch.ones_like(tensor) for name, tensor in good.items()}
    made.train(3, lambda: False)
    made.recover()
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, good[name]), name


def test_the_initial_weights_are_held_until_the_first_publication(tmp_path: Path) -> None:
    made = learner_of(tmp_path / "own", Clipped)
    made.initial = file_of_ones(tmp_path / f"{'a' * 64}.safetensors", made.model, made.counters.task)
    made.publish({})
    assert made.initial is None
    made.recover()
    assert digest_of(made.tensors) == read_header(made.state.model).manifest().weights


class Branching(nn.Module):
    """A model whose second layer learns only in the steps that `runs` says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.runs = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if self.runs else x


def branching() -> Branching:
    torch.manual_seed(0)
    return Branching()


def take_steps(model: Branching, optimiser: Optimizer, runs: Sequence[bool], first: int = 0) -> None:
    for number, model.runs in enumerate(runs, first):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(model(x).square().mean())
        optimiser.step()


@pytest.mark.parametrize("runs", [[True] * 5, [False, False, True, False, True]], ids=["always", "later"])
def test_the_steps_are_those_of_pytorchs_plain_optimiser(runs: list[bool]) -> None:
    """Also for a branch that gets its first gradient in a later step."""
    ours, plain = branching(), branching()
    take_steps(ours, make_optimiser(ours, OptimiserOptions(learning_rate=0.1)), runs)
    take_steps(plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), runs)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_branch_may_learn_first_after_a_restart_or_a_recovery(tmp_path: Path, name: OptimiserName) -> None:
    options = OptimiserOptions(name=name, learning_rate=0.1)
    whole, early = branching(), branching()
    take_steps(whole, make_optimiser(whole, options), [False, False, True, True])
    before = make_optimiser(early, options)
    take_steps(early, before, [False, False])
    checkpoint.save(tmp_path / "trainer", before, Counters("a" * 64))
    saved = checkpoint.load(tmp_path / "trainer")
    assert saved is not None
    restored = make_optimiser(early, options)
    saved.restore(restored)
    take_steps(early, restored, [True, True], first=2)
    for one, other in zip(early.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    restored.state.clear()  # what a recovery does
    take_steps(early, restored, [False, True])


def test_the_momentum_of_sparse_gradients_is_kept(tmp_path: Path) -> None:
    def take_step(model: nn.Embedding, optimiser: Optimizer, rows: list[int]) -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(model(torch.tensor(rows)).square().sum())
        optimiser.step()

    ours = nn.Embedding(6, 3, sparse=True)
    plain = nn.Embedding(6, 3)
    plain.load_state_dict(ours.state_dict())
    optimiser = make_optimiser(ours, OptimiserOptions(learning_rate=0.1))
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for rows in ([0, 1], [1, 2]):
        take_step(ours, optimiser, rows)
        take_step(plain, theirs, rows)
    checkpoint.save(tmp_path / "trainer", optimiser, Counters("a" * 64))
    saved = checkpoint.load(tmp_path / "trainer")
    assert saved is not None
    again = make_optimiser(ours, OptimiserOptions(learning_rate=0.1))
    saved.restore(again)
    take_step(ours, again, [3])
    take_step(plain, theirs, [3])
    torch.testing.assert_close(ours.weight, plain.weight)
