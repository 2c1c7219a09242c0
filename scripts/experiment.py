"""An experiment: pairs on this machine, started one after another, each booted to the one before.

What `make demo` and `make paper` share. The peers listen on loopback, on ports that the system chooses.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pfl_state import atomic, lock
from p2pfl_state.errors import DirectoryInUse
from p2pfl_state.layout import StateDir

from scripts import pairs
from scripts.failures import FolderInUse
from scripts.watching import Watcher

_MARK = "experiment.json"
"""In a folder that an experiment made, and that the next one may replace."""


@contextmanager
def fresh_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` anew, for this process alone while entered.

    Raises `FolderInUse` when something runs in it or it is not an experiment's, `StateError`.
    """
    if not folder.name:
        raise FolderInUse(f"{folder} is no folder of its own: choose another with OUT=DIR")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.unusable(folder, error) from error
    alone = lock.ProcessLock(folder.with_name(f".{folder.name}.lock"))
    try:
        alone.acquire()
    except DirectoryInUse:
        raise _in_use(folder) from None
    try:
        try:
            _replace(folder)
        except OSError as error:
            raise atomic.unusable(folder, error) from error
        yield
    finally:
        alone.release()


def _replace(folder: Path) -> None:
    if folder.exists():
        if any(folder.iterdir()) and not (folder / _MARK).exists():
            raise FolderInUse(f"{folder} is not from an earlier run: choose another folder with OUT=DIR")
        if any(_runs(StateDir(path)) for path in folder.rglob("*") if path.is_dir()):
            raise _in_use(folder)
        shutil.rmtree(folder)
    folder.mkdir()
    atomic.write_json(folder / _MARK, {"started": round(time.time(), 3)})


def _in_use(folder: Path) -> FolderInUse:
    return FolderInUse(f"peers run in {folder}: stop them, or choose another folder with OUT=DIR")


def _runs(state: StateDir) -> bool:
    return lock.is_held(state.daemon_lock) or lock.is_held(state.trainer_lock)


@dataclass
class Member:
    """One peer of an experiment."""

    name: str
    pair: pairs.Pair
    watcher: Watcher
    started_at: float
    """Unix seconds at which its processes were started."""
    address: str = ""
    """Where it is reached; empty until its network is up."""


class Network:
    """The peers of an experiment. A context manager: leaving it ends them all."""

    def __init__(self, folder: Path, insisted: Callable[[], bool]) -> None:
        self.members: list[Member] = []
        self._folder = folder
        self._insisted = insisted

    def start(self, name: str, train: Sequence[str], asked: Callable[[], bool]) -> Member | None:
        """Starts a peer and waits until it has joined through the one before; None if `asked` came first.

        Raises `PairFailed`, `StateError`.
        """
        net = ["--host", "127.0.0.1", "--port", "0"]
        if self.members:
            net += ["--boot", self.members[-1].address]
        pair = pairs.Pair(pairs.PairOptions(self._folder / name, tuple(net), tuple(train)))
        member = Member(name, pair, Watcher(pair.state), time.time())
        self.members.append(member)
        pair.start()
        marker = pairs.wait_joined(pair, asked)
        if marker is None:
            return None
        member.address = marker.address
        return member

    def check(self) -> None:
        """Raises `PairFailed` when a process has ended that should not have."""
        for member in self.members:
            if (failure := member.pair.failure()) is not None:
                raise failure

    @property
    def done(self) -> bool:
        """Whether all trainers have ended by themselves."""
        return all(member.pair.death() is not None for member in self.members)

    def stop(self, trainer_patience_s: float) -> bool:
        """Ends all, trainers first; whether all ended by themselves. Raises `PairFailed`."""
        clean = pairs.stop([member.pair for member in self.members], self._insisted, trainer_patience_s)
        for member in self.members:
            if clean and (failure := member.pair.failure_in_stop()) is not None:
                raise failure
            member.watcher.look()
        return clean

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *error: object) -> None:
        for (
            member
        ) in self.members:  # harmless after a stop; after an error or a second Ctrl-C there is no patience
            member.pair.kill()
