"""Starts a pair that outlives its starter, and ends exactly that one: what `make launch` runs on a host.

`launcher.json` in the state directory remembers the process that supervises the pair, with the moment of
its start: a process id that the system has given to another program since is never signalled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pfl_state import atomic, home, lock, markers
from p2pfl_state.errors import DirectoryInUse
from p2pfl_state.fields import Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

from p2pfl_net.usage import Parser
from scripts import pairs
from scripts.failures import ScriptFailed
from scripts.signals import EXIT_INTERRUPTED, StopSignals

JOIN_PATIENCE_S = 120.0
"""For the network to be up; the daemon itself gives up trying its boot peers after a minute."""
TRAIN_PATIENCE_S = 60.0
"""For the first cycle: what makes a trainer fail at its start shows before it, unless it is very slow."""
STOP_PATIENCE_S = pairs.TRAINER_PATIENCE_S + pairs.DAEMON_PATIENCE_S + 15.0
"""What supervises a pair bounds its own stop by the first two."""
GONE_PATIENCE_S = 10.0
"""For the kernel to end the processes of a supervisor that was killed."""
EPILOG = """start: the options of `run` follow after --. exit codes: 0 done; 1 not started, or not ended in
time; 3 the state directory cannot be used"""


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(program, __doc__, EPILOG)
    parser.add_argument("command", choices=("start", "check", "stop"), help="each prints a JSON object")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the pair's state directory")
    return parser


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `ScriptFailed`, `StateError`."""
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    own, passed_on = arguments[:split], arguments[split + 1 :]
    options = build_parser(program).parse_args(own)
    state = StateDir(options.state)
    if options.command == "stop":
        answer: dict[str, object] = {"ended": stop(state)}
    elif options.command == "check":
        answer = {"training": check(state, lambda: signals.asked)}
    else:
        try:
            marker = start(state, passed_on, lambda: signals.asked)
        except DirectoryInUse:
            print(json.dumps({"in_use": True}))
            raise
        if marker is None:
            return EXIT_INTERRUPTED
        answer = {"peer_id": marker.peer_id, "address": marker.address}
    print(json.dumps(answer))
    return 0


def start(state: StateDir, options: Sequence[str], asked: Callable[[], bool]) -> markers.BootDone | None:
    """Starts the pair in a session of its own and waits until its network is up.

    None when `asked` came first; then, and after an error, nothing of it runs. Raises `ScriptFailed`
    with the last lines of what the supervisor said, `StateError`: `DirectoryInUse` also while another
    start is under way, whose record and log this one would replace.
    """
    home.prepare(state)
    with _held(state):
        return _start(state, options, asked)


def _start(state: StateDir, options: Sequence[str], asked: Callable[[], bool]) -> markers.BootDone | None:
    for path in (state.daemon_lock, state.trainer_lock):
        if lock.is_held(path):
            raise DirectoryInUse(f"{state.root} is in use by another {path.stem}: stop it first")
    earlier = _Record.read(state)
    if earlier is not None and start_of(earlier.pid) == earlier.started:
        raise DirectoryInUse(
            f"{state.root} is in use by a pair started before, process {earlier.pid}: stop it first"
        )
    with open(state.launcher_log, "wb") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "scripts", "run", f"--state={state.root}", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = start_of(supervisor.pid)
    give_up_at_s = time.monotonic() + JOIN_PATIENCE_S
    marker = None
    try:
        if started is not None:
            _Record(supervisor.pid, started, _size(state.metrics)).write(state)
        while not asked():
            if supervisor.poll() is not None:
                raise ScriptFailed(_last_words(state) or f"it ended with {supervisor.returncode}")
            if lock.is_held(state.daemon_lock) and (marker := markers.read_boot_done(state)) is not None:
                return marker
            if time.monotonic() >= give_up_at_s:
                raise ScriptFailed(
                    f"its network is not up after {JOIN_PATIENCE_S:g} s; see {state.root}/daemon.log"
                )
            time.sleep(pairs.LOOK_S)
        return None
    finally:
        if marker is None:
            if started is not None:
                _end_pair(state, supervisor.pid, started)
            supervisor.wait()
            atomic.remove(state.launcher)


