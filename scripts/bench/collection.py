"""How long a round takes: five models of 6.5 MB with 10 and with 45 peers on this machine.

Usage: python -m scripts.bench.collection
"""

from __future__ import annotations

import time

from scripts.bench.harness import Result, at_most, chain, median, report, wait_until

MODEL_BYTES = 6_500_000
FAN_OUT = 5
ROUNDS = 11


def round_s(count: int) -> list[float]:
    """Seconds of each round in a network of `count` peers, all with a fresh model each time."""
    with chain(count) as peers:
        collector, others = peers[0], peers[1:]
        seconds = []
        for number in range(ROUNDS):
            for other in others:
                other.publish(MODEL_BYTES, number + 1)
            wait_until(lambda: collector.known(published=True) == count - 1, "all publications")
            time.sleep(1.0)  # the servers notice and hash; not what is measured here
            seconds.append(collector.collect(number, FAN_OUT))
        return seconds


def main() -> None:
    small, large = round_s(10), round_s(45)
    report(
        f"a round of {FAN_OUT} models of {MODEL_BYTES / 1e6} MB, {ROUNDS} rounds",
        [
            at_most("10 peers, .AGGREGATE to .AGGREGATE_DONE, median", median(small) * 1e3, "ms", 150),
            Result("10 peers, slowest", max(small) * 1e3, "ms"),
            Result("45 peers, median", median(large) * 1e3, "ms"),
            at_most("45 peers over 10 peers", median(large) / median(small), "", 1.5),
        ],
    )


if __name__ == "__main__":
    main()
