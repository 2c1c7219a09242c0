"""Machines for tests: network namespaces that a cable joins."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.processes import Process, Processes, wait_for

NOBODY = "02:00:00:00:00:99"
"""A hardware address that no interface has."""


@dataclass(frozen=True)
class Machine:
    """A network namespace; it lives as long as the process that holds it."""

    pid: int
    number: int

    @property
    def prefix(self) -> list[str]:
        """A command that runs another on this machine."""
        return ["nsenter", "--target", str(self.pid), "--net", "--"]

    def address(self, family: int) -> str:
        """Its address on the cable."""
        return f"10.77.0.{self.number}" if family == 4 else f"fd77::{self.number}"

    def run(self, *command: str) -> None:
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot set up two machines: {' '.join(command)}: {done.stderr.strip()}")


def is_apart(holder: Process) -> bool:
    """Whether the process is in a network namespace of its own."""
    if not holder.alive:
        pytest.skip(f"no network namespaces here: {holder.output().strip()}")
    return Path(f"/proc/{holder.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def make_machines(processes: Processes) -> tuple[Machine, Machine]:
    """Two machines at 10.77.0.1 and 10.77.0.2, fd77::1 and fd77::2."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"two machines need root, and {', '.join(missing) or 'iproute2 and util-linux'}")
    made = []
    for number in (1, 2):
        holder = processes.start(f"machine {number}", ["unshare", "--net", "sleep", "infinity"])
        wait_for(partial(is_apart, holder), what="a network namespace")
        made.append(Machine(holder.pid, number))
    first, second = made
    first.run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(second.pid))
    for machine in made:
        machine.run("ip", "link", "set", "lo", "up")
        machine.run("ip", "address", "add", f"{machine.address(4)}/24", "dev", "cable")
        machine.run("ip", "address", "add", f"{machine.address(6)}/64", "dev", "cable", "nodad")
        machine.run("ip", "link", "set", "cable", "up")
    return first, second


def cut_cable(machines: tuple[Machine, Machine]) -> None:
    """Loses every packet between the two from now on. No interface goes down, so that nobody is told."""
    first, second = machines
    for machine, beyond in ((first, second), (second, first)):
        for family in (4, 6):
            lost = ("lladdr", NOBODY, "dev", "cable", "nud", "permanent")
            machine.run("ip", "neighbour", "replace", beyond.address(family), *lost)


def mend_cable(machines: tuple[Machine, Machine]) -> None:
    """Carries packets again."""
    first, second = machines
    for machine, beyond in ((first, second), (second, first)):
        for family in (4, 6):
            machine.run("ip", "neighbour", "delete", beyond.address(family), "dev", "cable")
