"""Rules that look at models as points: all that they need is how far each is from each.

Every one of them ends in a weighted mean of the points, and the distances say with which weights. So
models of any size are read once for the distances and once for the mean, and what lies between is a
matrix as small as the number of models squared. Distances are squared, float64, of shape (n, n), zero on
the diagonal; `inf` is what no number could be squared for: such a point is out of everybody's reach.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

CLIPPING_STEPS = 3
"""Iterations of centred clipping. The paper proves its bound for one from a centre as good as the last
round's; the own model is a worse one, and each costs nothing here."""
MAX_WEISZFELD_STEPS = 1000
WEISZFELD_TOLERANCE = 1e-13
"""Change of the weights at which the iteration has settled."""
FAR = 1e6
"""In units of the honest ones' own distances. Beyond it squares in float64 leave these no digits."""
TIE = 1e-9
"""Relative; rounding must not decide between points that are equally good."""


def krum_scores(distances: Matrix, byzantine: int) -> Matrix:
    """For each point the sum of its squared distances to the n - f - 2 nearest others, shape (n,)."""
    count = len(distances)
    others = distances + np.diag(np.full(count, np.inf))
    return np.asarray(np.sort(others, axis=1)[:, : count - byzantine - 2].sum(axis=1))


def best(scores: Matrix, count: int) -> Matrix:
    """Equal weights on the `count` lowest scores, the first of equal ones; shape (n,)."""
    weights = np.zeros(len(scores))
    weights[np.argsort(scores, kind="stable")[:count]] = 1 / count
    return weights


def nearest_neighbours(distances: Matrix, byzantine: int) -> Matrix:
    """Row i: equal weights on the n - f points nearest to point i, itself among them; shape (n, n)."""
    count = len(distances)
    own_first = distances - np.eye(count)  # before another at the same place
    order = np.argsort(own_first, axis=1, kind="stable")[:, : count - byzantine]
    mixing = np.zeros_like(distances)
    np.put_along_axis(mixing, order, 1 / (count - byzantine), axis=1)
    return mixing


def mixed_distances(distances: Matrix, mixing: Matrix) -> Matrix:
    """Squared distances between the weighted means that the rows of `mixing` (m, n) make; shape (m, m).

    For coefficients c that sum to nothing, |Σ c_j x_j|² = -½ Σ Σ c_j c_k d_jk².
    """
    near = reachable(distances)
    finite = distances[np.ix_(near, near)]
    inside = mixing[:, near]
    crossed = inside @ finite @ inside.T
    own = np.diag(crossed)
    result = np.maximum(crossed - (own[:, None] + own[None, :]) / 2, 0.0)
    outside = mixing[:, ~near]
    differs = (outside[:, None, :] != outside[None, :, :]).any(axis=2)
    result[differs] = np.inf
    np.fill_diagonal(result, 0.0)
    return np.asarray(result)


def reachable(distances: Matrix) -> npt.NDArray[np.bool_]:
    """Which points are at finite distances from each other: those around the point that most can reach."""
    finite = np.isfinite(distances)
    return np.asarray(finite[int(finite.sum(axis=1).argmax())])


def geometric_median(distances: Matrix) -> Matrix:
    """Weights, shape (n,), of the point with the least sum of distances to all.

    Weiszfeld's iteration from the mean. A point that is itself the best is found before, by the
    condition of Vardi & Zhang, "The multivariate L1-median and associated data depth", PNAS 2000, since
    the iteration cannot leave such a point, nor reach it in finite time. Of several best points on a line
    it is the first of the given ones. What is `FAR` times farther away than a majority is wide has no
    weight: it would have next to none, and takes the precision from all else.
    """
    half = len(distances) // 2
    radii = np.sort(distances, axis=1)[:, half]  # the own zero is the first
    middle = int(radii.argmin())
    weights = np.zeros(len(distances))
    near = distances[middle] <= FAR**2 * radii[middle] if np.isfinite(radii[middle]) else reachable(distances)
    weights[near] = _median_of_near(distances[np.ix_(near, near)])
    return weights


def _median_of_near(squared: Matrix) -> Matrix:
    count = len(squared)
    for index in range(count):
        if _is_best(squared, index):
            return np.asarray(np.eye(count)[index])
    weights = np.full(count, 1 / count)
    for _ in range(MAX_WEISZFELD_STEPS):
        away = np.sqrt(distances_from(squared, weights))
        if not away.all():  # it has run into one of the points, from where it would not move
            break
        following = 1 / away
        following /= following.sum()
        settled = np.abs(following - weights).max() <= WEISZFELD_TOLERANCE
        weights = following
        if settled:
            break
    return weights


def _is_best(squared: Matrix, index: int) -> bool:
    """Whether the pulls of all other points on this one, each of strength 1, are outweighed by those here."""
    here = squared[index] == 0
    others = ~here
    away = np.sqrt(squared[index, others])
    to = squared[index, others]
    cosines = (to[:, None] + to[None, :] - squared[np.ix_(others, others)]) / 2
    pull = float((cosines / np.outer(away, away)).sum())
    return pull <= (int(here.sum()) * (1 + TIE)) ** 2


def distances_from(squared: Matrix, weights: Matrix) -> Matrix:
    """Squared distances of all points from their weighted mean; shape (n,). The weights sum to 1."""
    crossed = squared @ weights
    return np.asarray(np.maximum(crossed - weights @ crossed / 2, 0.0))


def most_central(distances: Matrix, byzantine: int) -> int:
    """The point whose n - f nearest, itself among them, lie closest around it.

    It is no farther from an honest one than the honest are from each other.
    """
    return int(np.sort(distances, axis=1)[:, len(distances) - byzantine - 1].argmin())


def centred_clipping(distances: Matrix, byzantine: int, centre: int) -> Matrix:
    """Weights, shape (n,), after steps from the point `centre` to the mean of all, no pull longer than τ.

    τ is the distance from the centre to the farthest of its n - f nearest points: as far as a
    majority of honest ones reaches. What is `FAR` times farther away counts as if it were not there.
    """
    count = len(distances)
    radius = float(np.sqrt(np.sort(distances[centre])[count - byzantine - 1]))
    complete = np.zeros(count)
    if radius == 0 or not np.isfinite(radius):  # nothing pulls, or nobody is in its reach
        complete[centre] = 1.0
        return complete
    near = distances[centre] <= (FAR * radius) ** 2
    squared = distances[np.ix_(near, near)]
    weights = np.zeros(len(squared))
    weights[int(near[:centre].sum())] = 1.0
    for _ in range(CLIPPING_STEPS):
        away = np.sqrt(distances_from(squared, weights))
        pulls = radius / np.maximum(away, radius) / len(squared)
        weights = (1 - pulls.sum()) * weights + pulls
    complete[near] = weights
    return complete
