"""A peer's daemon through several lives on one state directory, and the network of one test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from p2pfl_state import atomic, markers
from p2pfl_state.layout import StateDir

from tests.processes import PATIENCE_S, ROOT, Process, Processes, wait_for

COMMAND = (sys.executable, "-m", "p2pfl_net")


def run_command(*arguments: str | Path, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """`p2pfl-net` with `arguments`, run to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=timeout_s
    )


class Peer:
    """One peer's daemon. Its port is its own for the whole test, also while it does not run."""

    def __init__(self, processes: Processes, root: Path, prefix: Sequence[str] = ()) -> None:
        """`prefix`: a command that runs the daemon somewhere, such as in another network namespace."""
        self.state = StateDir(root)
        self.port = processes.port()
        self.lives: list[Process] = []
        self._processes = processes
        self._prefix = prefix
        self._old_instance: str | None = None

    # a life ----------------------------------------------------------------------------------------

    def launch(self, *options: str | Path, host: str = "127.0.0.1") -> Process:
        """Starts the process and waits for nothing."""
        stale = self.boot_done()
        self._old_instance = None if stale is None else stale.instance
        line = [*self._prefix, *COMMAND, "serve", "--host", host, "--port", str(self.port)]
        name = f"daemon {self.state.root.name}"
        process = self._processes.start(name, [*line, "--state", self.state.root, *options])
        self.lives.append(process)
        return process

    def start(self, *options: str | Path, boot: Peer | None = None, host: str = "127.0.0.1") -> None:
        """Starts the process and waits until its network is up."""
        if boot is not None:
            options = (*options, "--boot", boot.address)
        self.launch(*options, host=host)
        self.wait_up()

    def wait_up(self) -> None:
        """Waits until the process that runs now has said so itself."""

        def up() -> bool:
            assert self.process.alive, f"ended with {self.process.wait()}: {self.process.output()}"
            marker = self.boot_done()
            return marker is not None and marker.instance != self._old_instance

        wait_for(up, what=f".BOOT_DONE of {self.state.root}")
        self.port = int(self.events("started")[-1]["port"])

    @property
    def process(self) -> Process:
        return self.lives[-1]

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        return self.process.stop()

    def kill(self) -> None:
        """SIGKILL: nothing is tidied."""
        self.process.kill()

    def freeze(self) -> None:
        self.process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.signal(signal.SIGCONT)

    # what it says ----------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peer_id(self) -> str:
        return str(self.events("started")[-1]["peer"])

    def boot_done(self) -> markers.BootDone | None:
        return markers.read_boot_done(self.state)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Its events of this name, oldest first; of all names without one."""
        return [e for e in atomic.read_json_lines(self.state.events) if name in (None, e.get("event"))]

    def peers_file(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.state.peers.read_bytes())
        return value

    def known(self) -> set[str]:
        """The ids in its peer list."""
        return {entry["id"] for entry in self.peers_file()["peers"]}

    def resident_peak_kb(self) -> int:
        """The most memory that its process ever had resident."""
        status = Path("/proc", str(self.process.pid), "status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    # waiting ---------------------------------------------------------------------------------------

    def wait_event(self, name: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """The `count`-th event of this name with these fields."""

        def found() -> dict[str, Any] | None:
            hits = [e for e in self.events(name) if all(e.get(k) == v for k, v in fields.items())]
            return hits[count - 1] if len(hits) >= count else None

        return wait_for(found, what=f"event {name} {fields} of {self.state.root}")

    def wait_known(self, ids: set[str]) -> None:
        """Waits until the peer list holds exactly `ids`."""
        shown = sorted(peer_id[:8] for peer_id in ids)
        wait_for(lambda: self.known() == ids, what=f"the list of {self.state.root} being {shown}")

    def wait_published(self, ids: Iterable[str]) -> None:
        """Waits until the list says that these peers have published a model, and live."""
        wanted = set(ids)

        def told() -> bool:
            peers = self.peers_file()["peers"]
            return wanted <= {e["id"] for e in peers if e["published"] and e["state"] == "alive"}

        wait_for(told, what=f"{self.state.root} hearing of {len(wanted)} published models")


class Network:
    """The peers of one test."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.folder = folder
        self._processes = processes
        self._peers: list[Peer] = []

    def peer(self, name: str | None = None, prefix: Sequence[str] = ()) -> Peer:
        """A peer whose daemon has not been started."""
        made = Peer(self._processes, self.folder / (name or f"peer{len(self._peers)}"), prefix)
        self._peers.append(made)
        return made

    def start(self, *options: str | Path, boot: Peer | None = None) -> Peer:
        """A peer whose network is up."""
        made = self.peer()
        made.start(*options, boot=boot)
        return made

    def chain(self, count: int) -> list[Peer]:
        """Peers that know each other, each booted to the one before."""
        started: list[Peer] = []
        for _ in range(count):
            started.append(self.start(boot=started[-1] if started else None))
        wait_complete(started)
        return started

    def check_sound(self) -> None:
        """No daemon may have raised what nobody caught."""
        for peer in self._peers:
            for life in peer.lives:
                assert "Traceback" not in life.output(), f"{peer.state.root}:\n{life.output()}"


def wait_complete(peers: Sequence[Peer]) -> None:
    """Waits until each knows all the others and nobody else, and suspects none."""
    ids = {peer.peer_id for peer in peers}

    def complete(peer: Peer) -> bool:
        entries = peer.peers_file()["peers"]
        return {e["id"] for e in entries if e["state"] == "alive"} == ids - {peer.peer_id} == peer.known()

    for peer in peers:
        wait_for(partial(complete, peer), what=f"the list of {peer.state.root} being complete")
