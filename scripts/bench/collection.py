"""How long a round takes: five models of 6.5 MB with 10 and with 45 peers on this machine.

Usage: python -m scripts.bench.collection
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from scripts.bench.harness import Peer, Result, at_most, chain, median, report, touch_free_memory, wait_until

MODEL_BYTES = 6_500_000
FAN_OUT = 5
ROUNDS = 11


@dataclass(frozen=True)
class Rounds:
    """Seconds of the rounds of one network."""

    first_s: float
    """The very first, over connections that have to be made."""
    later_s: list[float]
    """Rounds after every peer has been fetched from once, as in a network that has trained for a while."""


def rounds(count: int) -> Rounds:
    """Rounds in a network of `count` peers, all with a fresh model each time."""
    numbers = itertools.count(1)

    def one_round(peers: list[Peer], fan_out: int) -> float:
        collector, others = peers[0], peers[1:]
        number = next(numbers)
        for other in others:
            other.publish(MODEL_BYTES, number)
        wait_until(lambda: collector.known(published=True) == count - 1, "all publications")
        time.sleep(1.0)  # the servers notice and hash; not what is measured here
        touch_free_memory(collector.state.root / "fresh", 4 * FAN_OUT * MODEL_BYTES)
        return collector.collect(number, fan_out)

    with chain(count) as peers:
        first_s = one_round(peers, FAN_OUT)
        one_round(peers, count - 1)
        return Rounds(first_s, [one_round(peers, FAN_OUT) for _ in range(ROUNDS)])


def main() -> None:
    small, large = rounds(10), rounds(45)
    small_s, large_s = median(small.later_s), median(large.later_s)
    report(
        f"a round of {FAN_OUT} models of {MODEL_BYTES / 1e6} MB, {ROUNDS} rounds",
        [
            at_most("10 peers, .AGGREGATE to .AGGREGATE_DONE, median", small_s * 1e3, "ms", 150),
            Result("10 peers, slowest", max(small.later_s) * 1e3, "ms"),
            Result("10 peers, first round", small.first_s * 1e3, "ms"),
            Result("45 peers, median", large_s * 1e3, "ms"),
            Result("45 peers, slowest", max(large.later_s) * 1e3, "ms"),
            Result("45 peers, first round", large.first_s * 1e3, "ms"),
            at_most("45 peers over 10 peers, medians", large_s / small_s, "", 1.5),
        ],
    )


if __name__ == "__main__":
    main()
