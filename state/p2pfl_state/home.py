"""Whose directory this is: one host, one peer, one place.

The daemon writes `home.json` when it first uses a directory: the host and the folder's inode. A copy
has another inode, a directory on a shared disk another host; both are refused, for two peers with
one key would be taken for a liar.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from p2pfl_state import atomic
from p2pfl_state.errors import DirectoryUnusable, ForeignDirectory
from p2pfl_state.fields import Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

PRIVATE = 0o700
"""Of a directory that we make: models and what others said are for its owner."""


def host_id() -> str:
    """A text that tells this machine from others: systemd's machine id, else the host name."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        machine = ""
    return machine or socket.gethostname()


def prepare(state: StateDir) -> None:
    """Makes the directory if needed. Raises `DirectoryUnusable` when it cannot be written."""
    try:
        state.root.parent.mkdir(parents=True, exist_ok=True)
        state.root.mkdir(mode=PRIVATE, exist_ok=True)
        state.aggregation.mkdir(exist_ok=True)
        probe = state.root / ".writable.tmp"
        probe.unlink(missing_ok=True)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        probe.unlink(missing_ok=True)  # the pair's other process may make and remove it too
    except OSError as error:
        raise atomic.unusable(state.root, error) from error


def claim(state: StateDir) -> None:
    """Marks the directory as this host's on first use, and checks it after. For the daemon.

    Raises `ForeignDirectory` for another host's directory or a copy.
    """
    if not check(state):
        atomic.write_json(
            state.home,
            {"contract": CONTRACT_VERSION, "host": host_id(), "inode": _inode(state)},
        )


def check(state: StateDir) -> bool:
    """Whether the directory has been claimed. Raises `ForeignDirectory`, `MalformedFile`."""
    data = atomic.read_bounded(state.home, 4096)
    if data is None:
        return False
    fields = Fields(parse_object(data, "home.json"), "home.json")
    fields.contract()
    if fields.text("host") != host_id():
        raise ForeignDirectory(
            f"{state.root} belongs to another host: choose another --state DIR, such as "
            f"state/{socket.gethostname()}-PORT on a shared disk; or, if that host is gone for good, or is "
            "this one under another name (a container made anew), delete home.json in it"
        )
    if fields.integer("inode", high=2**64) != _inode(state):
        raise ForeignDirectory(
            f"{state.root} is a copy of another peer's directory: choose another --state DIR; or, if the "
            "original is gone for good, delete home.json in it"
        )
    return True


def _inode(state: StateDir) -> int:
    try:
        return state.root.stat().st_ino
    except OSError as error:
        raise DirectoryUnusable(f"{state.root}: {error.strerror}: choose another --state DIR") from error
