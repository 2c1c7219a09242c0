"""The rules straight from their definitions: all models beside each other, (n, d), in double precision.

Nothing here is quick, and nothing is shared with the code under test: distances are those between whole
vectors, neighbours are found by sorting, and the geometric median walks through the full space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

CLIPPING_STEPS = 3
WEISZFELD_STEPS = 20_000
SETTLED = 1e-15
"""Relative step at which the geometric median has been reached."""


def squared_distances(points: Points) -> Points:
    """Shape (n, n), each from the difference of two vectors."""
    count = len(points)
    squared = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            difference = points[i] - points[j]
            squared[i, j] = float((difference * difference).sum())
    return squared


def trimmed_mean(points: Points, byzantine: int) -> Points:
    ordered = np.sort(points, axis=0)
    return np.asarray(ordered[byzantine : len(points) - byzantine].mean(axis=0))


def nearest(squared: Points, point: int, byzantine: int) -> list[int]:
    """The n - f nearest to a point: itself, then by distance, of equal ones the first."""
    others = [other for other in range(len(squared)) if other != point]
    others.sort(key=lambda other: (squared[point, other], other))
    return sorted([point, *others[: len(squared) - byzantine - 1]])


def mix(points: Points, byzantine: int) -> Points:
    """Nearest-neighbour mixing; equal neighbourhoods give equal vectors to the last bit."""
    squared = squared_distances(points)
    rows = [points[nearest(squared, point, byzantine)].mean(axis=0) for point in range(len(points))]
    return np.array(rows)


def mixing_is_clear(points: Points, byzantine: int, gap: float) -> bool:
    """Whether rounding of a relative `gap` changes nobody's neighbours."""
    if byzantine == 0:
        return True
    squared = squared_distances(points)
    for point in range(len(points)):
        others = sorted(squared[point, other] for other in range(len(points)) if other != point)
        kept, left_out = others[: len(points) - byzantine - 1], others[len(points) - byzantine - 1 :]
        if kept and left_out[0] - kept[-1] <= gap * left_out[0]:
            return False
    return True


def krum_scores(points: Points, byzantine: int) -> list[float]:
    squared = squared_distances(points)
    scores = []
    for point in range(len(points)):
        others = sorted(squared[point, other] for other in range(len(points)) if other != point)
        scores.append(float(sum(others[: len(points) - byzantine - 2])))
    return scores


def choices(scores: Sequence[float], count: int, slack: float) -> Iterator[tuple[int, ...]]:
    """Every choice of `count` lowest scores when those within a relative `slack` count as equal."""
    last = sorted(scores)[count - 1]
    room = slack * max(abs(last), max(scores) * slack)
    sure = [i for i, score in enumerate(scores) if score < last - room]
    level = [i for i, score in enumerate(scores) if abs(score - last) <= room]
    for some in combinations(level, count - len(sure)):
        yield (*sure, *some)


def krum(points: Points, byzantine: int) -> Points:
    scores = krum_scores(points, byzantine)
    return np.asarray(points[scores.index(min(scores))])


def multi_krum(points: Points, byzantine: int) -> Points:
    scores = krum_scores(points, byzantine)
    order = sorted(range(len(points)), key=lambda point: (scores[point], point))
    return np.asarray(points[order[: len(points) - byzantine]].mean(axis=0))


def sum_of_distances(points: Points, where: Points) -> float:
    return float(np.linalg.norm(points - where, axis=1).sum())


def geometric_median(points: Points) -> Points:
    """Weiszfeld's iteration from the mean; first, whether one of the points is the best."""
    for point in points:
        away = np.linalg.norm(points - point, axis=1)
        others = away > 0
        directions = (points[others] - point) / away[others, None]
        if np.linalg.norm(directions.sum(axis=0)) <= (~others).sum() + 1e-12:
            return np.asarray(point)
    where = points.mean(axis=0)
    scale = float(np.abs(points - where).max())
    for _ in range(WEISZFELD_STEPS):
        away = np.linalg.norm(points - where, axis=1)
        if not away.all():
            away = np.maximum(away, 1e-9 * scale)
        following = (points / away[:, None]).sum(axis=0) / (1 / away).sum()
        step = float(np.abs(following - where).max())
        where = following
        if step <= SETTLED * scale:
            break
    return np.asarray(where)


def clipping_centre(points: Points, byzantine: int) -> int:
    """Without an own model: the one whose n - f nearest lie closest around it."""
    around = [np.sort(row)[len(points) - byzantine - 1] for row in squared_distances(points)]
    return int(np.argmin(around))


def centered_clipping(points: Points, byzantine: int, centre: int | None) -> Points:
    place = clipping_centre(points, byzantine) if centre is None else centre
    where = points[place].copy()
    radius = np.sort(np.linalg.norm(points - where, axis=1))[len(points) - byzantine - 1]
    for _ in range(CLIPPING_STEPS):
        pull = np.zeros_like(where)
        for point in points:
            away = float(np.linalg.norm(point - where))
            if away > 0:
                pull += (point - where) * min(1.0, radius / away)
        where = where + pull / len(points)
    return np.asarray(where)


def apply(rule: str, points: Points, byzantine: int, shares: Points, centre: int | None) -> Points:
    """The result of a rule as it is typed; shape (d,)."""
    if rule.startswith("nnm+"):
        mixed = mix(points, byzantine)
        return apply(rule.removeprefix("nnm+"), mixed, byzantine, shares, centre)
    match rule:
        case "mean":
            return np.asarray(points.mean(axis=0))
        case "fedavg":
            return np.asarray((points * shares[:, None]).sum(axis=0))
        case "median":
            return np.asarray(np.median(points, axis=0))
        case "trimmed_mean":
            return trimmed_mean(points, byzantine)
        case "krum":
            return krum(points, byzantine)
        case "multi_krum":
            return multi_krum(points, byzantine)
        case "geometric_median":
            return geometric_median(points)
        case "centered_clipping":
            return centered_clipping(points, byzantine, centre)
    raise AssertionError(rule)


def why_wrong(
    rule: str,
    result: Points,
    points: Points,
    byzantine: int,
    shares: Points,
    centre: int | None,
    tolerance: Points,
) -> str:
    """Empty when a result is right to within `tolerance`, (d,) or a number.

    Where rounding may decide between equally good choices, any of those is right: each is judged by what
    the rule minimises.
    """
    name = rule.removeprefix("nnm+")
    wanted = apply(rule, points, byzantine, shares, centre)
    if _near(result, wanted, tolerance):
        return ""
    seen = mix(points, byzantine) if name != rule else points
    if name in ("krum", "multi_krum"):
        count = 1 if name == "krum" else len(points) - byzantine
        for chosen in choices(krum_scores(seen, byzantine), count, 1e-6):
            if _near(result, seen[list(chosen)].mean(axis=0), tolerance):
                return ""
    if name == "geometric_median":
        least, found = sum_of_distances(seen, wanted), sum_of_distances(seen, result)
        room = 0.0
        if np.linalg.matrix_rank(seen - seen[0], tol=1e-9) <= 1:  # on a line all between two points is best
            room = len(seen) * float(np.linalg.norm(np.broadcast_to(tolerance, result.shape)))
        if found <= least * (1 + 1e-9) + room:
            return ""
        return f"{rule}: sum of distances {found}, the least is {least}"
    worst = float(np.abs(result - wanted).max())
    return f"{rule}: off by {worst}, allowed is {float(np.max(tolerance))}"


def _near(result: Points, wanted: Points, tolerance: Points) -> bool:
    return bool((np.abs(result - wanted) <= tolerance).all())
