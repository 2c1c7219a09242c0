"""Tasks of the user's own: what they may be, and one line for what is wrong with them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from p2pfl_state import atomic
from p2pfl_state.layout import StateDir

from p2pfl_train.errors import DataError, TrainError
from p2pfl_train.tasks import TaskOptions, build_task, join_task
from p2pfl_train.taskspec import spec_to_taskfile
from tests.train.command_line import Capture, call, fails
from tests.train.fake_daemon import FakeDaemon

torch.set_num_threads(1)

NOBODY: frozenset[str] = frozenset()
WriteModule = Callable[[str], str]
_numbers = itertools.count()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Writes a module into the current folder; its name is new, so that no test sees another's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        name = f"own_task_module_{next(_numbers)}"
        Path(f"{name}.py").write_text(text)
        return name

    return write


OWN_TASK = """
import torch
from p2pfl_train.datasets.examples import Examples
from p2pfl_train.task import Architecture, Task, TaskSpec

def regression():
    data = Examples(torch.rand(6, 2), torch.zeros(6, dtype=torch.int64))
    spec = TaskSpec(Architecture("mine"), (), (2,), {"kind": "own"})
    return Task(spec, lambda: torch.nn.Linear(2, 1), data, data, lambda out, y: out.sum(), lambda x: x)

def of_shard(options):
    task = regression()
    assert options.shard == "1/2"
    return task

def wrong():
    return 3

def raises():
    raise RuntimeError("two\\nlines")
"""


def test_a_users_function(write_module: WriteModule) -> None:
    module = write_module(OWN_TASK)
    own = TaskOptions(data=f"{module}:regression")
    task = build_task(own)
    assert task.spec.architecture.name == "mine"
    build_task(TaskOptions(data=f"{module}:of_shard", shard="1/2"))
    for name, message in (
        ("wrong", "returned a int"),
        ("raises", "RuntimeError: two lines"),
        ("none", "no attribute"),
    ):
        with pytest.raises(DataError, match=message):
            build_task(TaskOptions(data=f"{module}:{name}"))
    file = spec_to_taskfile(task.spec)
    assert join_task(own, file, NOBODY).spec.digest == task.spec.digest
    with pytest.raises(DataError, match="another task"):
        join_task(own, spec_to_taskfile(build_task(TaskOptions()).spec), NOBODY)
    with pytest.raises(TrainError, match="module:function"):
        join_task(TaskOptions(data=None), file, NOBODY)


def test_a_module_that_is_not_here_says_where_it_is_looked_for() -> None:
    with pytest.raises(DataError, match=r"No module named 'nowhere'; run this in the folder of nowhere"):
        build_task(TaskOptions(data="nowhere:task"))


FAULTY = """
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from p2pfl_train.task import Architecture, Task, TaskSpec

class Pairs(Dataset):
    def __init__(self, target=lambda index: index % 2, broken_from=10**9):
        self.target, self.broken_from = target, broken_from
    def __len__(self):
        return 40
    def __getitem__(self, index):
        if index >= self.broken_from:
            raise OSError(5, "Input/output error")
        return torch.full((2,), float(index)), self.target(index)

class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

class Sizeless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(2), 0

class Coder(nn.Linear):
    def forward(self, x):
        return super().forward(x), x

def task(train=None, evaluation=None, *, loss=nn.functional.cross_entropy, model=nn.Linear, arguments=None,
         classes=("no", "yes"), labels=(), name="mine"):
    spec = TaskSpec(Architecture(name, arguments or {}), classes, (2,), {"kind": "own"})
    return Task(spec, lambda: model(2, 2), train or Pairs(), evaluation or Pairs(), loss, lambda x: x,
                labels_held=labels)

def pair_loss(output, target):
    return nn.functional.mse_loss(*output)

def lenient(output, target):
    return output.square().mean()

def coder(): return task(model=Coder, loss=pair_loss, classes=())
def unreadable(): return task(Pairs(broken_from=20))
def unreadable_evaluation(): return task(evaluation=Pairs(broken_from=20))
def stream(): return task(Stream())
def sizeless(): return task(evaluation=Sizeless())
def tuple_with_classes(): return task(model=Coder, loss=pair_loss)
def dense(): return task(Pairs(lambda index: torch.zeros(8, dtype=torch.int64)),
                         Pairs(lambda index: torch.zeros(8, dtype=torch.int64)), loss=lenient)
