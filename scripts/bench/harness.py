"""What the benchmarks share: daemons with a trainer's hand, results as a table and JSON.

Machines are shared and noisy, so what counts is a ratio of two things measured in the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from p2pfl_state import atomic, lock, manifest, markers
from p2pfl_state.layout import StateDir

from scripts import die_with_parent

TASK = "5a" * 32
WAIT_S = 120.0
PRODUCT = "p2pfl_net"
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Result:
    """One measured figure and the bound that it should keep."""

    name: str
    value: float
    unit: str
    bound: str = ""
    kept: bool | None = None
    """Whether the bound is kept; None: a figure for orientation."""


def at_most(name: str, value: float, unit: str, limit: float) -> Result:
    return Result(name, value, unit, f"at most {limit:g}", value <= limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Result:
    return Result(name, value, unit, f"at least {limit:g}", value >= limit)


def report(title: str, results: Sequence[Result]) -> None:
    """Prints a table on standard output, and the same as JSON on the last line."""
    print(f"\n{title}")
    for result in results:
        mark = {True: "kept", False: "NOT KEPT", None: ""}[result.kept]
        print(f"  {result.name:<58} {result.value:>10.4g} {result.unit:<8} {result.bound:<14} {mark}")
    print(json.dumps({"title": title, "results": [asdict(result) for result in results]}))


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def wait_until(condition: object, what: str, timeout_s: float = WAIT_S) -> float:
    """Polls `condition` every millisecond; the seconds it took. Ends the benchmark after `timeout_s`."""
    assert callable(condition)
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > timeout_s:
            sys.exit(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.001)
    return time.perf_counter() - started


def touch_free_memory(scratch: Path, size_bytes: int) -> None:
    """Leaves as much memory as what is measured next needs free and backed by the machine.

    The host of a virtual machine takes back pages that were free for a while; the first write to such
    a page costs more than all else that is done with it. How many of them a file meets depends on what was
    written before, so each should meet few.
    """
    piece = bytes(PIECE_BYTES)
    with open(scratch, "wb") as file:
        for _ in range(size_bytes // PIECE_BYTES + 1):
            file.write(piece)
    scratch.unlink()


class Peer:
    """A daemon, and what its trainer would do in its directory."""

    def __init__(self, root: Path, boot: Peer | None, program: str = PRODUCT) -> None:
        """`program`: the module to run."""
        self.state = StateDir(root)
        arguments = ["serve", "--port", "0", "--host", "127.0.0.1", "--state", str(root)]
        environment = dict(os.environ)
        if boot is not None:
            arguments += ["--boot", boot.address]
            environment["BOOT_ID"] = boot.peer_id  # for the program that cannot see it otherwise
        self.started = time.perf_counter()
        command = die_with_parent.command([sys.executable, "-m", program, *arguments])
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
        self._instance = markers.new_instance()
        self._lock: lock.ProcessLock | None = None

    @property
    def address(self) -> str:
        return self._boot_done().address

    @property
    def peer_id(self) -> str:
        return self._boot_done().peer_id

    def _boot_done(self) -> markers.BootDone:
        boot_done = markers.read_boot_done(self.state)
        assert boot_done is not None
        return boot_done

    def wait_ready(self) -> float:
        """Seconds from the start of its interpreter to `.BOOT_DONE`."""
        wait_until(self.state.boot_done.exists, ".BOOT_DONE")
        return time.perf_counter() - self.started

    def known(self, *, published: bool = False) -> int:
        """How many others are in its `peers.json`."""
        try:
            listed = json.loads(self.state.peers.read_bytes())["peers"]
        except FileNotFoundError:
            return 0
        return sum(1 for peer in listed if peer["published"] or not published)

    def publish(self, size_bytes: int, version: int) -> None:
        """Publishes random weights of this size, in constant memory."""
        piece = os.urandom(1 << 20)
        count = size_bytes // len(piece) + 1
        elements = count * len(piece) // 4
        digest = manifest.weights_digest([("w", "F32", (elements,), (piece for _ in range(count)))])
        described = manifest.Manifest(version, 100, TASK, digest)
        header = json.dumps(
            {
                "__metadata__": {manifest.METADATA_KEY: described.encode()},
                "w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, elements * 4]},
            }
        ).encode()
        with atomic.replacing(self.state.model) as draft, open(draft, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(count):
                file.write(piece)

    def collect(self, round_number: int, fan_out: int, deadline_s: float = 60.0) -> float:
        """Seconds from before `.AGGREGATE` is written to its answer seen, with all models."""
        if self._lock is None:
            self._lock = lock.ProcessLock(self.state.trainer_lock)
            self._lock.acquire()
        request = markers.AggregateRequest(
            self._instance, round_number, fan_out, deadline_s, TASK, delete_below=round_number
        )
        before = _inode(self.state.aggregate_done)
        started = time.perf_counter()
        markers.write_request(self.state, request)
        # As a trainer does between its steps: to read the old answer again and again would be a load.
        wait_until(lambda: _inode(self.state.aggregate_done) != before, "the answer")
        seconds = time.perf_counter() - started
        answer = markers.read_answer(self.state)
        assert answer is not None
        assert answer.round == round_number
        if len(answer.models) != fan_out:
            sys.exit(f"only {len(answer.models)} of {fan_out} models came: {answer.failed}")
        return seconds

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Resident memory now, or with `VmHWM` at its highest."""
        return _status_kb(self.process.pid, field) / 1024

    def own_memory_mb(self) -> float:
        """Proportional set size: what daemons of one machine share counts once for all of them."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024

    def cpu_s(self) -> float:
        """Processor seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self.process.terminate()


def _inode(path: Path) -> int | None:
    """Another with each write; None: there is no such file."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _status_kb(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ValueError(field)


@contextmanager
def chain(
    count: int, pause_s: float = 0.0, *, wait_each: bool = True, program: str = PRODUCT
) -> Iterator[list[Peer]]:
    """`count` daemons, each booted to the one before; ended and deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="p2pfl-bench-") as folder:
        peers: list[Peer] = []
        try:
            for index in range(count):
                if peers:
                    peers[-1].wait_ready()
                peers.append(Peer(Path(folder) / str(index), peers[-1] if peers else None, program))
                if wait_each:
                    peers[-1].wait_ready()
                time.sleep(pause_s)
            peers[-1].wait_ready()
            yield peers
        finally:
            for peer in peers:
                peer.close()
            for peer in peers:
                peer.process.wait()
