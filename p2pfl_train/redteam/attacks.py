"""What liars publish. They know everything: all honest models of the round, the rule, and who asks whom.

An attack is a name, and a factor after a colon where it takes one: `alie:1.5`. Where the factor may be
searched for and none is given, the liars of each round try some and take the one that moves honest peers
farthest from the honest mean (as in Allouah et al., AISTATS 2023, and Shejwalkar & Houmansadr, "Manipulating
the Byzantine", NDSS 2021).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl_train.errors import UsageError

SEARCHED = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0)
"""Factors that are tried, in units of the honest models' spread: a robust rule lets through what is about
as far from the mean as the honest are, an average anything."""
OLD_ROUNDS = 10
"""Age of what a free-rider returns, unless it is given."""
MAX_OLD_ROUNDS = 1000
"""They are kept in memory."""
NOISE = 0.1
"""Standard deviation of Gaussian noise, unless it is given: about that of a layer's first weights."""


@dataclass(frozen=True)
class Crowd:
    """The honest models of a round, and what follows from them; all vectors of shape (parameters,)."""

    honest: Tensor
    """Shape (honest peers, parameters), as they are after local training."""
    mean: Tensor
    deviation: Tensor
    """Standard deviation of each coordinate."""
    progress: Tensor
    """From the mean of the round before to this one: what the honest have learned."""

    @classmethod
    def of(cls, honest: Tensor, before: Tensor) -> Crowd:
        """`before`: the mean of the round before, (parameters,)."""
        mean = honest.mean(dim=0)
        return cls(honest, mean, honest.std(dim=0, correction=0), mean - before)

    @property
    def spread(self) -> float:
        """Root mean square distance of an honest model from the mean."""
        return float(torch.linalg.vector_norm(self.deviation))


Direction = Callable[[Crowd], Tensor]
"""Where to push the mean: a vector that is as long as the honest models' spread, times a factor."""


def foe(crowd: Crowd) -> Tensor:
    """Against what was learned: mean - ε progress, in units of the spread.

    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation",
    UAI 2019, where peers send gradients, and the lie is -ε times the honest mean.
    """
    return _as_long_as_the_spread(crowd, crowd.progress)


def shrink(crowd: Crowd) -> Tensor:
    """Against the weights themselves: (1 - ε) mean, in units of the spread.

    Fall of empires with a model for a gradient. It works like a strong weight decay, in which the
    honest models' common direction is no help.
    """
    return _as_long_as_the_spread(crowd, crowd.mean)


def _as_long_as_the_spread(crowd: Crowd, direction: Tensor) -> Tensor:
    length = float(torch.linalg.vector_norm(direction))
    return direction * (-crowd.spread / length if length else 0.0)


def alie(crowd: Crowd) -> Tensor:
    """Against the deviation: mean - z deviation, a little in every coordinate.

    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning",
    NeurIPS 2019.
    """
    return -crowd.deviation


def sign_flip(crowd: Crowd, factor: float) -> Tensor:
    """The mean model with its sign turned, times the factor.

    Li et al., "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from
    Heterogeneous Datasets", AAAI 2019, where peers send models.
    """
    return crowd.mean * -factor


def dissensus(receiver: Tensor, honest: Sequence[Tensor], liars: int, factor: float) -> Tensor:
    """What `liars` say to one receiver that pulled the `honest` models: away from all of them.

    x - (ε / b) Σ (x_j - x): with ε = 1 and plain averaging it undoes the whole exchange. He, Karimireddy,
    Jaggi, "Byzantine-Robust Decentralized Learning via ClippedGossip", 2022, section 4.
    """
    pull = torch.zeros_like(receiver)
    for model in honest:
        pull += model
        pull -= receiver
    return torch.sub(receiver, pull, alpha=factor / liars)


@dataclass(frozen=True)
class Kind:
    """What is known of an attack before it runs."""

    factor: float | None = None
    """The default; None: searched, or there is none."""
    takes_factor: bool = True
    searches: Direction | None = None
    trains: bool = False
    """Whether liars learn like the others and publish what comes of it."""
    flips_labels: bool = False