def unlabelled(): return task(evaluation=Pairs(lambda index: -(index % 2)), loss=lenient)
def arguments(): return task(arguments={"weights": torch.ones(2)})
def infinite(): return task(arguments={"rate": float("inf")})
def unnamed(): return task(name="mine and yours")
def held(): return task(labels=("no",))
def held_beyond(): return task(labels=(0, 2))
"""


def test_a_model_of_tuples_trains_and_is_measured_by_its_loss(
    capsys: Capture, write_module: WriteModule, tmp_path: Path
) -> None:
    state = StateDir(tmp_path / "peer")
    with FakeDaemon(state):
        code, out, _ = call(capsys, *run(state, write_module(FAULTY), "coder"))
    assert code == 0
    assert "40 training examples" in out
    *_, last = atomic.read_json_lines(state.metrics)
    assert last["cycle"] == 2
    assert last["accuracy_trained"] is None


@pytest.mark.parametrize(
    ("code", "function", "words"),
    [
        (6, "unreadable", "OSError: [Errno 5] Input/output error"),
        (6, "unreadable_evaluation", "OSError: [Errno 5] Input/output error"),
        (
            6,
            "stream",
            "train must be a data set with __len__ and __getitem__ (TypeError: an IterableDataset)",
        ),
        (6, "sizeless", "evaluation must be a data set with __len__"),
        (7, "tuple_with_classes", "not type tuple: leave the task's classes empty"),
        (6, "dense", "one class index an example"),
        (6, "unlabelled", "the label -1 is no class index from 0 to 1: leave such examples out"),
        (6, "arguments", "Object of type Tensor is not JSON serializable): names and JSON values only"),
        (6, "infinite", "names and JSON values only"),
        (6, "unnamed", "names and JSON values only"),
        (6, "held", "labels_held must be class indices"),
        (6, "held_beyond", "labels_held must be from 0 to 1"),
    ],
)
def test_a_mistake_in_a_users_task_is_one_line(
    capsys: Capture, write_module: WriteModule, tmp_path: Path, code: int, function: str, words: str
) -> None:
    state = StateDir(tmp_path / "peer")
    with FakeDaemon(state):
        assert words in fails(capsys, code, *run(state, write_module(FAULTY), function))


OF_OPTIONS = """
import torch
from torch import nn
from p2pfl_train.datasets.examples import Examples
from p2pfl_train.task import Architecture, Task, TaskSpec

def task(options):
    arguments = dict(options.model_arguments)
    assert arguments["bias"] is False
    size = {"1/2": 6, "2/2": 9}[options.shard]
    assert options.mean == (0.5, 1.5)
    data = Examples(torch.ones(size, 2), torch.zeros(size, dtype=torch.int64))
    spec = TaskSpec(Architecture("mine", arguments), ("no", "yes"), (2,))
    loss = nn.functional.cross_entropy
    return Task(spec, lambda: nn.Linear(2, 2, **arguments), data, data, loss, lambda x: x)
"""


def test_evaluate_gives_a_users_function_the_options_of_the_run(
    capsys: Capture, write_module: WriteModule, tmp_path: Path
) -> None:
    state, module = StateDir(tmp_path / "peer"), write_module(OF_OPTIONS)
    options = ["--shard", "2/2", "--model-arg", "bias=false", "--mean", "0.5,1.5", "--std", "1,1"]
    with FakeDaemon(state):
        assert call(capsys, *run(state, module, "task"), *options)[0] == 0
    for data in ([], ["--data", f"{module}:task"]):
        code, out, err = call(capsys, "evaluate", "--state", state.root, *data, "--json")
        assert code == 0, err
        assert json.loads(out)["examples"] == 9
    others = (
        ["predict", "--state", state.root, "a.png"],
        ["evaluate", "--state", state.root, "--data", "digits"],
    )
    for other in others:
        assert "evaluate it with --data module:function" in fails(capsys, 7, *other)


def run(state: StateDir, module: str, function: str) -> list[object]:
    line = ["run", "--state", state.root, "--data", f"{module}:{function}", "--cycles", "2"]
    return [*line, "--evaluate-every", "1"]
