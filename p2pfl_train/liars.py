"""How many liars a round is taken to have: as given, or planned from the membership of the moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2pfl_train import planner
from p2pfl_train.config import AggregationOptions
from p2pfl_train.errors import TooFewModels
from p2pfl_train.exchange import Outcome
from p2pfl_train.learner import Learner


def byzantine_of(options: AggregationOptions, others: int, fan_out: int) -> int:
    """The f of a round that drew up to `fan_out` of `others`, the other peers of the task.

    Raises `TooFewModels` when in so small a network the liars of a draw may be a majority.
    """
    if options.byzantine is not None:
        return options.byzantine
    if not options.expected or others < 1:
        return 0
    peers = min(others + 1, planner.MAX_PEERS)
    liars = planner.expected_liars(peers, options.expected)
    network = planner.Network(peers, liars, options.rounds, options.risk)
    found = planner.plan(network, min(fan_out, peers - 1))
    if not found.safe:
        raise TooFewModels(planner.refusal(network, found))
    return found.effective


def byzantine_among(options: AggregationOptions, outcome: Outcome, fan_out: int) -> int:
    """How many of the models of a round that may be used are taken for liars'.

    Whoever failed was drawn as well, and was perhaps honest: the more were drawn, the more liars may be
    among the rest. Whose model was refused is one of them, and out of it. Raises `TooFewModels`.
    """
    assert outcome.answer is not None
    drawn = len(outcome.answer.models) + len(outcome.answer.failed)
    byzantine = byzantine_of(options, max(outcome.answer.candidates, drawn), max(fan_out, drawn))
    return max(0, byzantine - len(outcome.checked.refusals))


@dataclass(frozen=True)
class Aggregated:
    """What became of the models of one round."""

    byzantine: int | None
    """f; None where no plan is safe."""
    models: int = 0
    """How many were used."""
    too_few: int = 0
    """How many were left out, since they cannot outvote that many liars."""


class Jury:
    """Aggregates round after round, and says when it changes its mind about how many lie."""

    def __init__(self, options: AggregationOptions, fan_out: int, say: Callable[[str], None]) -> None:
        self._options = options
        self._fan_out = fan_out
        self._say = say
        self._told: object = None

    def aggregate(self, learner: Learner, outcome: Outcome) -> Aggregated:
        """Makes one model of those that came, at least one, and the own one, unless they are too few."""
        models = outcome.checked.contributions
        byzantine = None
        try:
            byzantine = byzantine_among(self._options, outcome, self._fan_out)
            learner.average(models, self._options.rule, byzantine)
        except TooFewModels as error:
            self._tell((byzantine, False), f"not averaged: {error}")
            return Aggregated(byzantine, too_few=len(models))
        if self._options.expected:
            self._tell(
                (byzantine, True),
                f"{byzantine} of {len(models) + 1} models are taken for liars'",
            )
        else:
            self._told = None
        return Aggregated(byzantine, models=len(models))

    def _tell(self, verdict: object, text: str) -> None:
        """Once, until the verdict is another: the number of peers may change with every round."""
        if verdict != self._told:
            self._say(text)
        self._told = verdict
