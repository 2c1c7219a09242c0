"""Real processes for tests: started with one call, waited for by conditions, never left behind.

The fixture `processes` of `conftest.py` gives a `Processes`. What the processes wrote is printed when
it is closed, so that pytest shows it beside a failure.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from p2pfl_state import lock, markers
from p2pfl_state.layout import StateDir

from scripts import die_with_parent

T = TypeVar("T")
P = TypeVar("P", bound="Process")

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0
"""How long a condition may take: far above what an idle machine needs, for a busy one."""
TORCH_PATIENCE_S = 240.0
"""The same for what waits for trainers: a busy machine takes a minute for several to load their libraries."""
LOOK_S = 0.02
SHOWN_CHARACTERS = 4000
QUIET: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "NO_COLOR": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # hundreds of processes should not each compile the sources anew
}


def wait_for(
    condition: Callable[[], T | None], timeout_s: float = PATIENCE_S, what: str = "the condition"
) -> T:
    """The first value of `condition` that is neither None nor False; fails the test after `timeout_s`."""
    give_up_at_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found is not None and found is not False:
            return found
        if time.monotonic() >= give_up_at_s:
            raise AssertionError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(LOOK_S)


def wait_for_trainer(condition: Callable[[], T | None], what: str) -> T:
    """As `wait_for`, where trainers must do their part."""
    return wait_for(condition, TORCH_PATIENCE_S, what)


@dataclass
class Process:
    """One started program; its standard output and error go to one file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    patience_s: float = PATIENCE_S
    """How long it is waited for, unless told otherwise."""

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """All that it has written so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; harmless when it has ended."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and waits until it is gone."""
        self.popen.kill()
        self.popen.wait()

    def wait(self, timeout_s: float | None = None) -> int:
        """Its exit code (-N for signal N); fails the test when it goes on."""
        timeout_s = self.patience_s if timeout_s is None else timeout_s
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout_s:g} s:\n{self.output()}") from None

    def stop(self, timeout_s: float | None = None) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait_output(self, text: str, timeout_s: float | None = None) -> str:
        """Waits until it has written `text`; all its output. Fails when it ends without."""
        timeout_s = self.patience_s if timeout_s is None else timeout_s

        def written() -> str | None:
            ended, output = not self.alive, self.output()
            if text in output:
                return output
            assert not ended, f"{self.name} ended without {text!r}:\n{output}"
            return None

        return wait_for(written, timeout_s, f"{text!r} of {self.name}")


@dataclass
class Daemon(Process):
    """A `p2pfl-net serve`."""

    state: StateDir = field(kw_only=True)

    def ready(self) -> markers.BootDone | None:
        """Its `.BOOT_DONE` if its network is up now; fails when it has ended."""
        assert self.alive, f"{self.name} ended with {self.popen.returncode}:\n{self.output()}"
        # In this order: who holds the lock has removed the marker of an earlier life.
        return markers.read_boot_done(self.state) if lock.is_held(self.state.daemon_lock) else None

    def wait_ready(self) -> markers.BootDone:
        return wait_for(self.ready, self.patience_s, f".BOOT_DONE of {self.name}")

    @property
    def address(self) -> str:
        """`host:port` on loopback; waits until the network is up."""
        return f"127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return int(self.wait_ready().address.rpartition(":")[2])

    @property
    def peer_id(self) -> str:
        return self.wait_ready().peer_id


class Processes:
    """All processes of one test. A context manager; leaving it kills what still runs."""

    def __init__(self, folder: Path) -> None:
        """`folder` gets the outputs of the processes."""
        self._folder = folder
        self._started: list[Process] = []
        self._ports: list[socket.socket] = []
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        name: str,
        arguments: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        patience_s: float = PATIENCE_S,
    ) -> Process:
        """Starts a program from the main thread of the test; it dies with the test's process."""
        log, popen = self._spawn(name, [str(argument) for argument in arguments], env or {}, cwd)
        return self._keep(Process(name, popen, log, patience_s))

    def start_python(
        self,
        name: str,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Process:
        """`python ARGUMENTS`, with the interpreter that runs the tests."""
        return self.start(name, [sys.executable, *arguments], env=env, patience_s=patience_s)

    def start_script(
        self, command: str, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> Process:
        """`python -m scripts COMMAND ARGUMENTS`: it starts trainers, or ends them."""
        line = ("-m", "scripts", command, *arguments)
        return self.start_python(command, *line, env=env, patience_s=TORCH_PATIENCE_S)

    def start_daemon(
        self,
        state: Path,
        *options: str,
        port: int = 0,
        boot: Sequence[str] = (),
        host: str = "127.0.0.1",
        ready: bool = True,
    ) -> Daemon:
        """`p2pfl-net serve` on loopback; with `ready` waits until its network is up."""
        boots = [part for address in boot for part in ("--boot", address)]
        line = [sys.executable, "-m", "p2pfl_net", "serve", "--host", host, "--port", str(port)]
        line += ["--state", str(state), *boots, *options]
        log, popen = self._spawn(f"daemon {state.name}", line, {}, ROOT)
        daemon = Daemon(f"daemon {state.name}", popen, log, state=StateDir(state))
        self._keep(daemon)
        if ready:
            daemon.wait_ready()
        return daemon

    def start_trainer(self, state: Path, *options: str) -> Process:
        """`p2pfl-train run` on one torch thread."""
        line = ["-m", "p2pfl_train", "run", "--state", str(state), "--threads", "1", *options]
        return self.start_python(f"trainer {state.name}", *line, patience_s=TORCH_PATIENCE_S)

    def port(self) -> int:
        """A port of loopback that nobody else is given before the end of the test.

        It is bound and not listened on: a connection is refused, and a server that sets SO_REUSEADDR, as
        gRPC and sshd do, may listen there.
        """
        held = socket.socket()
        self._ports.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])

    def _spawn(
        self, name: str, arguments: list[str], env: Mapping[str, str], cwd: Path
    ) -> tuple[Path, subprocess.Popen[bytes]]:
        log = self._folder / f"{len(self._started):02}-{name.replace(' ', '-').replace('/', '-')}.log"
        with open(log, "wb") as output:
            popen = subprocess.Popen(
                die_with_parent.command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **QUIET, **env},
                cwd=cwd,
                process_group=0,
            )
        return log, popen

    def _keep(self, process: P) -> P:
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kills what runs, prints what each process wrote, and gives the ports back."""
        for process in self._started:
            process.popen.kill()
        for process in self._started:
            process.popen.wait()
            print(f"--- {process.name} ({process.popen.returncode})\n{process.output()[-SHOWN_CHARACTERS:]}")
        for held in self._ports:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
