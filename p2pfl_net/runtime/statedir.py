"""The daemon's side of the state directory: what it writes, and what it watches for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from p2pfl_state import atomic, lock, markers
from p2pfl_state.errors import MalformedFile, StateError
from p2pfl_state.fields import parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir
from p2pfl_state.manifest import Manifest
from p2pfl_state.wait import FolderWatch

from p2pfl_net.core.ids import Address, PeerId, is_peer_id, parse_address
from p2pfl_net.core.messages import MAX_INCARNATION, Record, Status
from p2pfl_net.core.node import PeerList
from p2pfl_net.rpc.limits import Rates
from p2pfl_net.runtime.published import FileStamp, PublishedModel, stamp_of

MAX_PEERS_BYTES = 64 << 20
MAX_REMEMBERED = 8
COMINGS = frozenset({"peer_joined", "peer_left", "peer_lost", "peer_moved"})
MAX_COMINGS = 1200
"""A minute, of all of them together. A guess: a large network that starts at once, told of in part."""
INCARNATIONS_UNSAVED = 100
"""That a life may have said after it last wrote its list: a twentieth of a second. A guess."""


class EventLog:
    """`events.jsonl`: one object a line, `time` and `event` first. Thread-safe.

    Peers that come and go can be invented: of these events so many are written as `MAX_COMINGS` says, and how
    many were left out.
    """

    def __init__(self, state: StateDir, wall_clock: Callable[[], float]) -> None:
        self._lines = atomic.JsonLines(state.events)
        self._clock = wall_clock
        self._lock = threading.Lock()
        self._comings = Rates(MAX_COMINGS)
        self._left_out = 0

    def append(self, event: str, fields: Mapping[str, Any]) -> None:
        """Raises `DirectoryUnusable` when the disk is full."""
        with self._lock:
            if event in COMINGS:
                if not self._comings.take("", time.monotonic()):
                    self._left_out += 1
                    return
                if self._left_out:
                    self._write("events_left_out", {"count": self._left_out})
                    self._left_out = 0
            self._write(event, fields)

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        self._lines.append({"time": round(self._clock(), 3), "event": event, **fields})

    def close(self) -> None:
        with self._lock:
            self._lines.close()


def peers_value(peers: PeerList, model_version: int, wall_time: Callable[[float], float]) -> dict[str, Any]:
    """The content of `peers.json`; `wall_time` turns the core's time into Unix seconds."""
    return {
        "contract": CONTRACT_VERSION,
        "self": {
            **_record_value(peers.me, peers.me.addresses),
            "incarnation": peers.me.incarnation,
            "address": str(peers.address),
            "version": model_version,
        },
        "peers": [
            {
                **_record_value(view.record, view.addresses),
                "last_seen": None if view.last_seen is None else round(wall_time(view.last_seen), 3),
                "rtt_ms": None if view.rtt_s is None else round(view.rtt_s * 1e3, 3),
                "version": view.model_version,
                "offences": view.offences,
                "aside": view.is_aside,
                "trust": view.trust,
            }
            for view in peers.peers
        ],
        "network": {"health": peers.health, "counters": asdict(peers.counters)},
    }


def _record_value(record: Record, addresses: tuple[Address, ...]) -> dict[str, Any]:
    return {
        "id": record.peer_id,
        "address": str(addresses[0]) if addresses else None,
        "state": record.status.name.lower(),
        "addresses": [str(address) for address in addresses],
        "task": record.task,
        "published": record.published,
        "tags": list(record.tags),
    }


def first_incarnation(state: StateDir, wall_time_s: float) -> int:
    """Above all that an earlier life has said, also one that others made say much: what it said is signed,
    and whoever keeps it could show it to this life as that of a twin."""
    try:
        data = atomic.read_bounded(state.peers, MAX_PEERS_BYTES)
        me = None if data is None else parse_object(data, "peers.json").get("self")
    except MalformedFile:
        me = None
    last = me.get("incarnation") if isinstance(me, dict) else None
    now = int(wall_time_s)
    if not isinstance(last, int) or not now < last + INCARNATIONS_UNSAVED < MAX_INCARNATION:
        return now
    return last + INCARNATIONS_UNSAVED


def remembered_peers(state: StateDir) -> dict[Address, PeerId]:
    """Where which peers were that an earlier life of this daemon knew, a few; none if the file is damaged."""
    try:
        data = atomic.read_bounded(state.peers, MAX_PEERS_BYTES)
        value = {} if data is None else parse_object(data, "peers.json")
    except MalformedFile:
        return {}
    found: dict[Address, PeerId] = {}
    listed = value.get("peers")
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or entry.get("state") != Status.ALIVE.name.lower():
            continue
        peer_id = entry.get("id")
        try:
            address = parse_address(str(entry.get("address")))
        except ValueError:
            continue
        if is_peer_id(peer_id) and len(found) < MAX_REMEMBERED:
            found.setdefault(address, PeerId(str(peer_id)))
    return found


class TrainerWatch:
    """Tells of every new publication, of its withdrawal, and every open request of a living trainer.

    Runs in a thread of its own. Each change is told once; what lay there before is told at the start.
    """

    def __init__(
        self,
        state: StateDir,
        published: PublishedModel,
        on_model: Callable[[Manifest | None], None],
        on_request: Callable[[markers.AggregateRequest], None],
        on_damage: Callable[[str], None],
        others: Sequence[Callable[[], None]] = (),
    ) -> None:
        """`others`: further looks at the directory, which return at once where nothing has changed."""
        self._state = state
        self._published = published
        self._on_model = on_model
        self._on_request = on_request
        self._on_damage = on_damage
        self._others = others
        self._model_seen: FileStamp | None = None
        self._request_seen: FileStamp | None = None
        self._stop = threading.Event()
        self._watch = FolderWatch(state.root)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._watch.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._watch.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            lonely = False
            try:
                for look in self._others:
                    look()
                is_new = self._look_at_model()
                self._look_at_request()
                if is_new:
                    self._published.prepare()
                lonely = not lock.is_held(self._state.trainer_lock)
            except (StateError, OSError) as error:  # whatever a disk may say: this thread must go on
                self._on_damage(str(error))
            self._watch.wait_next(lonely=lonely)

    def _look_at_model(self) -> bool:
        """Tells of a new publication; whether there is one to serve."""
        stamp = self._published.stamp()
        if stamp == self._model_seen:
            return False
        self._model_seen = stamp
        try:
            manifest = self._published.manifest()
        except StateError as error:
            self._on_model(None)
            self._on_damage(f"the published model is not served: {error}")
            return False
        self._on_model(manifest)
        return manifest is not None

    def _look_at_request(self) -> None:
        try:
            stamp = stamp_of(self._state.aggregate.stat())
        except FileNotFoundError:
            return
        if stamp == self._request_seen:
            return
        self._request_seen = stamp
        request = markers.read_request(self._state)
        if request is None or not lock.is_held(self._state.trainer_lock):
            return
        try:
            answer = markers.read_answer(self._state)
        except MalformedFile:
            answer = None
        if answer is None or (answer.instance, answer.round) != (request.instance, request.round):
            self._on_request(request)
