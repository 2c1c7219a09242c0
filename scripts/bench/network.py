"""Twenty daemons in a boot chain: how soon all know all, and what they cost when nothing happens.

Usage: python -m scripts.bench.network
"""

from __future__ import annotations

import time

from scripts.bench.harness import Result, at_most, chain, median, report, wait_until

PEERS = 20
PAUSE_S = 0.2
SETTLE_S = 1.2 * PEERS
"""Every daemon has probed every other once, so that all connections are made."""
IDLE_S = 40.0


def main() -> None:
    with chain(1) as (alone,):
        time.sleep(2.0)
        alone_mb = alone.memory_mb()
    with chain(PEERS, PAUSE_S, wait_each=False) as peers:
        last_start = peers[-1].started
        wait_until(lambda: all(peer.known() == PEERS - 1 for peer in peers), "full knowledge")
        converged_s = time.perf_counter() - last_start
        time.sleep(SETTLE_S)
        before = [peer.cpu_s() for peer in peers]
        started = time.perf_counter()
        time.sleep(IDLE_S)
        elapsed_s = time.perf_counter() - started
        shares = [100 * (peer.cpu_s() - used) / elapsed_s for peer, used in zip(peers, before, strict=True)]
        memory = [peer.memory_mb() for peer in peers]
        own = [peer.own_memory_mb() for peer in peers]
    ready = []
    for _ in range(5):
        with chain(1) as (single,):
            ready.append(single.wait_ready())
    report(
        f"{PEERS} daemons, each booted to the one before, {PAUSE_S} s apart",
        [
            at_most("all know all after the last start", converged_s, "s", 3.0),
            at_most("one daemon ready after its interpreter starts, median", median(ready), "s", 0.5),
            at_most("memory of a daemon alone, idle", alone_mb, "MB", 60),
            at_most("memory in the idle network, median", median(memory), "MB", 60),
            Result("of it its own: proportional set size, median", median(own), "MB"),
            Result("memory in the idle network, most", max(memory), "MB"),
            at_most("processor share in the idle network, median", median(shares), "% core", 0.5),
            Result("processor share in the idle network, most", max(shares), "% core"),
        ],
    )


if __name__ == "__main__":
    main()
