"""Reads what a daemon, running or stopped, has written: for `p2pfl-net peers` and `status`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl_state import atomic, lock
from p2pfl_state.errors import DirectoryUnusable, MalformedFile
from p2pfl_state.fields import parse_object
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import read_header
from p2pfl_state.withdrawal import is_withdrawn

from p2pfl_net.core.params import Params
from p2pfl_net.core.twins import CONFLICT_EVENT

MAX_PEERS_BYTES = 64 << 20
MAX_HOME_BYTES = 4096
RECENT_EVENTS = 5
ROUND_EVENT = "round_answered"
STARTED_EVENT = "started"
CONFLICT_HOLDS_S = 2 * Params().twin_notice_s
"""A conflict that goes on is told of anew in half this time."""


def read_peers(root: Path) -> dict[str, Any]:
    """The content of `peers.json`: `self` is an object, `peers` a list of objects.

    Raises `StateError` when there is none, or a damaged one.
    """
    state = StateDir(root)
    data = atomic.read_bounded(state.peers, MAX_PEERS_BYTES)
    if data is None:
        raise DirectoryUnusable(f"{root} holds no peer list: is it the --state of a peer that has run?")
    value = parse_object(data, "peers.json")
    listed = value.get("peers")
    sound = isinstance(value.get("self"), dict) and isinstance(listed, list)
    if not sound or not all(isinstance(entry, dict) for entry in listed or ()):
        raise MalformedFile(f"{state.peers} is not a peer list; the daemon writes it anew when it starts")
    return value


def with_tags(value: dict[str, Any], tags: Iterable[str]) -> dict[str, Any]:
    """A peer list of those peers that have all of `tags`."""
    wanted = set(tags)
    return {**value, "peers": [entry for entry in value["peers"] if wanted <= _tags(entry)]}


def _tags(entry: dict[str, Any]) -> set[str]:
    tags = entry.get("tags")
    return {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()


def read_status(root: Path) -> dict[str, Any]:
    """What can be said of a peer from its directory. Raises `StateError`."""
    from p2pfl_state import markers  # as much time as all the rest of `peers`, which needs none

    check_peer(root)
    state = StateDir(root)
    runs = daemon_runs(root)
    boot = markers.read_boot_done(state) if runs else None
    listed, log = _listed(root), _Log.read(state)
    network = _object(listed.get("network"))
    return {
        "state": str(root),
        "daemon": "running" if runs else "stopped",
        "trainer": "running" if lock.is_held(state.trainer_lock) else "stopped",
        "network": "up" if boot is not None else "down",
        "peer_id": _object(listed.get("self")).get("id") if boot is None else boot.peer_id,
        "address": None if boot is None else boot.address,
        "peers": len(listed["peers"]) if listed else None,
        "health": network.get("health"),
        "conflict": log.conflict_text() if runs else None,
        "counters": _object(network.get("counters")),
        "model": _published(state),
        "withdrawn": is_withdrawn(state),
        "trust": _trust(state, log),
        "last_round": _last_round(state),
        "recent_events": list(log.recent),
    }


def check_peer(root: Path) -> None:
    """Raises `StateError` for what is no peer's directory."""
    if atomic.read_bounded(StateDir(root).home, MAX_HOME_BYTES) is None:
        raise DirectoryUnusable(f"{root} is not a peer's state directory: give the --state of one")


def daemon_runs(root: Path) -> bool:
    """Whether the daemon of this directory lives. Raises `StateError`."""
    return lock.is_held(StateDir(root).daemon_lock)


@dataclass
class _Log:
    """What `status` takes from `events.jsonl`, in one pass: it may be long."""

    recent: deque[dict[str, Any]]
    """The last few; of rounds in a row, which would leave no room for anything else, only the last."""
    started: dict[str, Any] | None = None
    conflict: dict[str, Any] | None = None
    """The last sign in this life that another process uses the same key."""

    @classmethod
    def read(cls, state: StateDir) -> _Log:
        log = cls(deque(maxlen=RECENT_EVENTS))
        for event in atomic.read_json_lines(state.events):
            name = event.get("event")
            if log.recent and name == ROUND_EVENT == log.recent[-1].get("event"):
                log.recent.pop()
            log.recent.append(event)
            if name == CONFLICT_EVENT:
                log.conflict = event
            elif name == STARTED_EVENT:
                log.started, log.conflict = event, None
        return log

    def conflict_text(self) -> str | None:
        """What to say of a conflict that goes on."""
        if self.conflict is None:
            return None
        at, address = self.conflict.get("time"), self.conflict.get("address")
        if isinstance(at, int | float) and time.time() - at > CONFLICT_HOLDS_S:
            return None
        return f"another process uses this peer's key, at {address or 'an unknown address'}"


def _trust(state: StateDir, log: _Log) -> dict[str, Any]:
    """How many peers a person decided on, and how many ask for it."""
    from p2pfl_state import trust as files

    try:
        decided, asking = files.read_trust(state), files.read_requests(state)
    except MalformedFile as error:
        return {"damaged": str(error)}
    return {
        "served": None if log.started is None else log.started.get("trust"),
        "approved": len(decided.approved),
        "revoked": len(decided.revoked),
        "ask": len(decided.undecided(asking)),
    }


def _listed(root: Path) -> dict[str, Any]:
    """The peer list; empty when there is none, or a damaged one."""
    try:
        return read_peers(root)
    except (DirectoryUnusable, MalformedFile):
        return {}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _last_round(state: StateDir) -> dict[str, Any] | None:
    from p2pfl_state import markers

    try:
        answer = markers.read_answer(state)
    except MalformedFile as error:  # as after a crash of the machine: the next round replaces it
        return {"damaged": str(error)}
    if answer is None:
        return None
    return {
        "round": answer.round,
        "models": len(answer.models),
        "failed": len(answer.failed),
        "seconds": answer.seconds,
    }


def _published(state: StateDir) -> dict[str, Any] | None:
    try:
        header = read_header(state.model)
        manifest = header.manifest()
    except FileNotFoundError:
        return None
    except MalformedFile as error:
        return {"damaged": str(error)}
    return {
        "version": manifest.version,
        "task": manifest.task,
        "weights": manifest.weights,
        "samples": manifest.samples,
        "size_bytes": header.size_bytes,
        "metrics": dict(manifest.metrics),
    }
