"""Models by name and from a file: what is built, what is refused, and what is never run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from p2pfl_train import models
from p2pfl_train.errors import ModelError, UsageError
from p2pfl_train.models import architecture, default_model, model_factory, parse_model_arguments
from p2pfl_train.task import Architecture

torch.set_num_threads(1)

NOBODY: frozenset[str] = frozenset()


def build(name: str, input_shape: tuple[int, ...], classes: int = 10, **arguments: Any) -> torch.nn.Module:
    return model_factory(architecture(name, arguments), input_shape, classes, accepted=NOBODY)()


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- the registry


def test_the_papers_cnn_has_exactly_the_published_number_of_parameters() -> None:
    assert parameters(build("paper-cnn", (1, 28, 28))) == 1_625_866


def test_other_models_have_the_layers_that_their_papers_say() -> None:
    assert parameters(build("mlp", (1, 28, 28))) == 785 * 256 + 257 * 128 + 129 * 10
    assert parameters(build("bank", (20,), 10)) == 21 * 128 + 129 * 2096 + 2097 * 10
    assert parameters(build("lenet", (3, 32, 32))) == 62_006  # 456 + 2,416 + 48,120 + 10,164 + 850
    assert any(name.endswith("running_mean") for name, _ in build("cnn-bn", (1, 8, 8)).named_buffers())


@pytest.mark.parametrize("name", models.REGISTRY)
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 32, 32), (3, 17, 40)])
def test_every_model_adapts_to_the_input(name: str, input_shape: tuple[int, ...]) -> None:
    model = build(name, input_shape, classes=7)
    output = model(torch.rand(4, *input_shape))
    assert output.shape == (4, 7)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_tables_train_with_dense_models() -> None:
    for name in ("mlp", "bank"):
        assert build(name, (5,), classes=2)(torch.rand(3, 5)).shape == (3, 2)
    for name in ("paper-cnn", "lenet", "cnn-bn"):
        with pytest.raises(ModelError, match="it takes images"):
            build(name, (5,))


def test_arguments_change_the_model() -> None:
    assert parameters(build("mlp", (4,), 3, hidden=8)) == 5 * 8 + 9 * 3
    assert parameters(build("mlp", (4,), 3, hidden=[8, 2])) == 5 * 8 + 9 * 2 + 3 * 3
    model = build("mlp", (4,), 3, hidden=[], dropout=0.5, activation="tanh")
    assert parameters(model) == 5 * 3
    assert any(isinstance(m, torch.nn.Tanh) for m in build("mlp", (4,), activation="tanh").modules())


def test_the_seed_decides_the_weights_and_the_trial_does_not_move_it() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    factory = model_factory(architecture("paper-cnn", {}), (1, 28, 28), 10, accepted=NOBODY)
    assert torch.equal(torch.get_rng_state(), before)
    first = factory()
    torch.manual_seed(5)
    second = factory()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "shape", "arguments", "message"),
    [
        ("resnet", (1, 28, 28), {}, "unknown model 'resnet': use one of paper-cnn"),
        ("model.txt:Net", (1, 28, 28), {}, "unknown model"),
        ("paper-cnn", (1, 28, 28), {"width": 3}, "no argument 'width': it takes hidden, dropout"),
        ("lenet", (1, 28, 28), {"depth": 3}, "no argument 'depth': it takes none"),
        ("lenet", (1, 8, 8), {}, "at least 16 pixels"),
        ("paper-cnn", (1, 28, 28), {"hidden": "big"}, "cannot be built"),
        ("paper-cnn", (1, 28, 28), {"hidden": -4}, "cannot be built"),
        ("paper-cnn", (1, 28, 28), {"dropout": 7}, "cannot be built"),
        ("mlp", (4,), {"hidden": [1] * 65}, "at most 64"),
        ("mlp", (4,), {"hidden": True}, "hidden must be"),
        ("mlp", (4,), {"activation": "exec"}, "activation must be one of"),
        ("mlp", (4,), {"hidden": 10**9}, "more than 2,000,000,000"),
        ("mlp", (4,), {"hidden": [10**12, 10**12]}, "cannot be built|more than"),
        ("paper-cnn", (3, 2048, 2048), {}, "would have 8,589,955,402 parameters"),
        ("mlp", (1, 10**5, 10**5), {}, "beyond what is trained"),
        ("mlp", (), {}, "beyond what is trained"),
        ("mlp", (4,), {"hidden": [1] * 20_000}, "arguments are larger"),
    ],
)
def test_what_does_not_fit_is_one_line(
    name: str, shape: tuple[int, ...], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build(name, shape, **arguments)
    assert "\n" not in str(caught.value)


def test_a_default_for_every_kind_of_data() -> None:
    shapes = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
    for name, known_shape in shapes.items():
        build(default_model(name, known_shape), known_shape)
    assert default_model("mnist", (1, 28, 28)) == "paper-cnn"
    assert default_model("cifar10", (3, 32, 32)) == "lenet"
    assert default_model("table.csv", (30,)) == "mlp"
    for shape in [(30,), (5, 6), (1, 8, 8), (1, 64, 64), (1, 224, 224), (3, 224, 224), (3, 12, 40)]:
        assert parameters(build(default_model("own", shape), shape)) < 20e6


def test_arguments_as_they_are_typed() -> None:
    assert parse_model_arguments(["hidden=[64, 32]", 'activation="tanh"', "dropout=0.5"]) == {
        "hidden": [64, 32],
        "activation": "tanh",
        "dropout": 0.5,
    }
    for item in ("hidden", "=3", "a b=1", "act=relu", "x=NaN", "x=1e999", "x=" + "[" * 100_000):
        with pytest.raises(UsageError, match="--model-arg"):
            parse_model_arguments([item])
    with pytest.raises(UsageError, match="twice"):
        parse_model_arguments(["a=1", "a=2"])


# --- a user's file

OWN = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Setting:  # dataclasses look their module up
    width: int

class Net(nn.Module):
    def __init__(self, input_shape, classes, width=4):
        super().__init__()
        self.setting = Setting(width)
        self.inner = nn.Linear(input_shape[0], width)
        self.outer = nn.Linear(width, classes)

    def forward(self, x):
        return self.outer(self.inner(x))
"""


