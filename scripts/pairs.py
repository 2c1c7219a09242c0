"""A pair: the daemon and the trainer of one peer as two child processes that share a state directory.

What a person types (`make run`, `make demo`, `make paper`) starts pairs with this module. A pair never
outlives the process that started it, not even when that is killed.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pfl_state import home, lock, markers
from p2pfl_state.errors import DirectoryInUse
from p2pfl_state.layout import StateDir

from scripts import die_with_parent
from scripts.failures import PairFailed

LOOK_S = 0.1
"""How often a supervisor looks after its processes."""
LATE_S = 5.0
"""What joins at all has mostly joined by then."""
TRAINER_PATIENCE_S = 60.0
"""A trainer that stops takes a last average and measures it: seconds for the built-in data."""
DAEMON_PATIENCE_S = 15.0
"""A daemon that stops lets uploads finish for 5 s."""
TRAINER_NICE = 5
"""Training takes all the processor it gets; a daemon must answer pings within a second beside it."""
KILLED_DIGIT = 9
TAIL_LINES = 8
TAIL_BYTES = 16384


@dataclass(frozen=True)
class PairOptions:
    """How to start one pair."""

    state: Path
    net: tuple[str, ...]
    """Options of `p2pfl-net serve`, without --state."""
    train: tuple[str, ...]
    """Options of `p2pfl-train run`, without --state."""


@dataclass(frozen=True)
class Death:
    """How a process of a pair ended without being asked."""

    who: str
    """`daemon` or `trainer`."""
    code: int
    """Its exit code, or -N when signal N killed it."""
    last_output: str

    @property
    def exit_code(self) -> int:
        """Two digits: 1 for the daemon and 2 for the trainer, then its own code; 9 for a signal."""
        return (10 if self.who == "daemon" else 20) + (self.code if 0 <= self.code < 9 else KILLED_DIGIT)

    def failure(self, state: StateDir) -> PairFailed:
        """The error that tells it."""
        log = state.daemon_log if self.who == "daemon" else state.trainer_log
        how = (
            f"ended with exit code {self.code}"
            if self.code >= 0
            else f"was ended by {signal.Signals(-self.code).name}"
        )
        text = f"the {self.who} {how}; the last lines of {log}:"
        return PairFailed(
            "\n  ".join([text, *(self.last_output.splitlines() or ["(it is empty)"])]), self.exit_code
        )


@dataclass
class _Child:
    who: str
    popen: subprocess.Popen[bytes]
    log: Path
    log_start: int
    """Where this life's output begins."""

    def last_output(self) -> str:
        with open(self.log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_start, end - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


class Pair:
    """One pair from start to stop; used by the main thread."""

    def __init__(self, options: PairOptions) -> None:
        self.options = options
        self.state = StateDir(options.state)
        self._daemon: _Child | None = None
        self._trainer: _Child | None = None

    def start(self) -> None:
        """Starts both processes. Raises `StateError` when the directory is in use or not usable."""
        home.prepare(self.state)
        home.check(self.state)
        for path in (self.state.daemon_lock, self.state.trainer_lock):
            if lock.is_held(path):
                raise DirectoryInUse(
                    f"{self.state.root} is in use by another {path.stem}: stop it, or choose another STATE"
                )
        root = str(self.options.state)
        net = [sys.executable, "-m", "p2pfl_net", "serve", "--state", root, *self.options.net]
        train = [sys.executable, "-m", "p2pfl_train", "run", "--state", root]
        self._daemon = _start("daemon", net, self.state.daemon_log)
        self._trainer = _start(
            "trainer", [*train, "--nice", str(TRAINER_NICE), *self.options.train], self.state.trainer_log
        )

    def boot_done(self) -> markers.BootDone | None:
        """The marker of this life's daemon once its network is up. Raises `StateError`."""
        # The directory was free when we started, so a daemon that holds it is ours.
        return markers.read_boot_done(self.state) if lock.is_held(self.state.daemon_lock) else None

    def death(self) -> Death | None:
        """The process that ended first as far as one can tell, if any has."""
        for child in (self._daemon, self._trainer):
            if child is not None and (code := child.popen.poll()) is not None:
                return Death(child.who, code, child.last_output())
        return None

    def failure(self) -> PairFailed | None:
        """As an error, unless it is the trainer that has done what it was asked to."""
        death = self.death()
        if death is None or (death.who == "trainer" and death.code == 0):
            return None
        return death.failure(self.state)

    def failure_in_stop(self) -> PairFailed | None:
        """After a stop in which nothing was killed: a process that failed instead of ending."""
        for child in self._children():
            code = child.popen.returncode
            if code not in (0, -signal.SIGTERM):  # by SIGTERM: it was stopped before it could listen
                return Death(child.who, code, child.last_output()).failure(self.state)
        return None

    def kill(self) -> None:
        """`kill -9` for both, and waits until they are gone."""
        for child in self._children():
            child.popen.kill()
        for child in self._children():
            child.popen.wait()

    def _children(self) -> list[_Child]:
        return [child for child in (self._daemon, self._trainer) if child is not None]

    @property
    def trainer(self) -> subprocess.Popen[bytes] | None:
        return None if self._trainer is None else self._trainer.popen

    @property
    def daemon(self) -> subprocess.Popen[bytes] | None:
        return None if self._daemon is None else self._daemon.popen


def _start(who: str, arguments: list[str], log: Path) -> _Child:
    # A process group of its own keeps the terminal's Ctrl-C away: who supervises stops them in order.
    with open(log, "ab") as output:
        begin = output.tell()
        popen = subprocess.Popen(
            die_with_parent.command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"},
            process_group=0,
        )
    return _Child(who, popen, log, begin)


def wait_joined(
    pair: Pair, asked: Callable[[], bool], late: Callable[[], None] = lambda: None
) -> markers.BootDone | None:
    """Waits until the pair's network is up; None when `asked` came first.

    The daemon's own --boot-timeout bounds it; `late` is called once when it takes long. Raises `PairFailed`
    when a process ends, `StateError`.
    """
    late_at_s = time.monotonic() + LATE_S
    while not asked():
        if time.monotonic() >= late_at_s:
            late_at_s = math.inf
            late()
        if (marker := pair.boot_done()) is not None:
            return marker
        if (failure := pair.failure()) is not None:
            raise failure
        time.sleep(LOOK_S)
    return None


def stop(
    pairs: Sequence[Pair],
    insisted: Callable[[], bool] = lambda: False,
    trainer_patience_s: float = TRAINER_PATIENCE_S,
) -> bool:
    """Ends all pairs, the trainers first: each takes a last average, for which all daemons must live.

    Waits are bounded; what does not end in time, or when `insisted` says so, is killed. Returns
    whether all ended by themselves. Nothing of the pairs runs after it.
    """
    trainers = [pair.trainer for pair in pairs if pair.trainer is not None]
    daemons = [pair.daemon for pair in pairs if pair.daemon is not None]
    try:
        clean = _end(trainers, trainer_patience_s, insisted)
        return _end(daemons, DAEMON_PATIENCE_S, insisted) and clean
    finally:
        for pair in pairs:
            pair.kill()


def _end(
    processes: Sequence[subprocess.Popen[bytes]], patience_s: float, insisted: Callable[[], bool]
) -> bool:
    for process in processes:
        process.terminate()
    give_up_at_s = time.monotonic() + patience_s
    while any(process.poll() is None for process in processes):
        if insisted() or time.monotonic() >= give_up_at_s:
            for process in processes:
                process.kill()
            return False
        time.sleep(LOOK_S)
    return True
