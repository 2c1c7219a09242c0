"""A hundred daemons on one machine: full knowledge, rest and deaths; and deaths among twenty.

Usage: python -m scripts.bench.crowd [peers]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

from scripts.bench.harness import Peer, Result, at_most, chain, median, report, wait_until

PEERS = 100
FEW = 20
SETTLE_S = 1.2
"""Seconds for each peer: every daemon has probed every other, so connections are made and turns are known."""
IDLE_S = 60.0
LOOK_S = 0.05
"""A hundred lists are not read more often than that: reading them would be the load."""
DEATHS = 4


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PEERS
    with chain(count, wait_each=False) as peers:
        started = peers[-1].started
        _wait_each(peers, lambda peer: peer.known() == count - 1, "full knowledge")
        converged_s = time.perf_counter() - started
        time.sleep(SETTLE_S * count)
        share, memory = _idle(peers)
        many_s = [_death(peers) for _ in range(DEATHS)]
    with chain(FEW, wait_each=False) as peers:
        _wait_each(peers, lambda peer: peer.known() == FEW - 1, "full knowledge")
        time.sleep(SETTLE_S * FEW)
        few_s = [_death(peers) for _ in range(DEATHS)]
    report(
        f"{count} daemons, each booted to the one before",
        [
            at_most("all know all after the last start", converged_s, "s", 5.0),
            at_most("processor share of all together, idle", share, "% core", 50.0),
            at_most("memory of all together, idle: proportional set sizes", memory, "MB", 6000.0),
            at_most(
                f"a killed peer is out of all {count - 1} views, most of {DEATHS}", max(many_s), "s", 10.0
            ),
            Result("the same, median", median(many_s), "s"),
            at_most(f"a killed peer is out of all {FEW - 1} views, most of {DEATHS}", max(few_s), "s", 5.0),
            Result("the same, median", median(few_s), "s"),
        ],
    )


def _idle(peers: Sequence[Peer]) -> tuple[float, float]:
    """Percent of one core, and MB."""
    before = sum(peer.cpu_s() for peer in peers)
    started = time.perf_counter()
    time.sleep(IDLE_S)
    used = sum(peer.cpu_s() for peer in peers) - before
    return 100 * used / (time.perf_counter() - started), sum(peer.own_memory_mb() for peer in peers)


def _death(peers: list[Peer]) -> float:
    """Kills one; seconds until no list of the others has it."""
    victim = peers.pop(len(peers) // 2)
    address = victim.address
    killed = time.perf_counter()
    victim.process.kill()
    victim.process.wait()
    _wait_each(peers, lambda peer: address not in _addresses(peer), "the last view without the killed peer")
    return time.perf_counter() - killed


def _addresses(peer: Peer) -> set[str]:
    listed = json.loads(peer.state.peers.read_bytes())["peers"]
    return {address for entry in listed for address in entry["addresses"]}


def _wait_each(peers: Sequence[Peer], condition: Callable[[Peer], bool], what: str) -> None:
    """Waits until the condition holds of all. Who was right once is looked at again when the others are."""
    waiting = list(peers)

    def done() -> bool:
        waiting[:] = [peer for peer in waiting if not condition(peer)]
        if not waiting:
            waiting[:] = [peer for peer in peers if not condition(peer)]
        if waiting:
            time.sleep(LOOK_S)
        return not waiting

    wait_until(done, what)


if __name__ == "__main__":
    main()
