"""malloc settings: freed buffers stay for the next burst instead of going back to the kernel."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from p2pfl_net.rpc import allocator
from tests.processes import ROOT

FAULTS = """
import resource
from p2pfl_net.rpc import allocator
allocator.tune()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
burst = lambda: [bytearray(4 << 20) for _ in range(6)]
burst()
before = faults()
for _ in range(50):
    burst()
print(faults() - before)
"""
PAGES_OF_ONE_BURST = 6 * (4 << 20) // 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_buffers_are_not_mapped_anew_for_each_burst() -> None:
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(ran.stdout) < PAGES_OF_ONE_BURST


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    allocator.tune()
