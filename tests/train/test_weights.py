"""Tensor files: what is written can be read by others, and what does not fit is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pfl_state.errors import DirectoryUnusable
from p2pfl_state.manifest import Manifest, file_weights_digest, read_header
from torch import Tensor, nn

from p2pfl_train import weights
from p2pfl_train.errors import ModelError, WeightsRefused
from p2pfl_train.tensors import FORMAT_NAMES, digest_of, is_finite, layout_of, stored_tensors
from tests.processes import ROOT

torch.set_num_threads(1)

PLAIN = Manifest(version=1, samples=10, task="a" * 64, weights="0" * 64)


class Tied(nn.Module):
    """Two names for one weight, a batch norm, a 0-d and an empty buffer, half types."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("scalar", torch.tensor(3.5))
        self.register_buffer("nothing", torch.empty(0, 4))
        self.register_buffer("narrow", torch.randn(3, dtype=torch.float16))
        self.register_buffer("brain", torch.randn(5, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("skipped", torch.ones(2), persistent=False)


def saved(path: Path, model: nn.Module) -> Manifest:
    return weights.save_model(path, model, PLAIN)


def test_a_saved_model_is_what_the_safetensors_library_and_the_daemon_read(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "model.safetensors"
    manifest = saved(path, model)
    assert read_header(path).manifest() == manifest
    assert file_weights_digest(path) == manifest.weights == digest_of(stored_tensors(model))
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == stored_tensors(model).keys()
    for name, tensor in stored_tensors(model).items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_tied_tensors_are_stored_once_under_the_first_name(tmp_path: Path) -> None:
    names = stored_tensors(Tied()).keys()
    assert "decoder.weight" in names
    assert "encoder.weight" not in names
    assert "skipped" not in names
    source, target = Tied(), Tied()
    saved(tmp_path / "m", source)
    weights.load_published(tmp_path / "m", target)
    assert torch.equal(target.encoder.weight, source.encoder.weight)
    assert target.encoder.weight is target.decoder.weight


@settings(deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5),
    kinds=st.lists(st.sampled_from(sorted(FORMAT_NAMES, key=str)), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
def test_every_type_and_shape_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    kinds: list[torch.dtype],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    tensors = {f"t{index}": (torch.rand(shape) * 4).to(kinds[index]) for index, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("trip") / "t.safetensors"
    weights.save_tensors(path, tensors, {"note": "ü"})
    assert file_weights_digest(path) == digest_of(tensors)
    loaded, metadata = weights.load_tensors(path)
    assert metadata["note"] == "ü"
    for name, tensor in tensors.items():
        assert loaded[name].shape == tensor.shape
        assert loaded[name].view(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_a_tensor_that_is_not_contiguous_keeps_its_values(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert not model.weight.is_contiguous()
    manifest = saved(tmp_path / "m", model)
    other = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    assert weights.load_published(tmp_path / "m", other) == manifest
    assert torch.equal(other.weight, model.weight)


def test_an_unaligned_file_is_read_like_any_other(tmp_path: Path) -> None:
    values = torch.arange(7, dtype=torch.float32)
    header = json.dumps({"t": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}}).encode()
    header += b" " * ((3 - (8 + len(header))) % 4)
    data = len(header).to_bytes(8, "little") + header + values.numpy().tobytes()
    (tmp_path / "m").write_bytes(data)
    loaded, _ = weights.load_tensors(tmp_path / "m")
    assert torch.equal(loaded["t"], values)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_bad_number_anywhere_is_seen(value: float, dtype: torch.dtype) -> None:
    for position in (0, 17, 40):
        tensor = torch.zeros(41, dtype=dtype)
        assert is_finite(tensor)
        tensor[position] = value
        assert not is_finite(tensor)
    assert is_finite(torch.full((3,), torch.finfo(dtype).max, dtype=dtype))


def test_weights_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    model, path = nn.Linear(3, 3), tmp_path / "m"
    saved(path, model)
    before = path.read_bytes()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(WeightsRefused, match="NaN"):
        saved(path, model)
    assert path.read_bytes() == before


def damaged(path: Path, kind: str) -> None:
    """Changes a saved nn.Linear(4, 4) in one way."""
    model: nn.Module = nn.Linear(4, 4)
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(data[:-8])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no safetensors":
        path.write_bytes(b"\x80\x04]" + bytes(40))
    elif kind == "bit flipped":
        data[-1] ^= 1
        path.write_bytes(data)
    elif kind == "another shape":
        saved(path, nn.Linear(4, 5))
    elif kind == "another type":
        saved(path, nn.Linear(4, 4).double())
    elif kind == "another name":
        saved(path, nn.Sequential(nn.Linear(4, 4)))
    elif kind == "lacks one":
        saved(path, nn.Linear(4, 4, bias=False))
    elif kind in ("nan", "inf"):
        tensors = stored_tensors(model)
        tensors["weight"][2, 2] = float(kind)
        manifest = Manifest(1, 10, "a" * 64, digest_of(tensors))
        weights.save_tensors(path, tensors, {"p2pfl": manifest.encode()})
    elif kind == "no manifest":
        weights.save_tensors(path, stored_tensors(model), {})
    else:
        assert kind == "missing"
        path.unlink()


DAMAGES = [
    "truncated", "empty", "no safetensors", "bit flipped", "another shape", "another type",
    "another name", "lacks one", "nan", "inf", "no manifest", "missing",
]  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_file_that_does_not_fit_is_refused_and_nothing_changes(tmp_path: Path, kind: str) -> None:
    path, own = tmp_path / "m", nn.Linear(4, 4)
    saved(path, nn.Linear(4, 4))
    damaged(path, kind)
    before = digest_of(stored_tensors(own))
    with pytest.raises(WeightsRefused) as caught:
        weights.load_published(path, own)
    assert "\n" not in str(caught.value)
    assert digest_of(stored_tensors(own)) == before


def test_a_file_of_other_weights_than_announced_is_refused(tmp_path: Path) -> None:
    announced = saved(tmp_path / "a", nn.Linear(4, 4))
    saved(tmp_path / "b", nn.Linear(4, 4))
    layout = layout_of(stored_tensors(nn.Linear(4, 4)))
    with pytest.raises(WeightsRefused, match="announced"):
        weights.open_checked(tmp_path / "b", layout, announced)


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3)
    stored_tensors(model)["running_var"][1] = -1e-3
    saved(tmp_path / "m", model)
    with pytest.raises(WeightsRefused, match="negative variance"):
        weights.load_published(tmp_path / "m", nn.BatchNorm1d(3))


class Overlapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.ones(8))
        self.register_buffer("part", self.whole.detach()[2:4])


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"anything": 1}


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("wide", torch.ones(1).expand(5))


@pytest.mark.parametrize(
    "model", [Overlapping(), Extra(2, 2), Expanded(), nn.Linear(2, 2, dtype=torch.complex128)]
)
def test_state_that_no_tensor_file_can_hold_is_a_clear_error(model: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"register|hold"):
        stored_tensors(model)


def test_a_full_disk_leaves_the_published_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small = saved(path, nn.Linear(4, 4))
    program = f"""
import resource, torch
from pathlib import Path
from p2pfl_state.errors import DirectoryUnusable
from p2pfl_state.manifest import Manifest
from p2pfl_train import weights
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    weights.save_model(Path({str(path)!r}), torch.nn.Linear(512, 512), Manifest(2, 1, "a" * 64, "0" * 64))
except DirectoryUnusable as error:
    assert "\\n" not in str(error)
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert weights.load_published(path, nn.Linear(4, 4)) == small


def test_no_space_left_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "model.safetensors"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DirectoryUnusable, match="no space left"):
        saved(path, nn.Linear(300, 300))
    assert os.listdir(tmp_path) == []


def test_reading_a_large_file_costs_little_memory(tmp_path: Path) -> None:
    """Verification passes over the file and holds no more than a piece of it."""
    path = tmp_path / "m"
    tensors: dict[str, Tensor] = {"t": torch.ones(16 << 20)}
    manifest = Manifest(1, 1, "a" * 64, digest_of(tensors))
    weights.save_tensors(path, tensors, {"p2pfl": manifest.encode()})
    program = f"""
from pathlib import Path
import torch
from tests.train.running import peak_kb
from p2pfl_train.weights import TensorFile
torch.set_num_threads(1)
before = peak_kb()
file = TensorFile.open(Path({str(path)!r}))
file.verify(file.manifest())
print((peak_kb() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) < 24, "MiB more than before, for a file of 64"
