"""The average: equal to a naive one, in place, and never spoiled by what somebody sends."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest
from p2pfl_state.markers import AggregateAnswer, FetchedModel
from torch import Tensor, nn

from p2pfl_train import aggregate as aggregation
from p2pfl_train import weights
from p2pfl_train.aggregate import Contribution, aggregate, check_models, shares
from p2pfl_train.tensors import digest_of, layout_of, stored_tensors
from p2pfl_train.weights import TensorFile
from tests.processes import ROOT
from tests.train.fake_daemon import peer_id

torch.set_num_threads(1)

TASK = hashlib.sha256(b"task").hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], samples: int = 1, task: str = TASK) -> Manifest:
    manifest = Manifest(1, samples, task, digest_of(tensors))
    weights.save_tensors(path, tensors, {"p2pfl": manifest.encode()})
    return manifest


def naive(own: Tensor, others: Sequence[Tensor], own_share: float, other_shares: Sequence[float]) -> Tensor:
    """The definition: all models beside each other, in double precision."""
    stacked = torch.stack([own.double(), *[other.double() for other in others]])
    share = torch.tensor([own_share, *other_shares], dtype=torch.float64)
    return (stacked * share.view(-1, *[1] * own.ndim)).sum(0)


FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative: of the result's own type, beside the 1e-6 of the sum."""


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from([*FLOATS, torch.int64, torch.bool]), min_size=4, max_size=4),
    own_samples=st.integers(0, 1000),
    samples=st.lists(st.integers(0, 10**6), max_size=4),
    piece_bytes=st.sampled_from([16, 64, 1 << 20]),
    seed=st.integers(0, 10**6),
)
def test_the_average_is_the_weighted_mean(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    kinds: list[torch.dtype],
    own_samples: int,
    samples: list[int],
    piece_bytes: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    folder = tmp_path_factory.mktemp("average")

    def draw() -> dict[str, Tensor]:
        return {f"t{i}": (torch.randn(shape) * 3).to(kinds[i]) for i, shape in enumerate(shapes)}

    own, models = draw(), [draw() for _ in samples]
    before = {name: tensor.clone() for name, tensor in own.items()}
    contributions = []
    for index, (model, count) in enumerate(zip(models, samples, strict=True)):
        write(folder / str(index), model)
        contributions.append(Contribution(TensorFile.open(folder / str(index)), count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "PIECE_BYTES", piece_bytes)
        aggregate(own, own_samples, contributions)

    own_share, other_shares = shares(own_samples, samples)
    for name, tensor in own.items():
        if not models or not tensor.is_floating_point():
            if not models or own_samples > 0:
                assert torch.equal(tensor, before[name])
            else:
                heaviest = max(range(len(models)), key=other_shares.__getitem__)
                assert torch.equal(tensor, models[heaviest][name])
            continue
        wanted = naive(before[name], [model[name] for model in models], own_share, other_shares)
        tolerance = ROUNDING[tensor.dtype]
        torch.testing.assert_close(tensor.double(), wanted, rtol=tolerance, atol=max(1e-6, tolerance / 10))


@given(own=st.integers(0, 10**9), sent=st.lists(st.integers(0, 2**53 - 1), max_size=20))
def test_shares_are_a_mean_and_nobody_counts_more_than_the_limit(own: int, sent: list[int]) -> None:
    own_share, other_shares = shares(own, sent)
    assert own_share + sum(other_shares) == pytest.approx(1.0)
    assert all(share > 0 for share in other_shares)
    reference = own_share if own > 0 else min(other_shares, default=1.0)
    limit = aggregation.MAX_SAMPLES_RATIO
    assert all(share <= limit * reference * (1 + 1e-9) for share in other_shares)


def test_honest_numbers_weigh_by_samples() -> None:
    assert shares(100, [300, 600]) == (0.1, [0.3, 0.6])


def test_batch_norm_statistics_are_averaged_and_counters_are_not(tmp_path: Path) -> None:
    own, other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    own(torch.randn(8, 4))
    for _ in range(5):
        other(torch.randn(8, 4) * 3 + 1)
    mine, theirs = stored_tensors(own), stored_tensors(other)
    wanted = {name: (mine[name].clone() + theirs[name]) / 2 for name in ("running_mean", "running_var")}
    write(tmp_path / "m", theirs)
    aggregate(mine, 1, [Contribution(TensorFile.open(tmp_path / "m"), 1)])
    for name, tensor in wanted.items():
        torch.testing.assert_close(mine[name], tensor)
    assert bool((mine["running_var"] >= 0).all())
    assert int(mine["num_batches_tracked"]) == 1
    assert own.running_var is not None
    torch.testing.assert_close(own.running_var, wanted["running_var"])


def test_weights_that_became_nan_are_healed_when_they_count_nothing(tmp_path: Path) -> None:
    own, other = {"t": torch.full((5,), torch.nan)}, {"t": torch.ones(5)}
    write(tmp_path / "m", other)
    aggregate(own, 0, [Contribution(TensorFile.open(tmp_path / "m"), 7)])
    assert torch.equal(own["t"], other["t"])


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_the_mean_of_finite_numbers_is_finite(tmp_path: Path, kind: torch.dtype) -> None:
    """The shares of these samples sum to a little more than 1."""
    own = {"t": torch.ones(5, dtype=kind)}
    largest = torch.finfo(kind).max
    samples = [3647, 5918, 2431]
    for n in samples:
        write(tmp_path / f"{n}", {"t": torch.tensor([largest, -largest, 0.0, 1.0, largest], dtype=kind)})
    aggregate(own, 0, [Contribution(TensorFile.open(tmp_path / f"{n}"), n) for n in samples])
    assert torch.isfinite(own["t"]).all()
    assert float(own["t"][0]) == largest


def test_tied_weights_are_averaged_once(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    own, other = tied(), tied()
    assert isinstance(own[0], nn.Linear)
    wanted = (stored_tensors(own)["0.weight"] * 0.75 + stored_tensors(other)["0.weight"] * 0.25).clone()
    write(tmp_path / "m", stored_tensors(other))
    aggregate(stored_tensors(own), 3, [Contribution(TensorFile.open(tmp_path / "m"), 1)])
    torch.testing.assert_close(own[0].weight.detach(), wanted)


def test_a_tensor_that_is_not_contiguous_is_averaged_in_place(tmp_path: Path) -> None:
    own = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    tensors = stored_tensors(own)
    before = tensors["weight"].clone()
    other = {"weight": torch.randn(4, 3, 3, 3), "bias": torch.randn(4)}
    write(tmp_path / "m", other)
    aggregate(tensors, 1, [Contribution(TensorFile.open(tmp_path / "m"), 1)])
    torch.testing.assert_close(own.weight.detach(), (before + other["weight"]) / 2)


def answer_of(state: StateDir, models: Mapping[str, Manifest]) -> AggregateAnswer:
    fetched = [FetchedModel(peer, manifest, "0" * 64, 1, 0.1, False) for peer, manifest in models.items()]
    return AggregateAnswer("1" * 32, 4, tuple(fetched), (), len(fetched), len(fetched), 0.1)


def test_models_that_do_not_fit_are_left_out_and_the_rest_is_averaged(tmp_path: Path) -> None:
    state, own = StateDir(tmp_path), nn.Linear(4, 4)
    mine = stored_tensors(own)
    check = partial(check_models, state, layout=layout_of(mine), task=TASK)
    good, nan, wrong, stranger = peer_id(1), peer_id(2), peer_id(3), peer_id(4)
    state.round_dir(4).mkdir(parents=True)
    write_to = partial(state.fetched_model, 4)
    spoiled = stored_tensors(nn.Linear(4, 4))
    spoiled["bias"][3] = torch.nan
    theirs = stored_tensors(nn.Linear(4, 4))
    manifests = {
        nan: write(write_to(nan), spoiled, 5),
        good: write(write_to(good), theirs, 30),
        wrong: write(write_to(wrong), stored_tensors(nn.Linear(4, 3)), 5),
        stranger: write(write_to(stranger), theirs, 5, task="b" * 64),
        peer_id(5): Manifest(1, 1, TASK, "c" * 64),
    }
    before = digest_of(mine)
    checked = check(answer_of(state, manifests))
    assert digest_of(mine) == before
    assert {refusal.peer_id for refusal in checked.refusals} == manifests.keys() - {good}
    assert all(refusal.weights == manifests[refusal.peer_id].weights for refusal in checked.refusals)
    assert all("\n" not in refusal.reason for refusal in checked.refusals)
    wanted = {name: tensor * 0.25 + theirs[name] * 0.75 for name, tensor in mine.items()}
    aggregate(mine, 10, checked.contributions)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, wanted[name])


def test_memory_does_not_grow_with_the_number_of_models(tmp_path: Path) -> None:
    """Eight models of 32 MiB are averaged within the memory of one, with all that verifying them maps."""
    tensors = {"t": torch.ones(8 << 20)}
    for index in range(8):
        write(tmp_path / str(index), tensors)
    program = f"""
from pathlib import Path
import torch
from tests.train.running import peak_kb
from p2pfl_train.aggregate import Contribution, aggregate
from p2pfl_train.weights import TensorFile
torch.set_num_threads(1)
own = {{"t": torch.zeros(8 << 20)}}
own["t"].add_(1)
before = peak_kb()
files = [TensorFile.open(Path({str(tmp_path)!r}) / str(index)) for index in range(8)]
for file in files:
    file.verify(file.manifest())
aggregate(own, 1, [Contribution(file, 1) for file in files])
assert abs(own["t"].min() - 1) < 1e-6 and abs(own["t"].max() - 1) < 1e-6
print((peak_kb() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) < 32, "MiB more than before, for files of 256: one piece is mapped at a time"
