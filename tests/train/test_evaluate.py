"""Measurements against their definitions, batches that can be continued, and the share of time."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from p2pfl_train.batches import Batches, fixed_part, in_order, size_of
from p2pfl_train.datasets.examples import Examples
from p2pfl_train.errors import DataError, ModelError
from p2pfl_train.evaluate import MAX_CONFUSED, TIME_SHARE, Schedule, evaluate
from p2pfl_train.task import Architecture, Batch, Task, TaskSpec

torch.set_num_threads(1)


class OneByOne(Dataset[Batch]):
    """The same examples as an ordinary data set."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        return self.examples[index]


def examples(count: int, classes: int = 3, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return Examples(x, torch.randint(0, classes, (count,), generator=generator))


def task_of(data: Dataset[Batch], classes: tuple[str, ...] = ("a", "b", "c")) -> Task:
    return Task(
        spec=TaskSpec(Architecture("mlp"), classes, (4,)),
        build_model=lambda: nn.Linear(4, 3),
        train=data,
        evaluation=data,
        loss=nn.functional.cross_entropy,
        preprocess=lambda x: x * 2,
    )


@settings(deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 100))
def test_an_evaluation_is_what_its_words_mean(count: int, batch_size: int, seed: int) -> None:
    data = examples(count, seed=seed)
    torch.manual_seed(seed)
    model = nn.Linear(4, 3)
    right, confusion, losses = 0, [[0] * 3 for _ in range(3)], 0.0
    for x, y in zip(data.x, data.y, strict=True):
        output = model(x[None] * 2).detach()
        guess = int(output.argmax())
        right += guess == int(y)
        confusion[int(y)][guess] += 1
        losses += float(nn.functional.cross_entropy(output, y[None]))
    for dataset in (data, OneByOne(data)):
        measured = evaluate(model, task_of(dataset), dataset, batch_size)
        assert measured.examples == count
        assert measured.accuracy == right / count
        assert measured.confusion is not None
        assert measured.confusion.tolist() == confusion
        assert measured.loss == pytest.approx(losses / count, rel=1e-4)
        wanted = [row[i] / sum(row) if sum(row) else None for i, row in enumerate(confusion)]
        assert measured.class_accuracies() == wanted


def test_evaluation_leaves_mode_and_statistics_alone() -> None:
    data = examples(20)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evaluate(model, task_of(data), data)
    assert model.training
    assert evaluate(model, task_of(data), data).loss == first.loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_tasks_own_metrics_see_all_outputs_and_only_numbers_count() -> None:
    data = examples(7)

    def rows(outputs: Tensor, targets: Tensor) -> float:
        assert len(outputs) == len(targets)
        return float(len(outputs))

    def broken(outputs: Tensor, targets: Tensor) -> float:
        raise KeyError("threshold")

    with pytest.raises(ModelError, match="the metric 'broken' failed: KeyError: 'threshold'"):
        evaluate(nn.Linear(4, 3), replace(task_of(data), metrics={"broken": broken}), data)
    task = replace(task_of(data), metrics={"rows": rows, "nothing": lambda outputs, targets: float("nan")})
    assert evaluate(nn.Linear(4, 3), task, data, 2).metrics == {"rows": 7.0}


def test_many_classes_have_an_accuracy_and_no_matrix() -> None:
    """It would take the square of their number; a network may name many."""
    data = examples(6)
    names = tuple(str(number) for number in range(MAX_CONFUSED + 1))
    measured = evaluate(nn.Linear(4, len(names)), task_of(data, names), data)
    assert measured.confusion is None
    assert measured.accuracy is not None
    assert measured.class_accuracies() == []


def test_a_task_without_classes_has_a_loss_and_no_accuracy() -> None:
    data = examples(6)
    task = replace(task_of(data, ()), loss=lambda output, y: (output[:, 0] - y).square().mean())
    measured = evaluate(nn.Linear(4, 3), task, data)
    assert measured.accuracy is None
    assert measured.loss is not None
    assert measured.class_accuracies() == []


def test_no_examples_measure_nothing() -> None:
    nothing = Examples.none((4,))
    for dataset in (nothing, OneByOne(nothing)):
        assert evaluate(nn.Linear(4, 3), task_of(dataset), dataset).accuracy is None


