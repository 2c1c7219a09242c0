"""How many liars may be among those that a peer asks, and how many it must ask so that they lose.

A peer pulls from `fan_out` random others. With b liars among N peers, the number of liars in one draw is
hypergeometric: `fan_out` of N - 1 without replacement, b of them marked. Over a run, every one of the
N - b honest peers draws once a round, and the effective number of liars b̂ is the least number that no
draw of the whole run exceeds but with a probability of `risk`. After RPEL, "Robust and Efficient
Collaborative Learning", arXiv:2510.08311. The draws of different peers and rounds are independent, so the
tail is computed exactly.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from p2pfl_train.errors import UsageError

MAX_PEERS = 10_000
FEWEST_PEERS = 3
"""Two honest ones and a liar."""
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
    if not 0 < risk <= 0.5:
        raise UsageError(f"--risk {risk} must be above 0, at most 0.5")


def tail(others: int, marked: int, drawn: int, most: int) -> float:
    """P(more than `most` of the `marked` are among `drawn` of `others`), exact but for one rounding."""
    *_, last = _tails(others, marked, drawn, most)
    return last


def _tails(others: int, marked: int, drawn: int, least: int) -> Iterator[float]:
    """P(more than k are among the drawn) for k from the largest possible number of hits down to `least`."""
    hit = min(marked, drawn)
    every = math.comb(others, drawn)
    term = math.comb(marked, hit) * math.comb(others - marked, drawn - hit)
    ways = 0
    yield 0.0
    while hit > least:
        ways += term
        # C(m, h) C(o - m, d - h) from one h to the one below
        term = term * hit * (others - marked - drawn + hit) // ((marked - hit + 1) * (drawn - hit + 1))
        hit -= 1
        yield ways / every


@lru_cache(maxsize=256)
def plan(network: Network, fan_out: int) -> Plan:
    """b̂ of a fan-out from 1 to N - 1."""
    others = network.peers - 1
    assert 1 <= fan_out <= others
    effective = min(network.byzantine, fan_out) + 1
    accepted = 0.0
    for chance in _tails(others, network.byzantine, fan_out, 0):
        exceeded = _ever(chance, network.draws)
        if exceeded > network.risk:
            break
        effective, accepted = effective - 1, exceeded
    return Plan(fan_out, effective, accepted)


def _ever(chance: float, draws: int) -> float:
    """The probability that an event of this chance happens in any of the draws."""
    return 1.0 if chance >= 1 else -math.expm1(draws * math.log1p(-chance))


@lru_cache(maxsize=256)
def smallest_safe(network: Network) -> Plan | None:
    """The plan of the smallest fan-out in which liars stay a minority; None if there is none.

    An odd fan-out of more than 1 is never the smallest: with one model less, the same number of liars is
    still a minority, and fewer are drawn. Among even ones more are always safer.
    """
    candidates = [1, *range(2, network.peers, 2)]
    at = bisect_left(candidates, True, key=lambda fan_out: _is_safe(network, fan_out))
    return plan(network, candidates[at]) if at < len(candidates) else None


def advised(network: Network) -> int:
    """The smallest safe fan-out; all others where none is."""
    safe = smallest_safe(network)
    return network.peers - 1 if safe is None else safe.fan_out


def _is_safe(network: Network, fan_out: int) -> bool:
    chance = tail(network.peers - 1, network.byzantine, fan_out, fan_out // 2)
    return _ever(chance, network.draws) <= network.risk


def expected_liars(peers: int, share: float) -> int:
    """How many of `peers`, the own one included, are taken for liars; at most all others."""
    return min(math.ceil(share * peers - 1e-9), peers - 1)


def reckoned(network: Network, expected: float | None) -> Network:
    """The network as the honest see it: `expected` is the share of liars, None the true one.

    Raises `UsageError`.
    """
    if expected is not None:
        if not (math.isfinite(expected) and 0 <= expected < 1):
            raise UsageError(f"--expect-byzantine {expected} must be from 0 to below 1")
        network = replace(network, byzantine=expected_liars(network.peers, expected))
    network.check()
    return network


def refusal(network: Network, found: Plan) -> str:
    """Why a plan is not safe, and what would be."""
    return (
        f"{found.effective} of {found.votes} models may be liars' when {found.fan_out} are pulled from "
        f"{network.peers} peers with {_liars(network.byzantine)} over {network.rounds} rounds: "
        f"{_remedy(network, found)}"
    )


def _remedy(network: Network, found: Plan) -> str:
    safe = smallest_safe(network)
    if safe is not None:
        # An odd fan-out may be unsafe where the even one before it is not; the next even one is safe too.
        fan_out = max(safe.fan_out, found.fan_out + 1)
        return f"ask {fan_out} (--fan-out {fan_out})"
    if network.peers < FEWEST_PEERS:
        return f"at least {FEWEST_PEERS} peers are needed to outvote a liar"
    return "no fan-out is safe with so many liars: keep them out (a network key, trusted peers only)"


def _liars(count: int) -> str:
    return "1 liar" if count == 1 else f"{count} liars"