@contextlib.contextmanager
def _held(state: StateDir) -> Iterator[None]:
    """While `launcher.json` is ours to replace or remove. Raises `DirectoryInUse`."""
    held = lock.ProcessLock(state.launcher_lock)
    held.acquire()
    try:
        yield
    finally:
        held.release()


def check(state: StateDir, asked: Callable[[], bool]) -> bool:
    """Waits until the pair has finished a cycle; false when it lives and has not, in time or before `asked`.

    Raises `ScriptFailed` when it has ended, with the last lines of what the supervisor said; `StateError`.
    """
    record = _Record.read(state)
    give_up_at_s = time.monotonic() + TRAIN_PATIENCE_S
    while True:
        if record is None or start_of(record.pid) != record.started:
            raise ScriptFailed(_last_words(state) or "it has ended")
        if _size(state.metrics) > record.metrics_bytes:
            return True
        if asked() or time.monotonic() >= give_up_at_s:
            return False
        time.sleep(pairs.LOOK_S)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _last_words(state: StateDir) -> str:
    """What the supervisor said of its end, without the news before."""
    text = state.launcher_log.read_text(errors="replace") if state.launcher_log.exists() else ""
    return text[text.find("run: ") :].removeprefix("run: ").strip() if "run: " in text else text.strip()


def stop(state: StateDir) -> bool:
    """Ends the pair that `launcher.json` names; whether it was running. Waits are bounded.

    Also one that is just being started. Raises `ScriptFailed` when something still holds the directory,
    `StateError`.
    """
    record = _Record.read(state)
    if record is None:
        return False
    ended = _end_pair(state, record.pid, record.started)
    # A start that is under way notices the end of what it started, and removes the record itself.
    with contextlib.suppress(DirectoryInUse), _held(state):
        if _Record.read(state) == record:
            atomic.remove(state.launcher)
    return ended


def _end_pair(state: StateDir, pid: int, started: str) -> bool:
    """Ends what supervises the pair, and with it the pair; whether it was running."""
    ended = _end(pid, started)
    if ended and not _wait(lambda: not _in_use(state), GONE_PATIENCE_S):
        raise ScriptFailed(f"a process that was not launched here uses {state.root}: it was left alone")
    return ended


def _in_use(state: StateDir) -> bool:
    return lock.is_held(state.daemon_lock) or lock.is_held(state.trainer_lock)


@dataclass(frozen=True)
class _Record:
    """`launcher.json`."""

    pid: int
    started: str
    """As `start_of` tells it."""
    metrics_bytes: int
    """Size of `metrics.jsonl` before this life."""

    def write(self, state: StateDir) -> None:
        atomic.write_json(state.launcher, {"contract": CONTRACT_VERSION, **vars(self)})

    @classmethod
    def read(cls, state: StateDir) -> _Record | None:
        data = atomic.read_bounded(state.launcher, 4096)
        if data is None:
            return None
        fields = Fields(parse_object(data, "launcher.json"), "launcher.json")
        fields.contract()
        return cls(fields.integer("pid", low=1), fields.text("started"), fields.integer("metrics_bytes"))


def _end(pid: int, started: str) -> bool:
    """SIGTERM, then SIGKILL, to the process of that id and start; whether there was one."""
    try:
        handle = os.pidfd_open(pid)  # from here on the id cannot come to mean another process
    except ProcessLookupError:
        return False
    try:
        if start_of(pid) != started:
            return False
        for number, patience_s in ((signal.SIGTERM, STOP_PATIENCE_S), (signal.SIGKILL, GONE_PATIENCE_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if _wait(lambda: start_of(pid) != started, patience_s):
                return True
    finally:
        os.close(handle)
    raise ScriptFailed(f"process {pid} does not end, not even by SIGKILL")


def _wait(condition: Callable[[], bool], patience_s: float) -> bool:
    give_up_at_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() >= give_up_at_s:
            return False
        time.sleep(pairs.LOOK_S)
    return True


def start_of(pid: int) -> str | None:
    """The boot of the machine and the clock tick since at which process `pid` started; None if it has ended.

    From proc(5): the second field is the program's name in parentheses, the 22nd the start time.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] in "ZX" else f"{boot} {after_name[19]}"
