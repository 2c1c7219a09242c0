"""The fit of a learning curve, and values carried to a grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl_train.plots.curves import MIN_POINTS, carry_forward, fit_learning_curve

TIMES = np.linspace(3.0, 600.0, 150)


@pytest.mark.parametrize("scale", [10.0, 60.0, 300.0])
@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_fit_finds_a_curve_of_its_family(scale: float, exponent: float) -> None:
    truth = 0.99 - 0.8 * (1 + (TIMES - 3.0) / scale) ** -exponent
    curve = fit_learning_curve(TIMES, truth)
    assert curve is not None
    assert np.abs(curve(TIMES) - truth).max() < 0.015
    assert np.median(np.abs(curve(TIMES) - truth)) < 0.002


def test_fit_comes_near_an_exponential_outside_its_family() -> None:
    truth = 0.98 - 0.88 * np.exp(-(TIMES - 3.0) / 60.0)
    curve = fit_learning_curve(TIMES, truth)
    assert curve is not None
    assert np.abs(curve(TIMES) - truth).max() < 0.02


def test_dips_do_not_pull_the_curve_down() -> None:
    rng = np.random.default_rng(1)
    truth = 0.98 - 0.8 * (1 + (TIMES - 3.0) / 40.0) ** -2
    measured = truth + rng.normal(0, 0.004, len(TIMES))
    measured[20::10] -= 0.4  # one in ten
    curve = fit_learning_curve(TIMES, measured)
    assert curve is not None
    late = TIMES > 100
    assert np.abs(curve(TIMES) - truth)[late].max() < 0.01


def test_too_few_points_or_one_moment_give_no_fit() -> None:
    few = np.arange(MIN_POINTS - 1, dtype=np.float64)
    assert fit_learning_curve(few, few / 10) is None
    assert fit_learning_curve(np.full(20, 5.0), np.linspace(0, 1, 20)) is None


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e7), st.floats(0, 1)),
        min_size=MIN_POINTS,
        max_size=30,
        unique_by=lambda p: p[0],
    )
)
def test_a_fit_is_finite_where_there_are_points(points: list[tuple[float, float]]) -> None:
    times, values = (np.array(column) for column in zip(*sorted(points), strict=True))
    curve = fit_learning_curve(times, values)
    assert curve is not None
    assert np.isfinite(curve(times)).all()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=10), st.lists(st.integers(-5, 25), max_size=10))
def test_carry_forward_is_the_last_value_so_far(moments: list[int], grid: list[int]) -> None:
    times = np.array(sorted(moments), dtype=np.float64)
    values = np.arange(len(times), dtype=np.float64)
    expected = [
        max((v for t, v in zip(times, values, strict=True) if t <= at), default=np.nan) for at in grid
    ]
    carried = carry_forward(times, values, np.array(grid, dtype=np.float64))
    np.testing.assert_array_equal(carried, np.array(expected, dtype=np.float64))
