"""A large model from daemon to daemon, beside plain Python sockets that copy the same file.

All in one run and one folder, in turns, so that the same machine carries them. The bound is against a TLS 1.3
socket that only copies, while the daemons check who calls, hash and verify.

Usage: python -m scripts.bench.transfer [megabytes]
"""

from __future__ import annotations

import sys
import time

from scripts.bench.harness import Result, at_least, at_most, chain, median, report, wait_until
from scripts.bench.sockets import Ends, copy_s

REPEATS = 7


def main() -> None:
    size_bytes = int(float(sys.argv[1] if len(sys.argv) > 1 else "500") * 1e6)
    ends = Ends.new()
    fetched, tls, tls_hashed, tcp_hashed = [], [], [], []
    with chain(2) as (server, client):
        for turn in range(REPEATS):
            server.publish(size_bytes, turn + 1)
            wait_until(lambda: client.known(published=True) == 1, "the publication")
            time.sleep(2.0)  # the server hashes what it announced; not what is measured here
            source, target = server.state.model, client.state.root / "copy"
            # Before and after the fetch, so that neither side alone finds memory that was just in use.
            before = copy_s(source, target, ends=ends)
            fetched.append(client.collect(turn, 1))
            tls.append((before + copy_s(source, target, ends=ends)) / 2)
            tls_hashed.append(copy_s(source, target, ends=ends, hashed=True))
            tcp_hashed.append(copy_s(source, target, hashed=True))
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


if __name__ == "__main__":
    main()
