"""Whether a person has withdrawn the published model: the file `.WITHDRAWN` is there, or it is not."""

from __future__ import annotations

import os

from p2pfl_state import atomic
from p2pfl_state.layout import CONTRACT_VERSION, StateDir


def is_withdrawn(state: StateDir) -> bool:
    """Where that cannot be told, it counts as withdrawn: then nothing is served."""
    try:
        os.lstat(state.withdrawn)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def withdraw(state: StateDir, time: float) -> None:
    """`time` in Unix seconds. Raises `DirectoryUnusable`."""
    atomic.write_json(state.withdrawn, {"contract": CONTRACT_VERSION, "time": round(time, 3)})


def restore(state: StateDir) -> None:
    """Harmless when nothing was withdrawn. Raises `DirectoryUnusable`."""
    atomic.remove(state.withdrawn)
