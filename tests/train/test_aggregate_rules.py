"""Every rule over real tensor files: the definition over all numbers of all models beside each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pfl_train import aggregate as aggregation
from p2pfl_train.aggregate import Contribution, aggregate, shares
from p2pfl_train.errors import TooFewModels
from p2pfl_train.rules import blocks
from p2pfl_train.rules.definitions import RULES
from p2pfl_train.rules.rule import ROBUST, Rule
from p2pfl_train.weights import TensorFile
from tests.processes import ROOT
from tests.train import naive_rules as naive
from tests.train.test_aggregate import FLOATS, write

torch.set_num_threads(1)

Model = dict[str, Tensor]
Doubles = npt.NDArray[np.float64]

EVERY = [Rule(name, mixes) for mixes in (False, True) for name in RULES]
ROBUST_ONES = [rule for rule in EVERY if rule.withstands_liars]
INTEGERS = [torch.int64, torch.int32, torch.uint8, torch.bool]
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative to the largest number: of the computation, or of the type where that is narrower."""
CLEAR = 1e-4
"""Relative difference of squared distances that rounding in float32 does not bridge."""


def lower_median(models: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    """Of each whole number; of two in the middle the smaller."""
    votes = np.stack([model[name].numpy() for model in models])
    return torch.from_numpy(np.asarray(np.sort(votes, axis=0)[(len(models) - 1) // 2]))


def numbers(model: Model) -> Doubles:
    """All floating-point tensors of a model, one vector."""
    parts = [tensor.double().reshape(-1) for tensor in model.values() if tensor.is_floating_point()]
    return np.asarray(torch.cat([torch.empty(0, dtype=torch.float64), *parts]).numpy())


def tolerance_of(models: Sequence[Model]) -> Doubles:
    """For each number what its tensor's type and largest number allow."""
    parts = [np.empty(0)]
    for name, tensor in models[0].items():
        if tensor.is_floating_point():
            largest = max([float(model[name].abs().max()) for model in models if tensor.numel()], default=0.0)
            parts.append(np.full(tensor.numel(), ROUNDING[tensor.dtype] * max(1.0, largest)))
    return np.concatenate(parts)


def copy_of(model: Model) -> Model:
    return {name: tensor.clone() for name, tensor in model.items()}


def same(one: Model, other: Model) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def contribute(folder: Path, models: Sequence[Model], samples: Sequence[int]) -> list[Contribution]:
    contributions = []
    for index, (model, count) in enumerate(zip(models, samples, strict=True)):
        write(folder / str(index), model, count)
        contributions.append(Contribution(TensorFile.open(folder / str(index)), count))
    return contributions


@contextmanager
def sizes(piece: int, mapped: int, block: int, columns: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "PIECE_BYTES", piece)
        patch.setattr(aggregation, "MAPPED_BYTES", mapped)
        patch.setattr(blocks, "BLOCK_BYTES", block)
        patch.setattr(blocks, "MIN_COLUMNS", columns)
        yield


any_sizes = st.one_of(
    st.just((1 << 20, 32 << 20, 1 << 20, 256)),
    st.tuples(
        st.sampled_from([8, 24, 64, 1 << 20]),
        st.sampled_from([1, 64, 1 << 20]),
        st.sampled_from([1, 64, 500, 1 << 20]),
        st.sampled_from([1, 3, 256]),
    ),
)


def draw_models(seed: int, kinds: Sequence[torch.dtype], shapes: list[list[int]], count: int) -> list[Model]:
    """Half of the seeds give small whole numbers: many are equal, and all arithmetic on them is exact."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: list[int], kind: torch.dtype) -> Tensor:
        if seed % 2 or not kind.is_floating_point:
            return torch.randint(0, 4, shape, generator=generator).to(kind)
        return (torch.randn(shape, generator=generator) * 3).to(kind)

    return [{f"t{i}": draw(shape, kinds[i]) for i, shape in enumerate(shapes)} for _ in range(count)]


def draw_clear_models(
    seed: int, kinds: Sequence[torch.dtype], shapes: list[list[int]], count: int, byzantine: int, first: int
) -> list[Model]:
    """Models, those from `first` on with votes, whose nearest neighbours are no matter of rounding."""
    while True:
        models = draw_models(seed, kinds, shapes, count)
        exact = seed % 2 == 1
        points = np.stack([numbers(model) for model in models[first:]])
        if exact or not points.size or naive.mixing_is_clear(points, byzantine, CLEAR):
            return models
        seed += 2


@settings(deadline=None, max_examples=80)
@given(
    shapes=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from([*FLOATS, *INTEGERS]), min_size=4, max_size=4),
    own_samples=st.sampled_from([0, 1, 40]),
    samples=st.lists(st.integers(0, 1000), min_size=1, max_size=8),
    sized=any_sizes,
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_every_rule_is_its_definition_over_all_tensors(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    kinds: list[torch.dtype],
    own_samples: int,
    samples: list[int],
    sized: tuple[int, int, int, int],
    seed: int,
    data: st.DataObject,
) -> None:
    votes_itself = own_samples > 0
    count = len(samples) + votes_itself
    byzantine = data.draw(st.integers(0, (count - 1) // 2))
    first = 0 if votes_itself else 1
    own, *others = draw_clear_models(seed, kinds, shapes, len(samples) + 1, byzantine, first)
    contributions = contribute(tmp_path_factory.mktemp("rules"), others, samples)
    own_share, other_shares = shares(own_samples, samples)
    heaviest = others[max(range(len(others)), key=other_shares.__getitem__)]
    voting = [own, *others][first:]
    share = np.array([own_share, *other_shares][first:])
    points, tolerance = np.stack([numbers(model) for model in voting]), tolerance_of(voting)
    for rule in EVERY:
        result = copy_of(own)
        if count < rule.least_votes(byzantine):
            with pytest.raises(TooFewModels):
                aggregate(result, own_samples, contributions, rule, byzantine)
            assert same(result, own)
            continue
        with sizes(*sized):
            aggregate(result, own_samples, contributions, rule, byzantine)
        for name, tensor in result.items():
            if not tensor.is_floating_point():
                counters = heaviest[name] if not rule.withstands_liars else lower_median(others, name)
                assert torch.equal(tensor, own[name] if votes_itself else counters)
        centre = 0 if votes_itself else None
        if points.size:
            found = numbers(result)
            assert not naive.why_wrong(str(rule), found, points, byzantine, share, centre, tolerance)


@settings(deadline=None, max_examples=40)
@given(
    rule=st.sampled_from(EVERY),
    kind=st.sampled_from(FLOATS),
    byzantine=st.integers(0, 2),
    own_samples=st.sampled_from([0, 1, 40]),
    seed=st.integers(0, 10**6),
)
def test_the_sizes_of_pieces_and_blocks_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    rule: Rule,
    kind: torch.dtype,
    byzantine: int,
    own_samples: int,
    seed: int,
) -> None:
    """Thousands of numbers in blocks of every width, and all at once."""
    votes_itself = own_samples > 0
    first = 0 if votes_itself else 1
    count = max(2, rule.least_votes(byzantine)) + first
    mixed_away = byzantine if rule.mixes else 0
    own, *others = draw_clear_models(seed, [kind, torch.float32], [[40, 71], [1]], count, mixed_away, first)
    contributions = contribute(tmp_path_factory.mktemp("sizes"), others, [7] * len(others))
    own_share, other_shares = shares(own_samples, [7] * len(others))
    share = np.array([own_share, *other_shares][first:])
    voting = [own, *others][first:]
    points, tolerance = np.stack([numbers(model) for model in voting]), tolerance_of(voting)
    for sized in ((1 << 30, 1 << 30, 1 << 30, 1), (4096, 1 << 20, 900, 16), (1000, 8000, 1, 100)):
        result = copy_of(own)
        with sizes(*sized):
            aggregate(result, own_samples, contributions, rule, byzantine)
        centre = 0 if votes_itself else None
        found = numbers(result)
        assert not naive.why_wrong(str(rule), found, points, byzantine, share, centre, tolerance)


def test_the_own_model_is_a_vote_only_with_samples(tmp_path: Path) -> None:
    contributions = contribute(tmp_path, [{"t": torch.tensor([number])} for number in (2.0, 4.0)], [1, 1])
    for own_samples, wanted in ((0, 3.0), (1, 2.0)):
        own = {"t": torch.tensor([-50.0])}
        aggregate(own, own_samples, contributions, Rule("median"))
        assert own["t"].item() == wanted


def test_claimed_samples_count_in_fedavg_alone(tmp_path: Path) -> None:
    numbers_sent = (0.0, 1.0, 2.0, 100.0)
    contributions = contribute(
        tmp_path, [{"t": torch.tensor([number])} for number in numbers_sent], [1, 1, 1, 10**9]
    )
    found = {}
    for rule in (Rule("fedavg"), Rule("mean"), Rule("median"), Rule("trimmed_mean")):
        own = {"t": torch.tensor([1.0])}
        aggregate(own, 1, contributions, rule, 1)
        found[rule.name] = own["t"].item()
    assert found["fedavg"] == pytest.approx((1 + 0 + 1 + 2 + 10 * 100) / 14)
    assert found["mean"] == pytest.approx(104 / 5)
    assert found["median"] == 1
    assert found["trimmed_mean"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_without_others_nothing_changes(rule: Rule) -> None:
    own = {"t": torch.tensor([1.0, 2.0])}
    aggregate(own, 1, [], rule, 3)
    assert own["t"].tolist() == [1, 2]


@pytest.mark.parametrize("rule", EVERY, ids=str)
@pytest.mark.parametrize("own_samples", [0, 5])
def test_too_few_models_are_refused_and_nothing_changes(tmp_path: Path, rule: Rule, own_samples: int) -> None:
    """The own model counts among them where it votes."""
    least = rule.least_votes(2)
    votes_sent = least - (own_samples > 0)
    models: list[Model] = [
        {"t": torch.full((4,), float(index)), "count": torch.tensor(index)} for index in range(votes_sent)
    ]
    contributions = contribute(tmp_path, models, [3] * votes_sent)
    own: Model = {"t": torch.full((4,), -1.0), "count": torch.tensor(-1)}
    if len(contributions) > 1:
        before = copy_of(own)
        with pytest.raises(TooFewModels, match=f"there are {least - 1}"):
            aggregate(own, own_samples, contributions[:-1], rule, 2)
        assert same(own, before)
    if contributions:
        aggregate(own, own_samples, contributions, rule, 2)
        assert not torch.equal(own["t"], torch.full((4,), -1.0)) or rule.name == "krum"


@pytest.mark.parametrize("rule", EVERY, ids=str)
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_own_weights_that_became_nan_are_healed_when_they_have_no_vote(
    tmp_path: Path, rule: Rule, kind: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    models = [{"t": torch.randn(50, generator=generator).to(kind)} for _ in range(5)]
    contributions = contribute(tmp_path, models, [3, 4, 5, 6, 7])
    spoiled, sound = {"t": torch.full((50,), torch.nan).to(kind)}, {"t": torch.zeros(50).to(kind)}
    spoiled["t"][7] = torch.inf
    for own in (spoiled, sound):
        aggregate(own, 0, contributions, rule, 1)
    assert torch.isfinite(spoiled["t"]).all()
    assert torch.equal(spoiled["t"], sound["t"])


@pytest.mark.parametrize("rule", ROBUST_ONES, ids=str)
@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_liars_at_the_largest_number_leave_the_result_among_the_honest(
    tmp_path: Path, rule: Rule, kind: torch.dtype, sign: int
) -> None:
    """Of any type: all of it finite, none of it a warning."""
    generator = torch.Generator().manual_seed(2)
    honest = [{"t": torch.randn(300, generator=generator).to(kind)} for _ in range(5)]
    largest = torch.finfo(kind).max
    liars = [{"t": torch.full((300,), far, dtype=kind)} for far in (largest, sign * largest)]
    own, *others = [*honest, *liars]
    before = np.stack([numbers(model) for model in honest])
    aggregate(own, 10, contribute(tmp_path, others, [10**9] * 6), rule, 2)
    result = numbers(own)
    slack = tolerance_of(honest)
    centre = before.mean(axis=0)
    radius = float(np.linalg.norm(before - centre, axis=1).max())
    assert np.linalg.norm(result - centre) < 12 * radius
    if rule.name in ("median", "trimmed_mean"):
        assert (result >= before.min(axis=0) - slack).all()
        assert (result <= before.max(axis=0) + slack).all()


@pytest.mark.parametrize("rule", EVERY, ids=str)
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_what_finite_numbers_become_is_finite(tmp_path: Path, rule: Rule, kind: torch.dtype) -> None:
    """Sums of the largest overflow, also in the type that they are computed in."""
    largest = torch.finfo(kind).max
    own, *others = [{"t": torch.tensor([largest, -largest, 0, 1], dtype=kind)} for _ in range(6)]
    aggregate(own, 3, contribute(tmp_path, others, [1, 2, 3, 4, 5]), rule, 1)
    assert torch.isfinite(own["t"]).all()
    assert own["t"][2] == 0
    assert float(own["t"][3]) == pytest.approx(1)


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_a_tensor_that_is_not_contiguous_is_aggregated_in_place(tmp_path: Path, rule: Rule) -> None:
    generator = torch.Generator().manual_seed(3)
    models = [{"t": torch.randn(4, 6, generator=generator)} for _ in range(5)]
    contributions = contribute(tmp_path, models[1:], [1] * 4)
    plain = {"t": models[0]["t"].clone()}
    storage = models[0]["t"].T.contiguous()
    turned = {"t": storage.T}
    assert not turned["t"].is_contiguous()
    aggregate(plain, 1, contributions, rule, 1)
    aggregate(turned, 1, contributions, rule, 1)
    assert torch.equal(storage.T, plain["t"])


@pytest.mark.parametrize(
    ("rule", "far"),
    [
        pytest.param(
            rule,
            far,
            id=f"{rule}-{far}",
        )
        for rule in ROBUST_ONES
        for far in (1e6, 1e10, 3e38)
    ],
)
def test_a_peer_without_samples_may_be_sent_a_liars_model_first(
    tmp_path: Path, rule: Rule, far: float
) -> None:
    """Another liar is nearer, and must not pass for one of the honest beside the first."""
    generator = torch.Generator().manual_seed(4)
    models = [{"t": torch.randn(50, generator=generator)} for _ in range(9)]
    models[0]["t"].fill_(far)
    models[1]["t"].fill_(-far / 1e4)
    own = {"t": torch.zeros(50)}
    aggregate(own, 0, contribute(tmp_path, models, [1] * 9), rule, 2)
    assert float(own["t"].norm()) < 12 * 8


@pytest.mark.parametrize("rule", [rule for rule in ROBUST_ONES if rule.needs_distances], ids=str)
@pytest.mark.parametrize("own_number", [1e8, 1e30])
def test_own_weights_that_went_astray_are_healed_when_they_have_no_vote(
    tmp_path: Path, rule: Rule, own_number: float
) -> None:
    """After a round that was lost to liars, the next must not be lost as well."""
    generator = torch.Generator().manual_seed(5)
    models = [{"t": torch.randn(50, generator=generator)} for _ in range(7)]
    for liar in models[:2]:
        liar["t"].fill_(1e3)
    own = {"t": torch.full((50,), own_number)}
    aggregate(own, 0, contribute(tmp_path, models, [1] * 7), rule, 2)
    assert float(own["t"].norm()) < 12 * 8


def test_memory_does_not_grow_with_the_number_of_models(tmp_path: Path) -> None:
    """Eight models of 32 MiB are mixed and trimmed within the memory of two."""
    for index in range(8):
        write(tmp_path / str(index), {"t": torch.full((8 << 20,), float(index))})
    program = f"""
from pathlib import Path
import torch
from tests.train.running import peak_kb
from p2pfl_train.aggregate import Contribution, aggregate
from p2pfl_train.rules.rule import ROBUST
from p2pfl_train.weights import TensorFile
torch.set_num_threads(1)
own = {{"t": torch.zeros(8 << 20)}}
own["t"].add_(3)
before = peak_kb()
files = [TensorFile.open(Path({str(tmp_path)!r}) / str(index)) for index in range(8)]
for file in files:
    file.verify(file.manifest())
aggregate(own, 1, [Contribution(file, 1) for file in files], ROBUST, 2)
assert 2.5 < own["t"].min() and own["t"].max() < 4
print((peak_kb() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) < 64, "MiB more than before, for files of 256: only pieces of them are mapped"


@pytest.mark.parametrize("rule", [Rule("median"), ROBUST], ids=str)
def test_counters_of_a_peer_without_samples_are_not_a_liars_to_choose(tmp_path: Path, rule: Rule) -> None:
    """A permutation, a mask: buffers of whole numbers can spoil a model as well."""
    honest = {"w": torch.ones(3), "order": torch.tensor([2, 0, 1]), "mask": torch.tensor([True, False])}
    lie = {"w": torch.ones(3), "order": torch.tensor([0, 0, 2**60]), "mask": torch.tensor([False, True])}
    contributions = []
    for index, model in enumerate([lie, honest, honest, honest]):
        write(tmp_path / str(index), model)
        contributions.append(
            Contribution(TensorFile.open(tmp_path / str(index)), 10**6 if model is lie else 1)
        )
    own = {name: torch.zeros_like(tensor) for name, tensor in honest.items()}
    aggregate(own, 0, contributions, rule, 1)
    for name, tensor in own.items():
        assert torch.equal(tensor, honest[name]), name


@pytest.mark.parametrize("rule", ROBUST_ONES, ids=str)
def test_what_is_no_parameter_hides_no_lie(tmp_path: Path, rule: Rule) -> None:
    """Counters in which honest peers differ a thousandfold, and a liar whose counter is in the middle."""
    generator = torch.Generator().manual_seed(3)
    models = [
        {"seen": torch.full((4,), 1000.0 * index), "w": 0.1 * torch.randn(40, generator=generator)}
        for index in range(8)
    ]
    models[4]["w"] += 30  # its counter is the median
    models[7]["seen"] = torch.full((4,), 1e30)  # and another lies about the counter alone
    own, *others = models
    contributions = contribute(tmp_path, others, [1] * len(others))
    honest = [model["seen"][0] for model in models[:7]]
    aggregate(own, 1, contributions, rule, 2, {"seen"})
    assert float(own["w"].abs().max()) < 1
    assert min(honest) <= float(own["seen"][0]) <= max(honest)


@pytest.mark.parametrize("rule", [rule for rule in ROBUST_ONES if rule.needs_distances], ids=str)
def test_an_own_model_far_away_does_not_blur_the_others(tmp_path: Path, rule: Rule) -> None:
    """A newcomer's weights are far from all; which of the others is a liar must show all the same."""
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(2000, generator=generator)
    others = [{"w": base + 1e-3 * torch.randn(2000, generator=generator)} for _ in range(6)]
    liar = {"w": base + 1e-2}
    contributions = contribute(tmp_path, [*others[:3], liar, *others[3:]], [1] * 7)
    own = {"w": base + 30 * torch.randn(2000, generator=generator)}
    mine = copy_of(own)
    aggregate(own, 1, contributions, rule, 2)
    points = np.stack([numbers(model) for model in [mine, *others[:3], liar, *others[3:]]])
    wanted = naive.apply(str(rule), points, 2, np.full(8, 1 / 8), 0)
    assert float(np.abs(numbers(own) - wanted).max()) < 1e-4
