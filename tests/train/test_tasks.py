"""Tasks from options, tasks from the network, and what makes two of them the same."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from p2pfl_state.errors import MalformedFile
from p2pfl_state.taskfile import TaskFile
from PIL import Image
from rich.console import Console

from p2pfl_train.datasets.examples import Examples
from p2pfl_train.errors import DataError, ModelError, TrainError, UsageError
from p2pfl_train.task import Task
from p2pfl_train.tasks import TaskOptions, build_task, describe, join_task
from p2pfl_train.taskspec import initial_seed, spec_from_taskfile, spec_to_taskfile

torch.set_num_threads(1)

NOBODY: frozenset[str] = frozenset()


def examples(task: Task, part: str = "train") -> Examples:
    value = getattr(task, part)
    assert isinstance(value, Examples)
    return value


def shown(task: Task) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(describe(task))
    return console.export_text()


def write_pets(folder: Path, names: tuple[str, ...] = ("cat", "dog", "horse"), size: int = 20) -> Path:
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            shade = 20 * len(name) + 10 * index + number
            Image.new("L", (size, size), shade).save(folder / name / f"{number}.png")
    return folder


# --- building


def test_digits_give_a_task_that_trains() -> None:
    task = build_task(TaskOptions(shard="2/10"))
    train, dev = examples(task), examples(task, "evaluation")
    assert list(task.labels_held) == [0, 1, 2, 3, 7, 8, 9]
    assert set(dev.y.tolist()) == set(range(10)), "the dev split has what the peer never trains on"
    assert len(dev) == 359
    model = task.build_model()
    loss = task.loss(model(task.preprocess(train.x[:8])), train.y[:8])
    (gradient, *_) = torch.autograd.grad(loss, list(model.parameters()))
    assert gradient.isfinite().all()


def test_peers_with_other_shards_have_the_same_task_and_dev_split() -> None:
    tasks = [build_task(TaskOptions(shard=f"{k}/10")) for k in (1, 4, 10)]
    assert len({task.spec.digest for task in tasks}) == 1
    assert all(
        torch.equal(examples(task, "evaluation").x, examples(tasks[0], "evaluation").x) for task in tasks
    )
    assert not torch.equal(examples(tasks[0]).y, examples(tasks[1]).y)


def test_shards_of_two_processes_fit_together() -> None:
    for partition in ("iid", "dirichlet:0.5"):
        tasks = [build_task(TaskOptions(shard=f"{k}/3", partition=partition)) for k in (1, 2, 3)]
        together = torch.cat([examples(task).x.flatten(1) for task in tasks])
        everything = examples(build_task(TaskOptions())).x.flatten(1)
        assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, everything.tolist()))


def test_what_a_model_means_is_in_the_digest() -> None:
    base = build_task(TaskOptions()).spec
    others = [
        TaskOptions(model="cnn-bn"),
        TaskOptions(model_arguments={"hidden": 32}),
        TaskOptions(classes=tuple("9876543210")),
        TaskOptions(mean=(0.5,), std=(0.5,)),
    ]
    digests = {base.digest, *(build_task(options).spec.digest for options in others)}
    assert len(digests) == 5
    assert build_task(TaskOptions(seed=3, fraction=0.5, partition="iid")).spec.digest == base.digest


def test_a_peer_that_lacks_a_class_has_the_same_task(tmp_path: Path) -> None:
    whole = build_task(TaskOptions(data=str(write_pets(tmp_path / "whole"))))
    partial = write_pets(tmp_path / "partial", ("cat", "horse"))
    with_classes = build_task(TaskOptions(data=str(partial), classes=("cat", "dog", "horse")))
    assert with_classes.spec.digest == whole.spec.digest
    assert list(with_classes.labels_held) == [0, 2]
    joined = join_task(TaskOptions(data=str(partial)), spec_to_taskfile(whole.spec), NOBODY)
    assert joined.spec.digest == whole.spec.digest
    assert list(joined.labels_held) == [0, 2]
    assert build_task(TaskOptions(data=str(partial))).spec.digest != whole.spec.digest


def test_gray_and_coloured_folders_are_one_task_where_the_channels_are_said(tmp_path: Path) -> None:
    folders = [write_pets(tmp_path / name) for name in ("gray", "coloured")]
    Image.new("RGB", (20, 20), (9, 200, 9)).save(folders[1] / "cat" / "colour.png")
    for channels, tasks in ((None, 2), (1, 1), (3, 1)):
        specs = [build_task(TaskOptions(data=str(folder), channels=channels)).spec for folder in folders]
        assert len({spec.digest for spec in specs}) == tasks
        assert specs[0].input_shape == (channels or 1, 20, 20)


def test_own_data_is_all_kept_without_a_shard(tmp_path: Path) -> None:
    task = build_task(TaskOptions(data=str(write_pets(tmp_path))))
    assert len(examples(task)) == 12
    assert len(examples(task, "evaluation")) == 3
    assert task.spec.input_shape == (1, 20, 20)
    assert task.spec.preprocessing == {"scale": 255, "mean": [0.5], "std": [0.5]}


def test_a_fraction_keeps_all_labels() -> None:
    whole, part = (build_task(TaskOptions(shard="1/10", fraction=f)) for f in (1.0, 0.1))
    assert len(examples(part)) == round(0.1 * len(examples(whole)))
    assert list(part.labels_held) == list(whole.labels_held)


def test_preprocessing_is_what_the_descriptor_says() -> None:
    task = build_task(TaskOptions(mean=(0.25,), std=(0.5,)))
    x = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    out = task.preprocess(x)
    assert out.dtype == torch.float32
    assert torch.allclose(out[:, 0, 0, 0], torch.tensor([-0.5, 1.5]))
    assert x[:, 0, 0, 0].tolist() == [0, 255], "the stored examples stay as they are"


def test_a_table_may_have_a_mean_for_each_feature(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=np.array([[1.0, 10], [3, 30], [1, 10]] * 5), y=np.array([0, 1, 0] * 5))
    plain = build_task(TaskOptions(data=str(path)))
    assert plain.spec.architecture.name == "mlp"
    assert torch.equal(plain.preprocess(examples(plain).x), examples(plain).x)
    scaled = build_task(TaskOptions(data=str(path), mean=(1, 10), std=(2, 20)))
    assert {tuple(row) for row in scaled.preprocess(examples(scaled).x).tolist()} == {(0, 0), (1, 1)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": None}, UsageError, "give --data, or --join"),
        ({"data": "nowhere"}, DataError, "no such file"),
        ({"shard": "11/10"}, UsageError, "--shard 11/10"),
        ({"shard": "0/10"}, UsageError, "--shard 0/10"),
        ({"shard": "1/10", "partition": "fair"}, UsageError, "--partition"),
        ({"shard": "1/10", "labels_per_peer": 11}, UsageError, "--labels-per-peer"),
        ({"shard": "1/5000", "partition": "iid"}, DataError, "do not fill"),
        ({"fraction": 0.0}, UsageError, "--fraction"),
        ({"fraction": float("nan")}, UsageError, "--fraction"),
        ({"dev_fraction": 1.0}, UsageError, "dev fraction"),
        ({"model": "resnet"}, ModelError, "unknown model"),
        ({"model": "lenet"}, ModelError, "16 pixels"),
        ({"mean": (0.5,)}, UsageError, "--mean and --std"),
        ({"mean": (0.5,), "std": (0.0,)}, DataError, "above zero"),
        ({"mean": (0.5, 0.5), "std": (1.0,)}, DataError, "give one"),
        ({"mean": (float("nan"),), "std": (1.0,)}, DataError, "finite"),
        ({"classes": ("a", "b")}, DataError, "class '0'"),
        ({"data": "no_such_module:task"}, DataError, "No module named"),
    ],
)
def test_a_users_mistake_is_one_line(changes: dict[str, Any], error: type[TrainError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build_task(replace(TaskOptions(), **changes))
    assert "\n" not in str(caught.value)


def test_a_shard_whose_labels_do_not_occur(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=np.zeros((10, 2)), y=np.array([0, 3] * 5))
    with pytest.raises(DataError, match=r"shard 2/2 of .* has no examples"):
        build_task(TaskOptions(data=str(path), shard="2/2", labels_per_peer=1))


# --- joining


def network_task(**options: Any) -> TaskFile:
    """A task as it arrives: written, sent, and parsed again."""
    return TaskFile.parse(spec_to_taskfile(build_task(TaskOptions(**options)).spec).encode())


def test_a_task_survives_the_way_through_the_network() -> None:
    spec = build_task(TaskOptions(model_arguments={"hidden": [32, 16], "dropout": 0.1})).spec
    again = spec_from_taskfile(TaskFile.parse(spec_to_taskfile(spec).encode()))
    assert again == spec
    assert again.digest == spec.digest


def test_receive_only_needs_no_data() -> None:
    task = join_task(TaskOptions(data=None), network_task(), NOBODY)
    assert len(examples(task)) == len(examples(task, "evaluation")) == 0
    assert task.labels_held == ()
    assert task.build_model()(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert "receives only" in shown(task)


def test_peers_that_start_alone_start_alike() -> None:
    first = build_task(TaskOptions(shard="1/4"))
    second = join_task(TaskOptions(shard="3/4"), spec_to_taskfile(first.spec), NOBODY)
    weights = []
    for task in (first, second):
        torch.manual_seed(initial_seed(task.spec.digest))
        weights.append(torch.cat([p.flatten() for p in task.build_model().parameters()]))
    assert torch.equal(*weights)


def test_the_network_decides_model_and_preprocessing(tmp_path: Path) -> None:
    file = network_task(model="cnn-bn", mean=(0.1,), std=(0.9,))
    task = join_task(TaskOptions(), file, NOBODY)
    assert task.spec.architecture.name == "cnn-bn"
    assert task.spec.preprocessing["mean"] == [0.1]
    join_task(TaskOptions(model="cnn-bn"), file, NOBODY)
    with pytest.raises(UsageError, match="trains cnn-bn, not mlp"):
        join_task(TaskOptions(model="mlp"), file, NOBODY)
    with pytest.raises(UsageError, match="leave --classes out"):
        join_task(TaskOptions(classes=("a",)), file, NOBODY)


def test_local_images_take_the_networks_size_and_channels(tmp_path: Path) -> None:
    file = network_task(data=str(write_pets(tmp_path / "a", size=24)))
    own = write_pets(tmp_path / "b", size=31)
    Image.new("RGB", (31, 31), (9, 200, 9)).save(own / "cat" / "colour.png")
    task = join_task(TaskOptions(data=str(own)), file, NOBODY)
    assert examples(task).x.shape[1:] == (1, 24, 24)


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = network_task(data=str(write_pets(tmp_path / "a")))
    with pytest.raises(DataError, match="class 'bird'"):
        join_task(TaskOptions(data=str(write_pets(tmp_path / "b", ("bird", "cat")))), file, NOBODY)
    table = tmp_path / "t.npz"
    np.savez(table, x=np.zeros((4, 7)), y=np.array(["cat", "dog"] * 2))
    with pytest.raises(DataError, match=r"shape \(7,\), the network's are \(1, 20, 20\)"):
        join_task(TaskOptions(data=str(table)), file, NOBODY)
    np.savez(table, x=np.zeros((4, 1, 20, 20)), y=np.array(["cat", "dog"] * 2))
    with pytest.raises(DataError, match="holds float values, the network's task uint8"):
        join_task(TaskOptions(data=str(table)), file, NOBODY)
    np.savez(table, x=np.zeros((4, 1, 20, 20), dtype=np.uint8), y=np.array([0, 1, 2, 3]))
    with pytest.raises(DataError, match="label 3"):
        join_task(TaskOptions(data=str(table)), file, NOBODY)


OWN_MODEL = """
from torch import nn
def Net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_a_model_that_is_code_needs_to_be_accepted(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(OWN_MODEL)
    file = network_task(model=f"{path}:Net")
    digest = file.descriptor["architecture"]["source_sha256"]
    with pytest.raises(ModelError, match=f"--accept-arch {digest}"):
        join_task(TaskOptions(), file, NOBODY)
    assert join_task(TaskOptions(), file, frozenset([digest])).spec.digest == file.digest
    assert join_task(TaskOptions(model=f"{path}:Net"), file, NOBODY).spec.digest == file.digest
    path.write_text(OWN_MODEL + "# changed\n")
    with pytest.raises(UsageError, match="leave --model out"):
        join_task(TaskOptions(model=f"{path}:Net"), file, NOBODY)


GOOD: dict[str, Any] = {
    "architecture": {"name": "mlp", "arguments": {}, "source_sha256": None},
    "classes": ["a", "b"],
    "input_shape": [1, 8, 8],
    "preprocessing": {"scale": 255, "mean": [0.5], "std": [0.5]},
}


def changed(path: str, value: Any) -> TaskFile:
    descriptor = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    target = descriptor
    for name in parents:
        target = target[name]
    target[last] = value
    return TaskFile.parse(TaskFile(descriptor, None).encode())


def test_the_unchanged_descriptor_is_fine() -> None:
    join_task(TaskOptions(data=None), changed("classes", ["a", "b"]), NOBODY)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("architecture.name", 3),
        ("architecture.name", "a\x1b[31m"),
        ("architecture.name", "os:system"),
        ("architecture.name", "x" * 300),
        ("architecture.arguments", [1]),
        ("architecture.arguments", {"hidden": [1] * 10_000}),
        ("architecture.more", 1),
        ("classes", "ab"),
        ("classes", [1, 2]),
        ("classes", ["a", "a"]),
        ("classes", ["a", "b\n"]),
        ("classes", ["a", "\ud800"]),
        ("classes", [str(i) for i in range(40_000)]),
        ("input_shape", []),
        ("input_shape", [1, 0, 8]),
        ("input_shape", [1.5]),
        ("input_shape", [True]),
        ("input_shape", [1, 2, 3, 4, 5]),
        ("input_shape", [2**62]),
        ("input_shape", [1, 1 << 20, 1 << 20]),
        ("input_shape", None),
        ("preprocessing", None),
        ("preprocessing", {"mean": [0.5] * 100_000}),
        ("more", 1),
    ],
)
def test_a_malformed_descriptor_is_refused(path: str, value: Any) -> None:
    with pytest.raises(MalformedFile) as caught:
        join_task(TaskOptions(data=None), changed(path, value), NOBODY)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("architecture.name", "os", "unknown model 'os': this version has"),
        ("architecture.arguments", {"hidden": [10**9]}, "parameters"),
        ("architecture.arguments", {"hidden": [10**6, 10**6]}, "parameters"),
        ("architecture.arguments", {"hidden": 2**70}, "cannot be built"),
        ("architecture.arguments", {"\x1b[31m": 1}, "no argument"),
        ("input_shape", [1, 4096, 4096], "parameters"),
        ("classes", [], "no classes"),
        ("preprocessing", {"unpickle": 1}, "not known"),
        ("preprocessing", {"mean": [0.5]}, "together"),
        ("preprocessing", {"scale": "255"}, "scale"),
        ("preprocessing", {"scale": True}, "scale"),
        ("preprocessing", {"mean": ["x"], "std": [1]}, "finite"),
        ("preprocessing", {"mean": [10**400], "std": [1]}, "finite"),
        ("preprocessing", {"mean": 1, "std": [1]}, "list"),
        ("preprocessing", {"mean": [1], "std": [0]}, "above zero"),
        ("preprocessing", {"mean": [], "std": []}, "give one"),
    ],
)
def test_a_task_that_cannot_be_trained_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(TrainError, match=message) as caught:
        join_task(TaskOptions(data=None), changed(path, value), NOBODY)
    assert str(caught.value).isprintable()


