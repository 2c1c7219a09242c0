"""A large model from daemon to daemon, beside plain Python sockets that copy the same file.

All in one run and one folder, in turns, so that the same machine carries them. The bound is against a TLS 1.3
socket that only copies, while the daemons check who calls, hash and verify.

Usage: python -m scripts.bench.transfer [megabytes]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from scripts.bench.harness import (
    Result,
    at_least,
    at_most,
    chain,
    median,
    report,
    touch_free_memory,
    wait_until,
)
from scripts.bench.sockets import Ends, copy_s

REPEATS = 9
PAUSE_S = 1.0
"""For what comes after a measurement: old rounds are deleted, publications hashed."""


def main() -> None:
    size_bytes = int(float(sys.argv[1] if len(sys.argv) > 1 else "500") * 1e6)
    ends = Ends.new()
    fetched, tls, tls_hashed, tcp_hashed = [], [], [], []
    with chain(2) as (server, client):
        source, folder = server.state.model, client.state.root

        def copied_s(*, ends: Ends | None, hashed: bool = False) -> float:
            _rest(folder, size_bytes)
            return copy_s(source, folder / "copy", ends=ends, hashed=hashed)

        for turn in range(REPEATS):
            server.publish(size_bytes, turn + 1)
            wait_until(lambda: client.known(published=True) == 1, "the publication")
            # Before and after the fetch, so that what changes meanwhile is on both sides.
            before = copied_s(ends=ends)
            _rest(folder, size_bytes)
            fetched.append(client.collect(turn, 1))
            tls.append((before + copied_s(ends=ends)) / 2)
            tls_hashed.append(copied_s(ends=ends, hashed=True))
            tcp_hashed.append(copied_s(ends=None, hashed=True))
        peaks = [peer.memory_mb("VmHWM") for peer in (client, server)]

    def speed(seconds: list[float]) -> float:
        return size_bytes / 1e6 / median(seconds)

    def ratio(seconds: list[float]) -> float:
        return median([other / own for other, own in zip(seconds, fetched, strict=True)])

    report(
        f"transfer of {size_bytes / 1e6:.0f} MB, daemon to daemon, {REPEATS} runs, medians",
        [
            Result("request to verified file", speed(fetched), "MB/s"),
            Result("TLS 1.3 socket that copies", speed(tls), "MB/s"),
            Result("TLS 1.3 socket that copies and hashes", speed(tls_hashed), "MB/s"),
            Result("plain TCP that copies and hashes", speed(tcp_hashed), "MB/s"),
            at_least("ratio to the TLS socket that only copies", ratio(tls), "", 0.9),
            Result("ratio to the TLS socket that copies and hashes", ratio(tls_hashed), ""),
            Result("ratio to plain TCP that copies and hashes", ratio(tcp_hashed), ""),
            at_most("peak memory of the fetching daemon", peaks[0], "MB", 100),
            at_most("peak memory of the serving daemon", peaks[1], "MB", 100),
        ],
    )


def _rest(folder: Path, size_bytes: int) -> None:
    """Before each measurement, so that all begin alike."""
    time.sleep(PAUSE_S)
    touch_free_memory(folder / "fresh", 2 * size_bytes)


if __name__ == "__main__":
    main()