def from_file(
    path: Path, text: str, name: str = "Net", classes: int = 3, **arguments: Any
) -> torch.nn.Module:
    path.write_text(text)
    wanted = architecture(f"{path}:{name}", arguments)
    assert wanted.source_digest is not None
    return model_factory(wanted, (5,), classes, accepted=frozenset([wanted.source_digest]))()


def test_a_class_from_the_users_file(tmp_path: Path) -> None:
    model = from_file(tmp_path / "net.py", OWN, width=6)
    assert parameters(model) == 6 * 6 + 7 * 3
    wanted = architecture(f"{tmp_path}/net.py:Net", {})
    assert wanted.source_digest == hashlib.sha256((tmp_path / "net.py").read_bytes()).hexdigest()


def test_line_ends_do_not_change_between_file_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_bytes(OWN.replace("\n", "\r\n").encode())
    wanted = architecture(f"{path}:Net", {})
    assert wanted.source_digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_code_that_looks_at_values_is_tried_for_real(tmp_path: Path) -> None:
    text = OWN.replace("super().__init__()", "super().__init__(); self.p = float(torch.ones(3).sum())")
    assert parameters(from_file(tmp_path / "net.py", text)) == 6 * 4 + 5 * 3


def test_code_that_nobody_accepted_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    source = f"import pathlib\npathlib.Path({str(trap)!r}).touch()\n{OWN}"
    digest = hashlib.sha256(source.encode()).hexdigest()
    received = Architecture("Net", {}, source)
    for accepted in (NOBODY, frozenset(["0" * 64])):
        with pytest.raises(ModelError, match=f"--accept-arch {digest}"):
            model_factory(received, (5,), 3, accepted=accepted)
    assert not trap.exists()
    model_factory(received, (5,), 3, accepted=frozenset([digest]))
    assert trap.exists()


def test_a_file_that_changes_after_it_was_read_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(OWN)
    wanted = architecture(f"{path}:Net", {})
    path.write_text("raise SystemExit('the second read')")
    assert wanted.source_digest is not None
    model_factory(wanted, (5,), 3, accepted=frozenset([wanted.source_digest]))()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Net(:", "cannot be run: SyntaxError"),
        ("import nothing_like_this", "cannot be run: ModuleNotFoundError"),
        ("raise SystemExit(3)", "cannot be run: SystemExit: 3"),
        ("class Other: pass", "defines no class 'Net'"),
        ("Net = 3", "defines no class 'Net'"),
        ("class Net: pass", "made a Net, not a torch.nn.Module"),
        ("from torch import nn\ndef Net(): return nn.Linear(5, 4)", r"into \(2, 4\); it must give \(2, 3\)"),
        ("from torch import nn\ndef Net(): return nn.Linear(4, 3)", "cannot be built .*RuntimeError"),
        ("from torch import nn\ndef Net(): return nn.LSTM(5, 3)", "into tuple"),
        ("def Net(): raise KeyError('first\\nsecond')", "cannot be built .*KeyError"),
        ("def Net(depth): pass", "cannot be built .*TypeError.*depth"),
        ("from torch import nn\ndef Net(): return nn.Linear(5, 10**9)", "would have 6,000,000,000"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        from_file(tmp_path / "net.py", text)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    with pytest.raises(ModelError, match="No such file"):
        architecture(f"{path}:Net", {})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="UTF-8"):
        architecture(f"{path}:Net", {})
    path.write_text("#" * (513 << 10))
    with pytest.raises(ModelError, match="larger than 512 KiB"):
        architecture(f"{path}:Net", {})