# --- what a person sees


def test_the_description_shows_the_partition() -> None:
    text = shown(build_task(TaskOptions(shard="2/4")))
    assert "mlp" in text
    assert "of 0, 1, 2, 3, 7, 8, 9" in text
    assert "→ 2/4" in text
    assert "359 to evaluate on" in text


def test_real_mnist_files_make_the_papers_task(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    labels = (np.arange(50) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        pixels = struct.pack(">iiii", 0x803, 50, 28, 28) + bytes(50 * 784)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, 50) + labels.tobytes())
    task = build_task(TaskOptions(data="mnist", data_dir=tmp_path, shard="1/10"))
    assert task.spec.architecture.name == "paper-cnn"
    assert sum(p.numel() for p in task.build_model().parameters()) == 1_625_866
    assert len(examples(task)) == 28
    assert len(examples(task, "evaluation")) == 10


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ([(0.0, 1.0), (3.0, 2.0)], None),
        ([(50.0, 0.0), (2.0, 0.0)], "--mean 50,2 --std 1,1"),
        ([(50.0, 10.0)] * 9, "(--mean, --std)"),
    ],
)
def test_columns_of_large_values_are_told_how_to_scale(
    tmp_path: Path, columns: list[tuple[float, float]], hint: str | None
) -> None:
    sign = np.where(np.arange(400) % 4 < 2, 1.0, -1.0)
    np.savez(
        tmp_path / "a.npz",
        x=np.stack([mean + std * sign for mean, std in columns], axis=1),
        y=np.arange(400) % 2,
    )
    said = io.StringIO()
    Console(file=said, width=200).print(describe(build_task(TaskOptions(data=str(tmp_path / "a.npz")))))
    assert ("learn badly" in said.getvalue()) is (hint is not None)
    assert hint is None or hint in said.getvalue()
