"""A large model from daemon to daemon, beside a plain TCP socket that copies the same file.

Usage: python -m scripts.bench.transfer [megabytes]
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from pathlib import Path

from scripts.bench.harness import Result, at_least, at_most, chain, median, report, wait_until

REPEATS = 5
CHUNK_BYTES = 1 << 20


def tcp_copy_s(source: Path, target: Path, *, hashed: bool) -> float:
    """Seconds for a plain socket from one process to another to copy a file, as simply as Python can."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        connection, _ = listener.accept()
        with open(source, "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                connection.sendall(piece)
        os._exit(0)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    started = time.perf_counter()
    with socket.create_connection(listener.getsockname()) as connection, open(target, "wb") as file:
        while received := connection.recv_into(buffer):
            file.write(buffer[:received])
            if hashed:
                digest.update(buffer[:received])
    seconds = time.perf_counter() - started
    os.waitpid(child, 0)
    listener.close()
    target.unlink()
    return seconds


def main() -> None:
    size_bytes = int(float(sys.argv[1] if len(sys.argv) > 1 else "500") * 1e6)
    with chain(2) as (server, client):
        fetched, copied, hashed = [], [], []
        for turn in range(REPEATS):
            server.publish(size_bytes, turn + 1)
            wait_until(lambda: client.known(published=True) == 1, "the publication")
            time.sleep(2.0)  # the server hashes what it announced; not what is measured here
            target = client.state.root / "copy"
            # Before and after the fetch, so that neither side alone finds memory that was just in use.
            copied.append(tcp_copy_s(server.state.model, target, hashed=False))
            fetched.append(client.collect(turn, 1))
            hashed.append(tcp_copy_s(server.state.model, target, hashed=True))
        speed = size_bytes / 1e6 / median(fetched)
        ratio_hashed = median([h / f for h, f in zip(hashed, fetched, strict=True)])
        ratio_copied = median([c / f for c, f in zip(copied, fetched, strict=True)])
        report(
            f"transfer of {size_bytes / 1e6:.0f} MB, daemon to daemon, {REPEATS} runs",
            [
                Result("request to verified file, median", speed, "MB/s"),
                Result("plain TCP that copies, median", size_bytes / 1e6 / median(copied), "MB/s"),
                Result("plain TCP that copies and hashes, median", size_bytes / 1e6 / median(hashed), "MB/s"),
                at_least("ratio to TCP that copies and hashes", ratio_hashed, "", 0.6),
                Result("ratio to TCP that only copies", ratio_copied, ""),
                at_most("peak memory of the fetching daemon", client.memory_mb("VmHWM"), "MB", 100),
                at_most("peak memory of the serving daemon", server.memory_mb("VmHWM"), "MB", 100),
            ],
        )


if __name__ == "__main__":
    main()
