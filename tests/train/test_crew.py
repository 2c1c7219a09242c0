"""Simulated peers are the trainer's: its steps, its aggregation, its tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from p2pfl_train import aggregate as aggregation
from p2pfl_train.aggregate import Contribution, aggregate
from p2pfl_train.config import OptimiserName, OptimiserOptions, TrainingOptions
from p2pfl_train.datasets.examples import Examples
from p2pfl_train.errors import DataError, UsageError
from p2pfl_train.learner import MAX_DIVERGED
from p2pfl_train.redteam.crew import Crew
from p2pfl_train.redteam.options import Defence
from p2pfl_train.redteam.simulation import distances_of, members, simulate
from p2pfl_train.rules import blocks
from p2pfl_train.rules.rule import parse_rule
from p2pfl_train.tasks import ClassificationTask, TaskOptions, build_task, build_tasks
from p2pfl_train.tensors import stored_tensors
from p2pfl_train.weights import TensorFile
from tests.train.simulating import SMALL, Listening, build_shard, make, next_number, row_of, run, trainer_of
from tests.train.test_aggregate import write

torch.set_num_threads(1)


# The trainer's steps


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_simulated_peer_trains_as_the_trainer_does(tmp_path: Path, name: OptimiserName) -> None:
    """Bit for bit: the same shard, batches, loss and steps, over several epochs of the smaller shards."""
    training = TrainingOptions(4, None, 25, OptimiserOptions(name, 0.02))
    setting = make(training=training, seed=5, threads=2)
    crew = Crew(setting, members(setting))
    trainers = {index: trainer_of(setting, index, tmp_path) for index in (0, 3, 7)}
    for number in (1, 2, 3):
        rows, losses = crew.train(number)
        for index, trainer in trainers.items():
            assert trainer.train(4, lambda: False) == losses[index]
            assert torch.equal(rows[index], row_of(trainer))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_peer_that_diverges_goes_back_without_momentum(steps: int, tmp_path: Path) -> None:
    setting = make(lr=1e30, training=TrainingOptions(steps, None, 25, OptimiserOptions("sgd", 1e30)))
    crew = Crew(setting, members(setting))
    first = crew.initial
    for number in range(1, 4):
        before = torch.stack([peer.weights() for peer in crew._peers.values()])
        rows, losses = crew.train(number)
        diverged = [place for place, loss in enumerate(losses) if math.isnan(loss)]
        if diverged:
            break
    assert diverged
    assert bool(torch.isfinite(rows).all())
    for place in diverged:
        peer = crew._peers[crew.members[place]]
        assert torch.equal(rows[place], before[place])
        assert torch.equal(peer.weights(), before[place])
        assert peer.optimiser is not None
        assert not peer.optimiser.state
    assert steps == 1 or torch.equal(rows[diverged[0]], first)


def test_a_peer_that_diverges_three_times_in_a_row_begins_anew() -> None:
    crew = Crew(make(training=TrainingOptions(2, None, 25, OptimiserOptions("sgd", 1e30))), (0, 1))
    first, far = crew.initial, torch.full_like(crew.initial, 1e30)
    for number in range(1, 6):
        for peer in crew._peers.values():
            peer.load(far)
        rows, losses = crew.train(number)
        assert all(map(math.isnan, losses))
        for row in rows:
            assert torch.equal(row, first if number % MAX_DIVERGED == 0 else far)


def test_a_peer_that_diverges_draws_as_many_batches_as_the_trainer(tmp_path: Path) -> None:
    setting = make(training=TrainingOptions(4, None, 25, OptimiserOptions("sgd", 1e30)))
    crew, trainer = Crew(setting, members(setting)), trainer_of(setting, 0, tmp_path)
    assert math.isnan(trainer.train(4, lambda: False))
    _, losses = crew.train(1)
    assert math.isnan(losses[0])
    batches = crew._peers[0].batches
    assert batches is not None
    assert trainer.batches is not None
    assert batches.drawn == trainer.batches.drawn


@pytest.mark.parametrize("rule", ["fedavg", "nnm+trimmed_mean"])
def test_a_run_goes_on_when_all_diverge(rule: str) -> None:
    """The first step is one of a sound model; after three that were not, all begin anew."""
    for rounds in (4, 5):
        setting = replace(make("alie", rule, lr=1e30), rounds=rounds)
        outcome = simulate(setting, Crew(setting, members(setting)))
        assert outcome.final.round == rounds
        assert (outcome.final.loss is None) == (rounds == 4)
        assert all(0 <= accuracy <= 1 for accuracy in outcome.final.accuracies)


# The trainer's aggregation


@contextmanager
def block_sizes(block_bytes: int, columns: int, piece_bytes: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block_bytes)
        patch.setattr(blocks, "MIN_COLUMNS", columns)
        patch.setattr(aggregation, "PIECE_BYTES", piece_bytes)
        yield


@pytest.mark.parametrize("rule", ["fedavg", "median", "krum", "nnm+trimmed_mean", "centered_clipping"])
@pytest.mark.parametrize(
    ("threads", "sizes"), [(1, (1 << 20, 256, 1 << 20)), (2, (1, 64, 512)), (3, (4096, 7, 1 << 20))]
)
def test_settling_is_the_aggregation_of_files(
    tmp_path: Path, rule: str, threads: int, sizes: tuple[int, int, int]
) -> None:
    """Of real tensor files, with each peer's own tensors, samples and draw."""
    defence = Defence(parse_rule(rule), 5, 1)
    setting = make("none", defence=defence, byzantine=1, threads=threads)
    with block_sizes(*sizes):
        crew = Crew(setting, members(setting))
        for number in (1, 2):  # so that they differ as peers do
            published, _ = crew.train(number)
        models, contributions = [], []
        for index, peer in crew._peers.items():
            tensors = {name: tensor.clone() for name, tensor in stored_tensors(peer.model).items()}
            samples = len(build_shard(setting, index))
            write(tmp_path / str(index), tensors, samples)
            models.append((tensors, samples))
            contributions.append(Contribution(TensorFile.open(tmp_path / str(index)), samples))
        distances = distances_of(published, setting.honest) if defence.rule.needs_distances else None
        crew.settle(published, distances, 3)
        for index, peer in crew._peers.items():
            own, samples = models[index]
            wanted = {name: tensor.clone() for name, tensor in own.items()}
            pulled = [contributions[sender] for sender in setting.senders(3, index)]
            aggregate(wanted, samples, pulled, defence.rule, defence.byzantine)
            for name, tensor in stored_tensors(peer.model).items():
                torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)


