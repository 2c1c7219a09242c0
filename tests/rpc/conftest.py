"""Fixtures of the tests with real daemons."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Processes
from tests.rpc.machines import Machine, make_machines
from tests.rpc.peers import Network


@pytest.fixture
def network(processes: Processes, tmp_path: Path) -> Iterator[Network]:
    """Daemons on loopback. After the test, none of them may have shown a traceback."""
    made = Network(processes, tmp_path)
    yield made
    made.check_sound()


@pytest.fixture(scope="module")
def shared_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Daemons that the tests of one file share: for what must leave no trace in them."""
    folder = tmp_path_factory.mktemp("shared")
    with Processes(folder / "outputs") as processes:
        made = Network(processes, folder)
        yield made
        made.check_sound()


@pytest.fixture
def machines(processes: Processes) -> tuple[Machine, Machine]:
    """Two machines at 10.77.0.1 and 10.77.0.2, fd77::1 and fd77::2, with nothing but a cable between them."""
    return make_machines(processes)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
