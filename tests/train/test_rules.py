"""The rules on bare numbers: against their definitions, with ties, and with liars as far as numbers go."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from p2pfl_train.errors import TooFewModels, UsageError
from p2pfl_train.rules import blocks, columns, geometry
from p2pfl_train.rules.blocks import Cook, Distances, columns_of
from p2pfl_train.rules.columns import Columns, Floats, selection
from p2pfl_train.rules.definitions import RULES, Recipe, Votes
from p2pfl_train.rules.rule import FEDAVG, ROBUST, Rule, parse_rule
from tests.train import naive_rules as naive

torch.set_num_threads(1)

Doubles = npt.NDArray[np.float64]
Kind = np.dtype[np.floating[Any]]

EVERY = [Rule(name, mixes) for mixes in (False, True) for name in RULES]
ROBUST_ONES = [rule for rule in EVERY if rule.withstands_liars]
AVERAGES = [rule for rule in EVERY if not rule.withstands_liars]
SINGLE: Kind = np.dtype(np.float32)
DOUBLE: Kind = np.dtype(np.float64)
ROUNDING = {SINGLE: 1e-6, DOUBLE: 1e-12}
LARGEST = float(np.finfo(np.float32).max)

kinds = st.sampled_from([SINGLE, DOUBLE])
seeds = st.integers(0, 2**32 - 1)


def distances_of(points: Floats, width: int | None = None) -> Doubles:
    """As the code computes them, `width` columns at a time."""
    total = Distances(len(points))
    step = width or points.shape[1]
    for start in range(0, points.shape[1], step):
        total.add([row[start : start + step] for row in points])
    return total.squared()


def cook(recipe: Recipe, rows: Sequence[Floats], width: int | None = None) -> Floats:
    """The result of a recipe, `width` columns at a time."""
    kitchen = Cook(recipe, rows[0].dtype)
    step = width or len(rows[0])
    parts = [
        kitchen.apply([row[start : start + step] for row in rows]).copy()
        for start in range(0, len(rows[0]), step)
    ]
    return np.concatenate(parts)


def apply(
    rule: Rule,
    points: Floats,
    byzantine: int,
    shares: Doubles | None = None,
    centre: int | None = 0,
    width: int | None = None,
) -> Doubles:
    """The result of a rule, (d,); `points` (n, d) must be as before afterwards."""
    before = points.copy()
    votes = Votes(equal_shares(points) if shares is None else shares, byzantine, centre)
    if rule.needs_distances:
        votes = Votes(votes.shares, byzantine, centre, distances_of(points, width))
    result = cook(rule.recipe(votes), list(points), width)
    assert np.array_equal(points, before)
    return result.astype(np.float64)


def equal_shares(points: Floats) -> Doubles:
    return np.full(len(points), 1 / len(points))


def draw_points(seed: int, shape: tuple[int, int], whole: bool, kind: Kind) -> Floats:
    """Whole numbers are small, so that many are equal and all arithmetic on them is exact."""
    generator = np.random.default_rng(seed)
    numbers = generator.integers(-2, 3, shape) if whole else generator.normal(size=shape) * 3
    return numbers.astype(kind)


def draw_doubles(seed: int, shape: tuple[int, int], whole: bool = False) -> Doubles:
    return draw_points(seed, shape, whole, DOUBLE).astype(np.float64)


# Selection


def select(rows: npt.NDArray[np.floating[Any]], trim: int) -> npt.NDArray[np.floating[Any]]:
    """Runs a network as it is written down; what a comparator does not keep is NaN."""
    current = rows.copy()
    for step in selection(len(rows), trim):
        low, high = current[step.low].copy(), current[step.high].copy()
        current[step.low] = np.minimum(low, high) if step.keeps_low else np.nan
        current[step.high] = np.maximum(low, high) if step.keeps_high else np.nan
    return np.asarray(current[trim : len(rows) - trim])


def trims(rows: int) -> range:
    return range((rows - 1) // 2 + 1)


@pytest.mark.parametrize("rows", range(1, 13))
def test_a_network_selects_from_all_zeros_and_ones(rows: int) -> None:
    """The 0/1 principle: a network that is right for these is right for all numbers."""
    inputs = np.array(list(product([0.0, 1.0], repeat=rows))).T
    ordered = np.sort(inputs, axis=0)
    for trim in trims(rows):
        assert np.array_equal(np.sort(select(inputs, trim), axis=0), ordered[trim : rows - trim])


@pytest.mark.parametrize("rows", range(13, 42))
def test_a_network_selects_from_many_rows(rows: int) -> None:
    """Zeros and ones around each rank, and permutations."""
    generator = np.random.default_rng(rows)
    permutations = generator.permuted(np.tile(np.arange(float(rows)), (300, 1)), axis=1).T
    thresholds = generator.integers(0, rows + 1, 300)
    inputs = np.concatenate([permutations, (permutations >= thresholds).astype(float)], axis=1)
    ordered = np.sort(inputs, axis=0)
    for trim in trims(rows):
        assert np.array_equal(np.sort(select(inputs, trim), axis=0), ordered[trim : rows - trim])


def test_a_selection_is_never_longer_than_a_sort() -> None:
    for rows in range(1, 42):
        sort = len(columns._odd_even_merge_sort(rows))
        assert all(len(selection(rows, trim)) <= sort for trim in trims(rows))
        assert selection(rows, 0) == ()


@pytest.mark.parametrize("power", range(1, 7))
def test_the_sort_is_as_long_as_batchers(power: int) -> None:
    wanted = (power * power - power + 4) * 2 ** (power - 2) - 1
    assert len(columns._odd_even_merge_sort(1 << power)) == wanted


@given(
    seed=seeds,
    kind=kinds,
    whole=st.booleans(),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    data=st.data(),
)
def test_trimmed_means_are_those_of_sorted_columns(
    seed: int, kind: Kind, whole: bool, widths: list[int], data: st.DataObject
) -> None:
    """One `Columns` for blocks of several widths; the same array may be several of the rows."""
    taken = Columns()
    for width in widths:
        arrays = list(draw_points(seed, (data.draw(st.integers(1, 9)), width), whole, kind))
        places = data.draw(st.lists(st.integers(0, len(arrays) - 1), min_size=1, max_size=15))
        trim = data.draw(st.sampled_from(trims(len(places))))
        rows = [arrays[place] for place in places]
        before = [array.copy() for array in arrays]
        result = np.full(width, np.nan, kind)
        taken.trimmed_mean(rows, trim, result)
        ordered = np.sort(np.array(rows, np.float64), axis=0)
        wanted = ordered[trim : len(rows) - trim].mean(axis=0)
        np.testing.assert_allclose(result, wanted, rtol=0, atol=20 * ROUNDING[kind])
        assert all(np.array_equal(*pair) for pair in zip(arrays, before, strict=True))


def test_one_columns_serves_both_number_types() -> None:
    taken = Columns()
    for kind in (SINGLE, DOUBLE, SINGLE):
        rows = list(draw_points(1, (5, 7), False, kind))
        result = np.empty(7, kind)
        taken.trimmed_mean(rows, 2, result)
        assert np.array_equal(result, np.median(np.array(rows), axis=0))


def test_infinite_numbers_are_selected_like_others() -> None:
    rows = [np.array([number], np.float32) for number in (np.inf, 1, -np.inf, 2, 3)]
    result = np.empty(1, np.float32)
    Columns().trimmed_mean(rows, 1, result)
    assert result[0] == 2


# Distances


@given(
    seed=seeds,
    kind=kinds,
    whole=st.booleans(),
    models=st.integers(1, 9),
    size=st.integers(1, 60),
    width=st.integers(1, 60),
)
def test_distances_are_those_between_the_vectors(
    seed: int, kind: Kind, whole: bool, models: int, size: int, width: int
) -> None:
    points = draw_points(seed, (models, size), whole, kind)
    found = distances_of(points, width)
    wanted = naive.squared_distances(points.astype(np.float64))
    assert not np.diag(found).any()
    if whole:
        assert np.array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=4 * ROUNDING[kind] * float(wanted.max() + 1))


def test_distances_are_symmetric_to_the_last_bit() -> None:
    for seed in range(20):
        for size in (5, 300):
            found = distances_of(draw_doubles(seed, (6, size)), 4)
            assert np.array_equal(found, found.T)


@given(seed=seeds, kind=kinds, offset=st.sampled_from([1.0, 100.0]))
def test_distances_of_models_far_from_nought_are_exact_enough(seed: int, kind: Kind, offset: float) -> None:
    """The models of one training are near each other; where they are does not matter."""
    points = (draw_doubles(seed, (5, 300)) + offset * 1000).astype(kind)
    wanted = naive.squared_distances(points.astype(np.float64))
    np.testing.assert_allclose(distances_of(points), wanted, rtol=10 * ROUNDING[kind])


def test_a_copy_of_a_model_is_at_no_distance() -> None:
    points = draw_points(3, (7, 1000), False, SINGLE)
    points[4] = points[2]
    points[5] = points[0]
    found = distances_of(points, 256)
    assert found[2, 4] == pytest.approx(0, abs=1e-2)  # of about 18 000
    assert found[0, 5] == 0


@given(
    seed=seeds, models=st.integers(3, 9), size=st.integers(1, 40), width=st.integers(1, 40), data=st.data()
)
def test_what_no_number_can_hold_is_out_of_reach(
    seed: int, models: int, size: int, width: int, data: st.DataObject
) -> None:
    points = draw_points(seed, (models, size), False, SINGLE)
    far = data.draw(st.lists(st.integers(1, models - 1), min_size=1, max_size=models - 2, unique=True))
    generator = np.random.default_rng(seed)
    for liar in far:
        power = data.draw(st.floats(20, 38.4))
        points[liar] = np.clip(10**power * generator.choice([-1, 1], size), -LARGEST, LARGEST)
    found = distances_of(points, width)
    near = [model for model in range(models) if model not in far]
    wanted = naive.squared_distances(points[near].astype(np.float64))
    assert not np.isnan(found).any()
    assert not np.diag(found).any()
    assert all(found[liar, model] == np.inf for liar in far for model in range(models) if model != liar)
    np.testing.assert_allclose(found[np.ix_(near, near)], wanted, rtol=0, atol=1e-5 * float(wanted.max() + 1))


# Neighbours


@given(seed=seeds, whole=st.booleans(), models=st.integers(1, 10), size=st.integers(1, 5), data=st.data())
def test_neighbours_are_the_nearest_and_of_equal_ones_the_first(
    seed: int, whole: bool, models: int, size: int, data: st.DataObject
) -> None:
    points = draw_doubles(seed, (models, size), whole)
    byzantine = data.draw(st.integers(0, (models - 1) // 2))
    squared = naive.squared_distances(points)
    mixing = geometry.nearest_neighbours(squared, byzantine)
    for model in range(models):
        chosen = naive.nearest(squared, model, byzantine)
        wanted = np.zeros(models)
        wanted[chosen] = 1 / (models - byzantine)
        assert np.array_equal(mixing[model], wanted)


def test_a_model_is_its_own_neighbour_before_its_copies() -> None:
    mixing = geometry.nearest_neighbours(np.zeros((5, 5)), 2)
    assert mixing[4].tolist() == [1 / 3, 1 / 3, 0, 0, 1 / 3]


@given(
    seed=seeds, whole=st.booleans(), models=st.integers(1, 9), size=st.integers(1, 6), mixed=st.integers(1, 9)
)
def test_distances_between_mixtures_are_those_between_their_vectors(
    seed: int, whole: bool, models: int, size: int, mixed: int
) -> None:
    points = draw_doubles(seed, (models, size), whole)
    generator = np.random.default_rng(seed)
    mixing = generator.random((mixed, models)) * generator.integers(0, 2, (mixed, models))
    mixing[:, 0] += 0.1
    mixing /= mixing.sum(axis=1, keepdims=True)
    squared = naive.squared_distances(points)
    found = geometry.mixed_distances(squared, mixing)
    wanted = naive.squared_distances(mixing @ points)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * float(squared.max() + 1))


@given(seed=seeds, models=st.integers(5, 9), data=st.data())
def test_mixtures_without_far_models_are_in_reach_of_each_other(
    seed: int, models: int, data: st.DataObject
) -> None:
    byzantine = data.draw(st.integers(1, (models - 1) // 2))
    far = data.draw(st.permutations(range(models)))[:byzantine]
    near = sorted(set(range(models)) - set(far))
    points = draw_doubles(seed, (models, 4))
    squared = naive.squared_distances(points)
    squared[far, :] = squared[:, far] = np.inf
    np.fill_diagonal(squared, 0)
    mixing = geometry.nearest_neighbours(squared, byzantine)
    assert not mixing[np.ix_(near, far)].any()
    found = geometry.mixed_distances(squared, mixing)
    assert not np.isnan(found).any()
    wanted = naive.squared_distances(mixing[near] @ points)
    np.testing.assert_allclose(found[np.ix_(near, near)], wanted, rtol=0, atol=1e-10)
    for liar in far:
        assert (found[liar, near] == np.inf).all()


# Every rule


@settings(max_examples=300)
@given(
    seed=seeds,
    rule=st.sampled_from(EVERY),
    kind=kinds,
    whole=st.booleans(),
    byzantine=st.integers(0, 3),
    more=st.integers(0, 4),
    size=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_every_rule_is_its_definition(
    seed: int, rule: Rule, kind: Kind, whole: bool, byzantine: int, more: int, size: int, width: int
) -> None:
    models = rule.least_votes(byzantine) + more
    points = draw_points(seed, (models, size), whole, kind)
    exact = points.astype(np.float64)
    if rule.mixes and not whole:
        assume(naive.mixing_is_clear(exact, byzantine, 1e-5))
    weights = np.random.default_rng(seed + 1).random(models) + 0.1
    shares = weights / weights.sum()
    result = apply(rule, points, byzantine, shares, width=width)
    tolerance = np.asarray(10 * ROUNDING[kind])
    assert not naive.why_wrong(str(rule), result, exact, byzantine, shares, 0, tolerance)


@pytest.mark.parametrize("additions", [0, 1000])
@given(seed=seeds, kind=kinds, models=st.integers(1, 8), size=st.integers(1, 20), data=st.data())
def test_both_ways_of_mixing_give_the_weighted_means(
    additions: int, seed: int, kind: Kind, models: int, size: int, data: st.DataObject
) -> None:
    """By additions and by a product of matrices; rows of weights that are equal are one."""
    points = draw_points(seed, (models, size), False, kind)
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 2, (data.draw(st.integers(1, 4)), models)).astype(np.float64)
    rows[:, data.draw(st.integers(0, models - 1))] = 1
    if data.draw(st.booleans()):
        rows *= generator.random(rows.shape) + 0.1
    rows /= rows.sum(axis=1, keepdims=True)
    weights = rows[data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))]
    trim = data.draw(st.sampled_from(trims(len(weights))))
    wanted = naive.trimmed_mean(weights @ points.astype(np.float64), trim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MAX_ADDITIONS", additions)
        result = cook(Recipe(weights, trim), list(points), data.draw(st.integers(1, 20)))
    np.testing.assert_allclose(result, wanted, rtol=0, atol=20 * ROUNDING[kind])


def test_a_block_has_as_many_columns_as_fit() -> None:
    assert columns_of(8, 4) == blocks.BLOCK_BYTES // 32
    assert columns_of(10**9, 8) == blocks.MIN_COLUMNS


def test_of_equal_scores_krum_takes_the_first() -> None:
    square = np.array([[0, 0], [0, 2], [2, 0], [2, 2], [1, 1]], np.float32)
    assert geometry.krum_scores(distances_of(square), 1).tolist() == [6, 6, 6, 6, 4]
    assert apply(Rule("krum"), square, 1).tolist() == [1, 1]
    assert apply(Rule("krum"), np.roll(square[:4], 2, axis=0), 0).tolist() == [2, 0]
    assert apply(Rule("multi_krum"), np.array([[0.0], [1], [2], [3], [4], [5]]), 1).tolist() == [2]


@given(seed=seeds, byzantine=st.integers(0, 3), more=st.integers(0, 3), size=st.integers(1, 4))
def test_krum_on_whole_numbers_is_exactly_the_first_best(
    seed: int, byzantine: int, more: int, size: int
) -> None:
    points = draw_points(seed, (2 * byzantine + 3 + more, size), True, SINGLE)
    found = apply(Rule("krum"), points, byzantine)
    assert np.array_equal(found, naive.krum(points.astype(np.float64), byzantine))


def test_of_two_models_the_geometric_median_is_the_first() -> None:
    assert apply(Rule("geometric_median"), np.array([[3.0, 1], [7, 7]]), 0).tolist() == [3, 1]


def test_of_a_majority_in_one_place_the_geometric_median_is_there() -> None:
    points = np.array([[9.0, -5], [1, 2], [1, 2], [1, 2], [-1e9, 1e9]])
    assert apply(Rule("geometric_median"), points, 2).tolist() == [1, 2]


def test_a_point_in_the_middle_is_the_geometric_median() -> None:
    cross = np.array([[1.0, 0], [-1, 0], [0, 0], [0, 1], [0, -1]], np.float32)
    assert apply(Rule("geometric_median"), cross, 2).tolist() == [0, 0]


def test_nobody_pulls_a_model_that_a_majority_shares() -> None:
    points = np.array([[1.0], [1], [1], [50], [-70]])
    assert apply(Rule("centered_clipping"), points, 2).tolist() == [1]


def test_a_single_model_is_every_rules_result() -> None:
    alone = np.array([[3.0, -4, 5]], np.float32)
    for rule in EVERY:
        if rule.least_votes(0) == 1:
            assert apply(rule, alone, 0).tolist() == [3, -4, 5]


# Liars


def honest_and_liars(
    seed: int, models: int, size: int, powers: Sequence[float]
) -> tuple[Floats, list[int], list[int]]:
    """Honest models of spread about 1, and for each power of ten a liar so far; the first is honest."""
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(models, size))
    liars = sorted((generator.permutation(models - 1)[: len(powers)] + 1).tolist())
    together = generator.normal(size=size)
    for liar, power in zip(liars, powers, strict=True):
        direction = together if generator.random() < 0.5 else generator.normal(size=size)
        points[liar] = np.clip(10**power * direction, -LARGEST, LARGEST)
    honest = [model for model in range(models) if model not in liars]
    return points.astype(np.float32), honest, liars


def radius_of(points: Floats) -> float:
    exact = points.astype(np.float64)
    return float(np.linalg.norm(exact - exact.mean(axis=0), axis=1).max())


every_power = st.floats(0, 38.4)


@settings(max_examples=400)
@given(seed=seeds, rule=st.sampled_from(ROBUST_ONES), more=st.integers(0, 3), data=st.data())
def test_liars_stay_without_effect_beyond_the_honest_spread(
    seed: int, rule: Rule, more: int, data: st.DataObject
) -> None:
    """As few models as a rule needs, and liars from a step to as far as numbers go."""
    byzantine = data.draw(st.integers(1, 4))
    powers = data.draw(st.lists(every_power, min_size=byzantine, max_size=byzantine))
    models = rule.least_votes(byzantine) + more
    points, honest, _ = honest_and_liars(seed, models, data.draw(st.integers(1, 30)), powers)
    result = apply(rule, points, byzantine, width=data.draw(st.integers(1, 30)))
    centre = points[honest].astype(np.float64).mean(axis=0)
    assert np.linalg.norm(result - centre) <= 12 * radius_of(points[honest])
    if str(rule) in ("median", "trimmed_mean"):
        assert within_honest(result, points[honest])


def within_honest(result: Doubles, honest: Floats) -> bool:
    low, high = honest.min(axis=0) - 1e-6, honest.max(axis=0) + 1e-6
    return bool(((low <= result) & (result <= high)).all())


@settings(max_examples=200)
@given(
    seed=seeds,
    rule=st.sampled_from(ROBUST_ONES),
    kind=kinds,
    sign=st.sampled_from(["one", "both"]),
    size=st.integers(1, 30),
    data=st.data(),
)
def test_numbers_near_the_largest_leave_the_result_among_the_honest(
    seed: int, rule: Rule, kind: Kind, sign: str, size: int, data: st.DataObject
) -> None:
    """1e30 to the largest of the type: squares and sums of them overflow, and nothing warns or is NaN."""
    byzantine = data.draw(st.integers(1, 4))
    models = rule.least_votes(byzantine) + data.draw(st.integers(0, 3))
    points, honest, liars = honest_and_liars(seed, models, size, [0.0] * byzantine)
    points = points.astype(kind)
    generator = np.random.default_rng(seed)
    largest = float(np.finfo(kind).max)
    for liar in liars:
        far = min(10.0 ** data.draw(st.floats(30, 38.5)) * np.sqrt(largest / LARGEST), largest)
        far = data.draw(st.sampled_from([far, largest]))
        points[liar] = far * (generator.choice([-1, 1], size) if sign == "both" else 1)
    result = apply(rule, points, byzantine, width=data.draw(st.integers(1, 30)))
    assert np.isfinite(result).all()
    assert within_honest(result, points[honest])


@pytest.mark.parametrize("rule", ROBUST_ONES, ids=str)
def test_honest_models_near_the_largest_number_do_not_warn(rule: Rule) -> None:
    """Sums of them overflow; what comes out may be infinite but is a number."""
    points = np.full((7, 5), LARGEST, np.float32)
    points[::2] *= np.float32(-1)
    assert not np.isnan(apply(rule, points, 1)).any()


@pytest.mark.parametrize("rule", AVERAGES, ids=str)
@pytest.mark.parametrize("byzantine", [1, 2])
def test_one_liar_takes_an_average_wherever_it_wants(rule: Rule, byzantine: int) -> None:
    """Mixed or not, which is why these do not count as withstanding liars."""
    points, honest, _ = honest_and_liars(5, 2 * byzantine + 3, 20, [9.0] * byzantine)
    result = apply(rule, points, byzantine)
    assert np.linalg.norm(result) > 1e6 * radius_of(points[honest])


@pytest.mark.parametrize("rule", ROBUST_ONES, ids=str)
def test_more_liars_than_a_rule_withstands_take_it_with_them(rule: Rule) -> None:
    """The breakdown points are no larger than they say: half of the models in one place win."""
    points = np.random.default_rng(4).normal(size=(8, 20)).astype(np.float32)
    points[3:] = 1e9
    assert np.linalg.norm(apply(rule, points, 2)) > 1e6


@pytest.mark.parametrize("far", [1e17, 1e18])
def test_the_geometric_median_is_bounded_where_far_liars_are_in_reach(far: float) -> None:
    generator = np.random.default_rng(0)
    points = generator.normal(size=(9, 50))
    points[5:] = far * np.sign(generator.normal(size=50))
    result = apply(Rule("geometric_median"), points.astype(np.float32), 4)
    assert np.linalg.norm(result) < 12 * radius_of(points[:5])


@given(seed=seeds, kind=kinds, byzantine=st.integers(0, 3), far=st.integers(1, 3), more=st.integers(0, 3))
def test_what_is_out_of_reach_does_not_pull(
    seed: int, kind: Kind, byzantine: int, far: int, more: int
) -> None:
    """The points in reach are as if there were no others; for the radius, those others are liars."""
    near = 2 * byzantine + far + 1 + more
    points = draw_points(seed, (near, 6), False, kind)
    exact, shares = points.astype(np.float64), equal_shares(points)
    lost = np.full((far, 6), np.finfo(kind).max, kind)
    everything = np.concatenate([points, lost])
    for rule, liars in ((Rule("geometric_median"), byzantine + far), (Rule("centered_clipping"), byzantine)):
        result = apply(rule, everything, byzantine + far)
        tolerance = np.asarray(10 * ROUNDING[kind])
        assert not naive.why_wrong(rule.name, result, exact, liars, shares, 0, tolerance)


def test_a_centre_that_reaches_nobody_stays_where_it_is() -> None:
    squared = np.ones((4, 4))
    squared[2, :] = squared[:, 2] = np.inf
    np.fill_diagonal(squared, 0)
    assert geometry.centred_clipping(squared, 1, 2).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_a_rule_needs_to_know_of_liars_where_its_result_depends_on_them(rule: Rule) -> None:
    differs = False
    for seed in range(20):
        points = draw_points(seed, (7, 5), False, DOUBLE)
        differs |= not np.array_equal(apply(rule, points, 0), apply(rule, points, 2))
    assert rule.needs_byzantine == differs


def test_clipping_without_an_own_model_starts_from_an_honest_one() -> None:
    points = np.random.default_rng(2).normal(size=(5, 50)).astype(np.float32)
    points[3], points[4] = 1e7, 1e8
    result = apply(Rule("centered_clipping"), points, 2, centre=None)
    assert np.linalg.norm(result) < 12 * radius_of(points[:3])


# Rules as they are typed


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_a_rule_is_parsed_as_it_is_written(rule: Rule) -> None:
    assert parse_rule(str(rule)) == rule
    assert parse_rule(f"  {rule}\n") == rule


def test_rules_by_name() -> None:
    assert str(FEDAVG) == "fedavg"
    assert str(ROBUST) == "nnm+trimmed_mean"
    assert parse_rule("nnm+median") == Rule("median", mixes=True)
    assert not parse_rule("median").needs_distances
    assert parse_rule("nnm+median").needs_distances
    assert {str(rule) for rule in AVERAGES} == {"mean", "fedavg", "nnm+mean", "nnm+fedavg"}


@pytest.mark.parametrize(
    "text",
    ["", " ", "nnm", "nnm+", "+median", "nnm+nnm+median", "nnm + median", "Median", "med ian", "nnm-median"],
)
def test_what_is_no_rule_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--aggregate") as caught:
        parse_rule(text)
    said = str(caught.value)
    assert "trimmed_mean" in said
    assert "nnm+" in said
    assert "\n" not in said


def test_a_long_text_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_rule("x" * 10_000 + "\n")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", EVERY, ids=str)
@pytest.mark.parametrize("byzantine", [0, 1, 2, 5])
def test_one_model_fewer_than_needed_is_too_few(rule: Rule, byzantine: int) -> None:
    least = rule.least_votes(byzantine)
    rule.check(least, byzantine)
    with pytest.raises(TooFewModels) as caught:
        rule.check(least - 1, byzantine)
    said = str(caught.value)
    assert said.startswith(f"{rule} withstands {byzantine} liar")
    assert f"at least {least} models" in said
    assert f"there are {least - 1}" in said
    assert "--fan-out" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("mean", [1, 1, 1]),
        ("nnm+fedavg", [1, 3, 5]),
        ("median", [1, 3, 5]),
        ("nnm+trimmed_mean", [1, 3, 5]),
        ("geometric_median", [1, 3, 5]),
        ("centered_clipping", [1, 3, 5]),
        ("krum", [3, 5, 7]),
        ("nnm+multi_krum", [3, 5, 7]),
    ],
)
def test_the_fewest_models_are_those_of_the_papers(text: str, least: list[int]) -> None:
    assert [parse_rule(text).least_votes(byzantine) for byzantine in range(3)] == least


@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_a_recipe_for_too_few_models_is_refused(rule: Rule) -> None:
    count = rule.least_votes(3) - 1
    with pytest.raises(TooFewModels):
        rule.recipe(Votes(np.full(count, 1 / max(count, 1)), 3, 0, np.zeros((count, count))))