KINDS: dict[str, Kind] = {
    # liars train and tell the truth
    "none": Kind(takes_factor=False, trains=True),
    # the honest mean with its sign turned
    "sign-flip": Kind(factor=1.0),
    # fall of empires: back from what the honest have learned
    "foe": Kind(searches=foe),
    # the honest mean, nearer to zero
    "shrink": Kind(searches=shrink),
    # a little is enough: some deviations off in every coordinate
    "alie": Kind(searches=alie),
    # trains honestly on labels c → C - 1 - c
    "label-flip": Kind(takes_factor=False, trains=True, flips_labels=True),
    # the honest mean with noise of this deviation
    "gaussian": Kind(factor=NOISE),
    # each receiver is pushed away from those that it pulled
    "dissensus": Kind(factor=1.0),
    # the honest mean of so many rounds ago
    "free-rider": Kind(factor=float(OLD_ROUNDS)),
    # another of them every round
    "changing": Kind(takes_factor=False),
}
CHANGING = ("sign-flip", "foe", "shrink", "alie", "gaussian", "dissensus", "free-rider")
"""What `changing` takes turns with, in random order."""


@dataclass(frozen=True)
class Attack:
    """An attack with its factor; None is searched for, where that is possible."""

    name: str
    factor: float | None = None

    def __str__(self) -> str:
        return self.name if self.factor in (None, self.kind.factor) else f"{self.name}:{self.factor:g}"

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    def in_round(self, number: int, seed: int) -> Attack:
        """What this comes to in one round."""
        if self.name != "changing":
            return self
        return parse_attack(random.Random(f"{seed}/changing/{number}").choice(CHANGING))


def parse_attack(text: str) -> Attack:
    """The attack in `alie` or `alie:1.5`. Raises `UsageError`."""
    name, colon, rest = text.strip().partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise UsageError(f"--attack {text[:40]!r} must be one of {', '.join(KINDS)}, as alie or alie:1.5")
    if not colon:
        return Attack(name, kind.factor)
    if not kind.takes_factor:
        raise UsageError(f"--attack {text[:40]!r}: {name} takes no factor")
    try:
        factor = float(rest)
    except ValueError:
        factor = math.nan
    if not 0 < factor <= 1e9:
        raise UsageError(f"--attack {text[:40]!r}: the factor must be a number above 0, at most 1e9")
    if name == "free-rider" and not (factor.is_integer() and factor <= MAX_OLD_ROUNDS):
        raise UsageError(
            f"--attack {text[:40]!r}: the age must be a whole number of rounds, to {MAX_OLD_ROUNDS}"
        )
    return Attack(name, factor)


class Liars:
    """The liars of one run: what they remember between rounds, and what they say."""

    def __init__(self, attack: Attack, count: int, seed: int) -> None:
        self._attack = attack
        self._count = count
        self._seed = seed
        self._means: deque[Tensor] = deque(maxlen=self._memory)

    @property
    def _memory(self) -> int:
        if self._attack.name == "changing":
            return OLD_ROUNDS + 1
        return int(self._attack.factor or 0) + 1 if self._attack.name == "free-rider" else 1

    def begin(self, initial: Tensor) -> None:
        """`initial`: the weights from which all start, (parameters,)."""
        self._means.append(initial.clone())

    def look(self, honest: Tensor) -> Crowd:
        """What is to be seen of the honest models of a round, (honest peers, parameters)."""
        return Crowd.of(honest, self._means[-1])

    def speak(
        self, crowd: Crowd, number: int, search: Callable[[Tensor], float]
    ) -> tuple[Tensor | None, float | None]:
        """What all ask for get in round `number`, shape (liars, parameters), and the factor that was used.

        None where the liars' own training says it, or where it depends on the receiver. `search` finds the
        factor of a direction.
        """
        attack = self._attack.in_round(number, self._seed)
        self._means.append(crowd.mean)
        factor = attack.factor
        direction = attack.kind.searches
        if direction is not None:
            push = direction(crowd)
            factor = search(push) if factor is None else factor
            return self._all(torch.add(crowd.mean, push, alpha=factor)), factor
        match attack.name:
            case "sign-flip":
                return self._all(sign_flip(crowd, factor or 1.0)), factor
            case "gaussian":
                generator = torch.Generator().manual_seed(
                    random.Random(f"{self._seed}/{number}").getrandbits(60)
                )
                noise = torch.randn(self._count, len(crowd.mean), generator=generator, dtype=crowd.mean.dtype)
                return noise.mul_(factor or NOISE).add_(crowd.mean), factor
            case "free-rider":
                age = int(factor or OLD_ROUNDS)
                return self._all(self._means[max(0, len(self._means) - 1 - age)]), factor
            case _:
                return None, factor

    def _all(self, model: Tensor) -> Tensor:
        return model.expand(self._count, -1)
