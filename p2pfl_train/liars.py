"""How many liars a round is taken to have: as given, or planned from the membership of the moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from p2pfl_state.markers import MAX_FAN_OUT, AggregateAnswer

from p2pfl_train import planner
from p2pfl_train.config import AggregationOptions
from p2pfl_train.errors import TooFewModels
from p2pfl_train.exchange import Outcome
from p2pfl_train.learner import Learner


@dataclass(frozen=True)
class Draw:
    """From whom the models of a round were drawn."""

    members: int
    """All peers that may be of the task, the own one included: a share of them lies."""
    drawable: int
    """From how many others the models were drawn at random; all liars may be among them."""
    drawn: int
    """Who was asked, whether a model came or not."""

    @classmethod
    def of(cls, answer: AggregateAnswer) -> Draw:
        """A daemon that does not count is believed to have drawn whom it names."""
        named = len(answer.models) + len(answer.failed)
        drawn = max(named, answer.drawn or 0)
        drawable = max(drawn, answer.candidates if answer.drawable is None else answer.drawable)
        return cls(1 + drawable + (answer.undecided or 0), drawable, drawn)


def byzantine_of(options: AggregationOptions, draw: Draw, fan_out: int) -> int:
    """The f of a round: as given, or what the planner says of a draw of at least `fan_out`.

    Raises `TooFewModels` when the liars of so small a draw may be a majority.
    """
    if options.byzantine is not None:
        return options.byzantine
    if not options.expected or draw.drawable < 1:
        return 0
    network = network_of(options, draw)
    found = planner.plan(network, min(max(fan_out, draw.drawn), network.peers - 1))
    if not found.safe:
        raise TooFewModels(planner.refusal(network, found))
    return found.effective


def network_of(options: AggregationOptions, draw: Draw) -> planner.Network:
    """Those who can be drawn, with all liars that there may be among them."""
    others = min(draw.drawable, planner.MAX_PEERS - 1)
    liars = planner.expected_liars(draw.members, options.expected or 0.0)
    return planner.Network(others + 1, min(liars, others), options.rounds, options.risk)


def byzantine_among(options: AggregationOptions, outcome: Outcome, fan_out: int) -> int:
    """How many of the models of a round that may be used are taken for liars'.

    Whoever failed was drawn as well, and was perhaps honest: the more were drawn, the more liars may be
    among the rest. Whose model was refused is one of them, and out of it. Raises `TooFewModels`.
    """
    assert outcome.answer is not None
    byzantine = byzantine_of(options, Draw.of(outcome.answer), fan_out)
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
        self._asking = fan_out
        self._say = say
        self._told: object = None

    def ask(self, own_vote: bool) -> int:
        """How many models to ask for now: more after a round in which too few came.

        A peer without a vote of its own asks for one more: it lacks an honest one.
        """
        return min(self._asking + (not own_vote and self._options.rule.withstands_liars), MAX_FAN_OUT)

    def aggregate(self, learner: Learner, outcome: Outcome) -> Aggregated:
        """Makes one model of those that came, at least one, and the own one, unless they are too few."""
        models = outcome.checked.contributions
        byzantine = None
        try:
            byzantine = byzantine_among(self._options, outcome, self._fan_out)
            learner.average(models, self._options.rule, byzantine)
        except TooFewModels as error:
            self._ask_more(outcome)
            self._tell((byzantine, False), f"not averaged: {error}")
            return Aggregated(byzantine, too_few=len(models))
        self._asking = max(self._fan_out, self._asking - 1)
        if self._options.expected:
            self._tell(
                (byzantine, True),
                f"{byzantine} of {len(models) + 1} models are taken for liars'",
            )
        else:
            self._told = None
        return Aggregated(byzantine, models=len(models))

    def _ask_more(self, outcome: Outcome) -> None:
        """So many that those who fail are no veto, as far as there are others to ask."""
        answer, options = outcome.answer, self._options
        if answer is None or not options.expected:
            return
        draw = Draw.of(answer)
        network, failing = network_of(options, draw), draw.drawn - len(answer.models)
        for models in range(self._fan_out, min(network.peers - failing, MAX_FAN_OUT + 1)):
            needed = options.rule.least_votes(planner.plan(network, models + failing).effective)
            if models + 1 >= needed:
                self._asking = models
                return

    def _tell(self, verdict: object, text: str) -> None:
        """Once, until the verdict is another: the number of peers may change with every round."""
        if verdict != self._told:
            self._say(text)
        self._told = verdict
