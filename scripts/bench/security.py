"""What TLS and tokens cost a collection of five models: two networks in turns, one of them in the clear.

Usage: python -m scripts.bench.security
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from scripts.bench.collection import FAN_OUT, MODEL_BYTES
from scripts.bench.harness import Peer, Result, at_most, chain, median, report, wait_until

PEERS = 10
ROUNDS = 21
CLEAR = "scripts.bench.clear"
LIMIT_MS = 30.0

Pair = tuple[Sequence[Peer], Sequence[Peer]]


def main() -> None:
    numbers = itertools.count(1)
    with chain(PEERS) as secure, chain(PEERS, program=CLEAR) as clear:
        pair = (secure, clear)
        _publish(pair, next(numbers))
        cold = [_collect_both(pair, index, next(numbers)) for index in range(PEERS)]
        for network in pair:  # whoever collects below has fetched from all others once
            network[0].collect(next(numbers), PEERS - 1)
        warm = []
        for _ in range(ROUNDS):
            _publish(pair, next(numbers))
            warm.append(_collect_both(pair, 0, next(numbers)))
    report(
        f"a collection of {FAN_OUT} models of {MODEL_BYTES / 1e6} MB over TLS with tokens, and in the clear",
        [
            *_compared("a peer's first, connections and all", cold),
            *_compared("later ones", warm),
        ],
    )


def _publish(pair: Pair, version: int) -> None:
    for network in pair:
        for peer in network:
            peer.publish(MODEL_BYTES, version)
        for peer in network:
            wait_until(lambda peer=peer: peer.known(published=True) == PEERS - 1, "all publications")
    time.sleep(1.0)  # the servers notice and hash; not what is measured here


def _collect_both(pair: Pair, index: int, number: int) -> tuple[float, float]:
    """Seconds over TLS and in the clear; who begins changes from turn to turn."""
    order = (0, 1) if number % 2 else (1, 0)
    seconds = {which: pair[which][index].collect(number, FAN_OUT) for which in order}
    return seconds[0], seconds[1]


def _compared(what: str, times: Sequence[tuple[float, float]]) -> list[Result]:
    secure_ms, clear_ms = (1e3 * median([pair[which] for pair in times]) for which in (0, 1))
    more_ms = 1e3 * median([secure_s - clear_s for secure_s, clear_s in times])
    return [
        Result(f"{what}: over TLS, median of {len(times)}", secure_ms, "ms"),
        Result(f"{what}: in the clear", clear_ms, "ms"),
        at_most(f"{what}: median of the differences", more_ms, "ms", LIMIT_MS),
    ]


if __name__ == "__main__":
    main()