# Tasks


@pytest.mark.parametrize("partition", ["paper", "iid", "dirichlet:0.5"])
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_the_tasks_of_all_are_those_that_each_would_build(partition: str, fraction: float) -> None:
    options = TaskOptions(partition=partition, fraction=fraction, seed=4)
    for number, task in enumerate(build_tasks(options, 6), start=1):
        alone = build_task(replace(options, shard=f"{number}/6"))
        assert isinstance(task, ClassificationTask)
        assert isinstance(alone, ClassificationTask)
        assert (task.spec, task.shard, task.data_name) == (alone.spec, alone.shard, alone.data_name)
        assert tuple(task.labels_held) == tuple(alone.labels_held)
        assert task.held is not None
        assert alone.held is not None
        assert (task.held == alone.held).all()
        for ours, theirs in ((task.train, alone.train), (task.evaluation, alone.evaluation)):
            assert isinstance(ours, Examples)
            assert isinstance(theirs, Examples)
            assert torch.equal(ours.x, theirs.x)
            assert torch.equal(ours.y, theirs.y)


def test_counters_of_batch_norm_are_each_peers_own() -> None:
    task = replace(SMALL, model="cnn-bn", model_arguments={"width": 2})
    setting = make("foe", task=task, rounds=3)
    crew = Crew(setting, members(setting))
    outcome = simulate(setting, crew)
    assert outcome.final.loss is not None
    for peer in crew._peers.values():
        counters = [t for t in stored_tensors(peer.model).values() if not t.is_floating_point()]
        assert [int(counter) for counter in counters] == [3, 3]


OF_TYPE = """
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10, dtype=torch.{weights})
        self.register_buffer("seen", torch.zeros(3, dtype=torch.{buffer}))
    def forward(self, x):
        return self.fc(x.flatten(1).to(self.fc.weight.dtype))
"""


@pytest.mark.parametrize("rule", ["fedavg", "nnm+trimmed_mean"])
def test_a_model_in_double_precision(model_file: Callable[[str], TaskOptions], rule: str) -> None:
    setting = make("gaussian:0.1", rule, task=model_file(OF_TYPE.format(weights="float64", buffer="float64")))
    crew = Listening(setting)
    outcome = simulate(setting, crew)
    assert crew.initial.dtype == crew.heard[-1].dtype == torch.float64
    assert outcome.final.loss is not None


@pytest.mark.parametrize(
    ("weights", "buffer"), [("float32", "float64"), ("float64", "float32"), ("bfloat16", "bfloat16")]
)
def test_a_model_of_several_types_is_refused(
    model_file: Callable[[str], TaskOptions], weights: str, buffer: str
) -> None:
    with pytest.raises(UsageError, match="all float32, or all float64"):
        run(make(task=model_file(OF_TYPE.format(weights=weights, buffer=buffer))))


OWN_TASK = """
import torch
from p2pfl_train.datasets.examples import Examples
from p2pfl_train.task import Architecture, Task, TaskSpec

def task(options, classes=("no", "yes"), examples=40):
    number, count = map(int, options.shard.split("/"))
    assert count == 8
    x = torch.randn(examples, 2, generator=torch.Generator().manual_seed(number))
    data = Examples(x, (x.sum(dim=1) > 0).long())
    spec = TaskSpec(Architecture("mine"), classes, (2,), {"kind": "own"})
    loss = torch.nn.functional.cross_entropy
    return Task(spec, lambda: torch.nn.Linear(2, 2), data, data, loss, lambda x: x)

def unclassified(options): return task(options, classes=())
def lonely(options): return task(options, examples=0 if options.shard == "3/8" else 40)
"""


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder; its name is new, so that no test sees another's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_simulated_module_{next_number()}"
    Path(f"{name}.py").write_text(OWN_TASK)
    return name


def test_a_task_of_the_users_own(own_task: str) -> None:
    for attack in ("label-flip", "alie"):
        outcome = run(make(attack, task=TaskOptions(data=f"{own_task}:task"), rounds=30))
        assert outcome.final.worst > 0.8


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("unclassified", UsageError, "the task must have classes"),
        ("lonely", UsageError, "each simulated peer needs training data"),
        ("missing", DataError, "no attribute 'missing'"),
    ],
)
def test_a_task_that_cannot_be_simulated_is_refused(
    own_task: str, function: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(make(task=TaskOptions(data=f"{own_task}:{function}")))
