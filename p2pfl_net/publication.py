"""`p2pfl-net unpublish` and `publish`: a person takes the published model back, and gives it again."""

from __future__ import annotations

import time
from pathlib import Path

from p2pfl_state import withdrawal
from p2pfl_state.layout import StateDir

from p2pfl_net.inspect import check_peer, daemon_runs


def withdraw(root: Path) -> str:
    """Marks the model as withdrawn; what to say of it. Raises `StateError`."""
    check_peer(root)
    if withdrawal.is_withdrawn(StateDir(root)):
        return f"it was withdrawn before: nothing is served until p2pfl-net publish --state {root}"
    withdrawal.withdraw(StateDir(root), time.time())
    return f"withdrawn: nothing is served until p2pfl-net publish --state {root}{_when(root)}"


def restore(root: Path) -> str:
    """Takes the mark away; what to say of it. Raises `StateError`."""
    check_peer(root)
    state = StateDir(root)
    if not withdrawal.is_withdrawn(state):
        return "nothing was withdrawn: what the trainer publishes is served"
    withdrawal.restore(state)
    return f"what the trainer publishes is served again{_when(root)}"


def _when(root: Path) -> str:
    return "" if daemon_runs(root) else ", once the daemon runs"
