"""Fixtures of the tests with real daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Processes
from tests.rpc.peers import Network


@pytest.fixture
def network(processes: Processes, tmp_path: Path) -> Iterator[Network]:
    """Daemons on loopback. After the test, none of them may have shown a traceback."""
    made = Network(processes, tmp_path)
    yield made
    made.check_sound()
