"""Reads what a daemon, running or stopped, has written: for `p2pfl-net peers` and `status`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
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
    listed = _listed(root)
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
        "conflict": _conflict(state) if runs else None,
        "counters": _object(network.get("counters")),
        "model": _published(state),
        "withdrawn": is_withdrawn(state),
        "trust": _trust(state),
        "last_round": _last_round(state),
        "recent_events": _recent_events(state),
    }


def check_peer(root: Path) -> None:
    """Raises `StateError` for what is no peer's directory."""
    if atomic.read_bounded(StateDir(root).home, MAX_HOME_BYTES) is None:
        raise DirectoryUnusable(f"{root} is not a peer's state directory: give the --state of one")


def daemon_runs(root: Path) -> bool:
    """Whether the daemon of this directory lives. Raises `StateError`."""
    return lock.is_held(StateDir(root).daemon_lock)


def _recent_events(state: StateDir) -> list[dict[str, Any]]:
    """The last few; of rounds in a row, which would leave no room for anything else, only the last."""
    recent: deque[dict[str, Any]] = deque(maxlen=RECENT_EVENTS)
    for event in atomic.read_json_lines(state.events):
        if recent and event.get("event") == ROUND_EVENT == recent[-1].get("event"):
            recent.pop()
        recent.append(event)
    return list(recent)


def _conflict(state: StateDir) -> str | None:
    """Whether there was a sign lately, in this life, that another process uses the same key."""
    last = None
    for event in atomic.read_json_lines(state.events):
        if event.get("event") == CONFLICT_EVENT:
            last = event
        elif event.get("event") == STARTED_EVENT:
            last = None
    if last is None:
        return None
    at = last.get("time")
    if isinstance(at, int | float) and time.time() - at > CONFLICT_HOLDS_S:
        return None
    return f"another process uses this peer's key, at {last.get('address') or 'an unknown address'}"


def _trust(state: StateDir) -> dict[str, Any]:
    """How many peers a person decided on, and how many ask for it."""
    from p2pfl_state import trust as files

    try:
        decided, asking = files.read_trust(state), files.read_requests(state)
    except MalformedFile as error:
        return {"damaged": str(error)}
    undecided = [r for r in asking if r.peer_id not in decided.approved and r.peer_id not in decided.revoked]
    return {
        "served": _last_started(state).get("trust"),
        "approved": len(decided.approved),
        "revoked": len(decided.revoked),
        "ask": len(undecided),
    }


def _last_started(state: StateDir) -> dict[str, Any]:
    started: dict[str, Any] = {}
    for event in atomic.read_json_lines(state.events):
        if event.get("event") == STARTED_EVENT:
            started = event
    return started


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
