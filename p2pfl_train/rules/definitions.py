"""The rules, each with its definition, its breakdown point and its paper.

n models vote, f of them may be anything; the own one is among the n and honest. A rule looks at the
votes' distances, or at none, and says what is to be done with each coordinate: a `Recipe`.

The breakdown point is the largest number of liars under which the result stays bounded, however far
they go. It is a floor, no promise that the result is good: how good is bounded by the spread of the
honest models (Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
Heterogeneity", AISTATS 2023, arXiv:2302.01772), and nearest-neighbour mixing in front of a rule makes
that bound the best possible in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pfl_train.rules import geometry

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Votes:
    """What a rule is told of n models."""

    shares: Matrix
    """By claimed samples, shape (n,), sum 1."""
    byzantine: int
    """f: how many may lie."""
    centre: int | None
    """The own model's place; None where it has no vote, as that of a peer without data."""
    distances: Matrix | None = None
    """Squared, shape (n, n); None for a rule that needs none."""

    @property
    def count(self) -> int:
        return len(self.shares)

    @property
    def known_distances(self) -> Matrix:
        assert self.distances is not None
        return self.distances


@dataclass(frozen=True)
class Recipe:
    """What to do with each column of n numbers: mix them by `weights`, then take the trimmed mean."""

    weights: Matrix | None
    """Shape (m, n), rows sum to 1; None leaves the votes as they are."""
    trim: int | None = None
    """How many to leave out at each end of the m mixed numbers; None: m is 1, and nothing remains to do."""


@dataclass(frozen=True)
class Definition:
    """One rule."""

    recipe: Callable[[Votes], Recipe]
    needs_distances: bool
    least_votes: Callable[[int], int]
    """The fewest votes with which it withstands so many liars."""
    uses_byzantine: bool
    """Whether its result depends on f."""


def mean(votes: Votes) -> Recipe:
    """The mean of all models, one vote each.

    Breakdown point 0: one liar takes the result wherever it wants (Blanchard et al., NeurIPS 2017,
    lemma 1).
    """
    return _weighted(np.full(votes.count, 1 / votes.count))


def fedavg(votes: Votes) -> Recipe:
    """The mean weighted by samples: federated averaging, over those that were asked.

    Breakdown point 0, and a liar chooses its weight besides, up to a bound. McMahan et al.,
    "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1.
    """
    return _weighted(votes.shares)


def median(votes: Votes) -> Recipe:
    """The median of each coordinate; of an even number the mean of the two in the middle.

    Breakdown point ⌈n/2⌉ - 1. Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates", ICML 2018, definition 1.
    """
    return Recipe(None, trim=(votes.count - 1) // 2)


def trimmed_mean(votes: Votes) -> Recipe:
    """For each coordinate the mean without the f largest and the f smallest numbers.

    Breakdown point f < n/2. Yin et al., ICML 2018, definition 2, with β = f/n.
    """
    return Recipe(None, trim=votes.byzantine)


def krum(votes: Votes) -> Recipe:
    """The model with the least sum of squared distances to its n - f - 2 nearest others.

    Breakdown point f with 2f + 2 < n. Blanchard et al., "Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent", NeurIPS 2017, section 4. Of equal scores the first counts, which is the
    own model's if it is among them.
    """
    return _weighted(geometry.best(geometry.krum_scores(votes.known_distances, votes.byzantine), 1))


def multi_krum(votes: Votes) -> Recipe:
    """The mean of the n - f models with the least scores of `krum`.

    Breakdown point f with 2f + 2 < n. Blanchard et al., NeurIPS 2017, section 4: multi-Krum, with m = n - f.
    """
    scores = geometry.krum_scores(votes.known_distances, votes.byzantine)
    return _weighted(geometry.best(scores, votes.count - votes.byzantine))


def geometric_median(votes: Votes) -> Recipe:
    """The point with the least sum of distances to all models.

    Breakdown point ⌈n/2⌉ - 1. Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated
    Learning", IEEE Transactions on Signal Processing 2022; here without their smoothing, to the end.
    """
    return _weighted(geometry.geometric_median(votes.known_distances))


def centered_clipping(votes: Votes) -> Recipe:
    """Steps from the own model to the mean of all, in which no model pulls farther than a radius τ.

    Breakdown point f < n/2 for a bounded result; the error bound is proved for f ≤ n/10. Karimireddy,
    He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, algorithm 2, with
    the own model as the centre and τ from the distances to it, as in He, Karimireddy, Jaggi,
    "Byzantine-Robust Decentralized Learning via ClippedGossip", 2022. Without an own vote the centre is
    the model whose n - f nearest lie closest around it.
    """
    centre = votes.centre
    if centre is None:
        centre = geometry.most_central(votes.known_distances, votes.byzantine)
    return _weighted(geometry.centred_clipping(votes.known_distances, votes.byzantine, centre))


def _weighted(weights: Matrix) -> Recipe:
    return Recipe(weights[None, :])


def _majority(byzantine: int) -> int:
    return 2 * byzantine + 1


def _krum_least(byzantine: int) -> int:
    return 2 * byzantine + 3


def _any(byzantine: int) -> int:
    return 1


RULES: dict[str, Definition] = {
    "mean": Definition(mean, False, _any, False),
    "fedavg": Definition(fedavg, False, _any, False),
    "median": Definition(median, False, _majority, False),
    "trimmed_mean": Definition(trimmed_mean, False, _majority, True),
    "krum": Definition(krum, True, _krum_least, True),
    "multi_krum": Definition(multi_krum, True, _krum_least, True),
    "geometric_median": Definition(geometric_median, True, _majority, False),
    "centered_clipping": Definition(centered_clipping, True, _majority, True),
}
"""By the name that a person types."""
