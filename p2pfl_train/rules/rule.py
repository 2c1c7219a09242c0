"""A rule as it is typed: one of `RULES`, with nearest-neighbour mixing in front of it or without."""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2pfl_train.errors import TooFewModels, UsageError
from p2pfl_train.rules import geometry
from p2pfl_train.rules.definitions import RULES, Definition, Recipe, Votes

MIXING = "nnm+"


@dataclass(frozen=True)
class Rule:
    """`name` of `RULES`; with `mixes`, each model is first replaced by the mean of its n - f nearest.

    Nearest-neighbour mixing: Allouah et al., "Fixing by Mixing", AISTATS 2023, algorithm 1. It pulls the
    honest models together before the rule looks at them, and with them the room in which a liar can hide.
    Its own breakdown point is f < n/2; the rule after it must withstand f liars as well.
    """

    name: str
    mixes: bool = False

    def __str__(self) -> str:
        return f"{MIXING}{self.name}" if self.mixes else self.name

    @property
    def definition(self) -> Definition:
        return RULES[self.name]

    @property
    def needs_distances(self) -> bool:
        return self.mixes or self.definition.needs_distances

    @property
    def withstands_liars(self) -> bool:
        """False for an average of all: its breakdown point is 0, mixed or not."""
        return self.definition.least_votes(1) > 1

    @property
    def needs_byzantine(self) -> bool:
        """Whether f enters the result, and not only the check of what it withstands."""
        return self.mixes or self.definition.uses_byzantine

    def least_votes(self, byzantine: int) -> int:
        """The fewest models, the own one among them, with which the rule withstands so many liars."""
        return max(self.definition.least_votes(byzantine), 2 * byzantine + 1 if self.mixes else 1)

    def check(self, votes: int, byzantine: int) -> None:
        """Raises `TooFewModels` when `votes` models, the own one among them, are too few for the rule."""
        least = self.least_votes(byzantine)
        if votes < least:
            raise TooFewModels(
                f"{self} withstands {byzantine} liar{'' if byzantine == 1 else 's'} among at least {least} "
                f"models (the own one counts where a peer has data), and there are {votes}: ask more peers "
                "(--fan-out), wait for more, or expect fewer liars"
            )

    def recipe(self, votes: Votes) -> Recipe:
        """What to do with each coordinate. Raises `TooFewModels`."""
        self.check(votes.count, votes.byzantine)
        if not self.mixes:
            return self.definition.recipe(votes)
        mixing = geometry.nearest_neighbours(votes.known_distances, votes.byzantine)
        mixed = geometry.mixed_distances(votes.known_distances, mixing)
        recipe = self.definition.recipe(replace(votes, distances=mixed))
        weights = mixing if recipe.weights is None else recipe.weights @ mixing
        return Recipe(weights, recipe.trim)

    def for_buffers(self, votes: Votes, recipe: Recipe) -> Recipe:
        """What to do with what is no parameter, given the recipe for those.

        Statistics and counters differ among the honest by as much as it pleases them, so they are
        left out of distances: in their shadow any parameters would be near. Nor are they taken from
        whom the parameters speak for, but are trimmed coordinate by coordinate.
        """
        if not self.withstands_liars:
            return recipe
        return Recipe(None, trim=votes.byzantine if self.needs_byzantine else (votes.count - 1) // 2)


FEDAVG = Rule("fedavg")
ROBUST = Rule("trimmed_mean", mixes=True)
"""What is used where liars are expected and no rule is named: Allouah et al. 2023; over random peers,
RPEL (Robust Pull-based Epidemic Learning), arXiv:2510.08311."""


def parse_rule(text: str) -> Rule:
    """The rule in `median` or `nnm+trimmed_mean`. Raises `UsageError`."""
    name = text.strip().removeprefix(MIXING)
    if name not in RULES:
        raise UsageError(
            f"--aggregate {text[:40]!r} must be one of {', '.join(RULES)}, or one of them with {MIXING} in "
            f"front, as {ROBUST}"
        )
    return Rule(name, mixes=text.strip().startswith(MIXING))
