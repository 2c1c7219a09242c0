"""How many liars a round is taken to have: as given, or planned from the membership of the moment."""

from __future__ import annotations

from p2pfl_train import planner
from p2pfl_train.config import AggregationOptions
from p2pfl_train.errors import TooFewModels


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
