"""Curves through measured points: a robust fit of a learning curve, and values carried to a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

MIN_POINTS = 6
"""Four parameters and something left to tell them by."""
MAX_POINTS = 400
"""More points than this no longer move the curve; a guess that bounds the time of a fit."""
LEAST_SPREAD = 0.002
"""Noise that any measured accuracy has: one example of the 500 on which it is measured."""
_EXPONENTS = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0])
_TIME_SCALES = np.geomspace(0.003, 3.0, 80)
"""Candidates for τ as shares of the curve's length."""
_HUBER = 1.345
"""Residuals beyond this many standard deviations count linearly (Huber 1964: 95 % efficiency)."""
_ROUNDS = 5
"""Reweightings; the weights settle in three or four."""


@dataclass(frozen=True)
class LearningCurve:
    """`limit - gain · (1 + (t - start) / scale) ** -exponent`, t in the unit of the times given."""

    limit: float
    gain: float
    start: float
    scale: float
    exponent: float

    def __call__(self, times: Numbers) -> Numbers:
        """The curve at `times`, of any shape, none before `start`."""
        return self.limit - self.gain * (1.0 + (times - self.start) / self.scale) ** -self.exponent


def fit_learning_curve(times: Numbers, values: Numbers) -> LearningCurve | None:
    """The curve that fits the points (both of shape (points,), times ascending) best, or None.

    The family is pow4 of Domhan, Springenberg & Hutter (IJCAI 2015), a power law towards a limit.
    For each candidate of the two shape parameters the other two follow by weighted least squares;
    Huber's weights (iteratively reweighted) keep a few dips from pulling the curve down. None for
    fewer than `MIN_POINTS` points or points of one moment.
    """
    if len(times) < MIN_POINTS or times[-1] <= times[0]:
        return None
    kept = np.unique(np.linspace(0, len(times) - 1, min(len(times), MAX_POINTS)).astype(int))
    elapsed, target = times[kept] - times[0], values[kept]
    scales, exponents = (
        grid.ravel() for grid in np.meshgrid(_TIME_SCALES * elapsed[-1], _EXPONENTS, indexing="ij")
    )
    basis = (1.0 + elapsed[None, :] / scales[:, None]) ** -exponents[:, None]
    weights = np.ones_like(target)
    for _ in range(_ROUNDS):
        limits, gains, residuals = _solve(basis, target, weights)
        best = int(np.argmin((residuals**2) @ weights))
        size = np.abs(residuals[best])
        spread = max(1.4826 * float(np.median(size)), LEAST_SPREAD)
        weights = 1.0 / np.maximum(1.0, size / (_HUBER * spread))
    return LearningCurve(
        float(limits[best]), float(gains[best]), float(times[0]), float(scales[best]), float(exponents[best])
    )


def _solve(basis: Numbers, target: Numbers, weights: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Weighted least squares of `target` on (1, -basis) for each row of `basis` (candidates, points).

    Returns limits and gains (candidates,) and residuals (candidates, points).
    """
    share = weights / weights.sum()
    middle, height = basis @ share, float(target @ share)
    centred = basis - middle[:, None]
    gains = -(centred @ (share * (target - height))) / np.maximum((centred**2) @ share, 1e-300)
    limits = height + gains * middle
    return limits, gains, target - (limits[:, None] - gains[:, None] * basis)


def carry_forward(times: Numbers, values: Numbers, grid: Numbers) -> Numbers:
    """The last value at or before each moment of `grid` (ascending); NaN before the first."""
    at = np.searchsorted(times, grid, side="right") - 1
    return np.where(at >= 0, values[np.maximum(at, 0)], np.nan)
