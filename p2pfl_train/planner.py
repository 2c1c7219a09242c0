"""How many liars may be among those that a peer asks, and how many it must ask so that they lose.

A peer pulls from `fan_out` random others. With b liars among N peers, the number of liars in one draw is
hypergeometric: `fan_out` of N - 1 without replacement, b of them marked. Over a run, every one of the
N - b honest peers draws once a round, and the effective number of liars b̂ is the least number that no
draw of the whole run exceeds but with a probability of `risk`. After RPEL, "Robust and Efficient
Collaborative Learning", arXiv:2510.08311, which simulates the draws. The draws of different peers and
rounds are independent, so the tail can be computed, and here it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pfl_train.errors import UsageError

MAX_PEERS = 10_000
DEFAULT_RISK = 0.05
DEFAULT_ROUNDS = 1000
"""The run that a trainer without an end plans for; b̂ grows with the logarithm of it."""


@dataclass(frozen=True)
class Network:
    """Whom is drawn from, and how often."""

    peers: int
    """N, liars and the drawing peer included."""
    byzantine: int
    """b, among them."""
    rounds: int
    risk: float = DEFAULT_RISK
    """The probability of failure that is accepted, for the whole run of all."""

    def check(self) -> None:
        """Raises `UsageError` for numbers that make no network."""
        if not 2 <= self.peers <= MAX_PEERS:
            raise UsageError(f"--peers {self.peers} must be from 2 to {MAX_PEERS}")
        if not 0 <= self.byzantine < self.peers:
            raise UsageError(f"--byzantine {self.byzantine} must be from 0 to below --peers, {self.peers}")
        if not 1 <= self.rounds <= 10**9:
            raise UsageError(f"--rounds {self.rounds} must be from 1 to 1e9")
        check_risk(self.risk)

    @property
    def honest(self) -> int:
        return self.peers - self.byzantine

    @property
    def draws(self) -> int:
        """Of all honest peers in the whole run."""
        return self.honest * self.rounds


@dataclass(frozen=True)
class Plan:
    """What a fan-out comes to."""

    fan_out: int
    effective: int
    """b̂: the most liars in any draw, and the f of the rule."""
    exceeded: float
    """The probability that some draw of the run has more than b̂."""

    @property
    def votes(self) -> int:
        """The models that a rule sees: those pulled and the own."""
        return self.fan_out + 1

    @property
    def safe(self) -> bool:
        """Whether liars stay a minority, which every rule needs."""
        return 2 * self.effective < self.votes


def check_risk(risk: float) -> None:
    """Raises `UsageError`."""
    if not 0 < risk < 1:
        raise UsageError(f"--risk {risk} must be above 0 and below 1")


def tail(others: int, marked: int, drawn: int, most: int) -> float:
    """P(more than `most` of the `marked` are among `drawn` of `others`), exact but for one rounding."""
    ways = sum(
        math.comb(marked, hit) * math.comb(others - marked, drawn - hit)
        for hit in range(most + 1, min(marked, drawn) + 1)
    )
    return ways / math.comb(others, drawn)


def plan(network: Network, fan_out: int) -> Plan:
    """b̂ of a fan-out from 1 to N - 1."""
    others = network.peers - 1
    assert 1 <= fan_out <= others
    certain = min(network.byzantine, fan_out)
    for most in range(certain):
        exceeded = _ever(tail(others, network.byzantine, fan_out, most), network.draws)
        if exceeded <= network.risk:
            return Plan(fan_out, most, exceeded)
    return Plan(fan_out, certain, 0.0)


def _ever(chance: float, draws: int) -> float:
    """The probability that an event of this chance happens in any of the draws."""
    return 1.0 if chance >= 1 else -math.expm1(draws * math.log1p(-chance))


def smallest_safe(network: Network) -> Plan | None:
    """The plan of the smallest fan-out in which liars stay a minority; None if there is none."""
    for fan_out in range(1, network.peers):
        found = plan(network, fan_out)
        if found.safe:
            return found
    return None


def expected_liars(peers: int, share: float) -> int:
    """How many of `peers`, the own one included, are taken for liars; at most all others."""
    return min(math.ceil(share * peers - 1e-9), peers - 1)
