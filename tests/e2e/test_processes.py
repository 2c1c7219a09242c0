"""The helpers that the tests of real processes stand on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import _marked
from tests.processes import Processes, wait_for

PARENT = """
import subprocess, sys
from scripts import die_with_parent
child = subprocess.Popen(die_with_parent.command([sys.executable, "-c", "import signal; signal.pause()"]))
print("child", child.pid, flush=True)
child.wait()
"""


def _whole_line(output: str) -> str | None:
    """The first line once it has its end: unbuffered, a print writes its parts one by one."""
    line, newline, _ = output.partition("\n")
    return line if newline else None


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second when it ends between open and read
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel")
def test_a_child_dies_with_its_killed_parent(processes: Processes) -> None:
    parent = processes.start_python("parent", "-c", PARENT)
    line = wait_for(lambda: _whole_line(parent.output()))
    child = int(line.split()[1])
    assert _runs(child)
    parent.kill()
    wait_for(lambda: not _runs(child), what="the child's end")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_lost_its_parents_is_found_by_its_mark(processes: Processes) -> None:
    mark = os.environ["P2PFL_TEST"]
    sleeper = processes.start_python(
        "sleeper", "-c", "import signal; print('up', flush=True); signal.pause()"
    )
    sleeper.wait_output("up")
    assert sleeper.pid in _marked(mark)
    assert not _marked("another")
    sleeper.signal(signal.SIGTERM)
    assert sleeper.wait() == -signal.SIGTERM
    assert not _marked(mark)


def test_a_daemon_is_ready_when_the_helper_says_so(processes: Processes, tmp_path: Path) -> None:
    first = processes.start_daemon(tmp_path / "a")
    second = processes.start_daemon(tmp_path / "b", boot=[first.address])
    assert second.wait_ready().peers == 1
    assert second.port != first.port
    assert first.stop() == 0
    assert second.stop() == 0