class Reconstructing(nn.Module):
    """Gives a tuple, as a variational auto-encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def reconstruction(output: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(*output)


def test_a_model_that_gives_a_tuple_is_measured_by_its_loss() -> None:
    data = examples(100)
    task = replace(task_of(data, ()), loss=reconstruction)  # type: ignore[arg-type]
    assert evaluate(Reconstructing(), task, data).loss is not None
    with pytest.raises(ModelError, match=r"one tensor.*leave the task's metrics out"):
        evaluate(Reconstructing(), replace(task, metrics={"rows": lambda o, t: 0.0}), data)
    with pytest.raises(ModelError, match=r"shape \(64, 3\), not type tuple: leave the task's classes empty"):
        evaluate(Reconstructing(), replace(task_of(data), loss=reconstruction), data)  # type: ignore[arg-type]


def test_outputs_are_kept_for_metrics_alone() -> None:
    """The dev set of a segmentation task may be far larger than its weights."""
    data = examples(10)

    def most_alive(task: Task) -> int:
        most = 0
        seen: list[weakref.ref[Tensor]] = []

        class Watched(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:  # noqa: A002
                nonlocal most
                output = super().forward(input)
                seen.append(weakref.ref(output))
                most = max(most, sum(ref() is not None for ref in seen))
                return output

        evaluate(Watched(4, 3), task, data, batch_size=1)
        return most

    assert most_alive(task_of(data)) <= 2, "the current output and the one before"
    assert most_alive(replace(task_of(data), metrics={"rows": lambda o, t: 0.0})) == 10


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 1, -1]), "the label -1 is no class index from 0 to 2"),
        (torch.tensor([0, 3, 1]), "the label 3 is no class index from 0 to 2"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"one class index an example, not shape \(3, 8, 8\)"),
        (torch.eye(3), r"one class index an example, not shape \(3, 3\) \(float32\)"),
    ],
)
def test_targets_that_are_no_class_indices_are_one_line(targets: Tensor, message: str) -> None:
    pairs: Any = list(zip(torch.rand(3, 4), targets, strict=True))
    task = replace(task_of(pairs), loss=lambda output, wanted: output.sum())
    with pytest.raises(DataError, match=message):
        evaluate(nn.Linear(4, 3), task, pairs)


class Unreadable(OneByOne):
    """A data set whose disk has gone."""

    def __getitem__(self, index: int) -> Batch:
        raise OSError(5, "Input/output error")


def test_data_that_cannot_be_read_is_one_line() -> None:
    data = Unreadable(examples(10))
    with pytest.raises(DataError, match=r"its 10 examples: OSError: \[Errno 5\] Input/output error"):
        evaluate(nn.Linear(4, 3), task_of(data), data)
    with pytest.raises(DataError, match="OSError"):
        Batches(data, 4, "0").next()


@settings(deadline=None)
@given(
    count=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    seed=st.text(max_size=5),
    start=st.integers(0, 40),
)
def test_batches_pass_through_all_and_can_be_continued(
    count: int, batch_size: int, seed: str, start: int
) -> None:
    data = Examples(torch.arange(count * 4.0).view(count, 4), torch.zeros(count, dtype=torch.int64))
    stream, continued = Batches(data, batch_size, seed), Batches(OneByOne(data), batch_size, seed, start)
    drawn = [stream.next()[0] for _ in range(start + 2 * stream.per_epoch)]
    for wanted in drawn[start:]:
        assert torch.equal(continued.next()[0], wanted)
    assert continued.drawn == stream.drawn
    epoch = torch.cat(drawn[: stream.per_epoch])[:, 0].tolist()
    assert len(set(epoch)) == len(epoch) > count - min(batch_size, count)
    assert set(epoch) <= set(data.x[:, 0].tolist())


def test_epochs_and_seeds_differ() -> None:
    data = examples(64)
    stream, other = Batches(data, 64, "a"), Batches(data, 64, "b")
    first, second, foreign = stream.next()[0], stream.next()[0], other.next()[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, foreign)


def test_the_fixed_part_is_the_same_every_time_and_has_all_classes() -> None:
    data = examples(1000, classes=10)
    part = fixed_part(data, 50)
    again = fixed_part(data, 50)
    assert size_of(part) == 50
    assert torch.equal(next(in_order(part, 50))[0], next(in_order(again, 50))[0])
    assert len(set(next(in_order(part, 50))[1].tolist())) == 10
    assert size_of(fixed_part(OneByOne(data), 50)) == 50
    assert fixed_part(data, 5000) is data


def test_evaluation_limits_itself_to_its_share_of_the_time() -> None:
    """Cycles of one second and evaluations of half a second."""
    now_s, spent_s = 50.0, 0.0
    schedule = Schedule(None, now_s)
    for cycle in range(1, 200):
        now_s += 1.0
        if schedule.due(cycle, now_s):
            now_s, spent_s = now_s + 0.5, spent_s + 0.5
            schedule.spent(0.5)
    share = spent_s / (now_s - 50.0)
    assert TIME_SHARE / 2 < share <= TIME_SHARE + 0.5 / (now_s - 50.0)


def test_a_period_in_cycles_rules_when_given() -> None:
    schedule = Schedule(3, 0.0)
    schedule.spent(1e9)
    assert [cycle for cycle in range(1, 10) if schedule.due(cycle, 1.0)] == [3, 6, 9]
