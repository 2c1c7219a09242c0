"""What a peer's state directory says of the past: metrics, events and peers, checked line by line.

A line that is not what its writer writes (no time, a text where a number belongs) is torn or foreign
and is passed over; a field that is missing or null is None.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from p2pfl_state.atomic import read_bounded, read_json_lines
from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import parse_object
from p2pfl_state.layout import StateDir

from p2pfl_train.errors import DataError

MAX_NUMBER = 1e12
"""Bound of any time, duration or count; far above all that a run can write."""
MAX_PEERS_BYTES = 64 << 20
"""Bound of peers.json: some hundred thousand peers."""
SILENCE_S = 10.0
SILENCE_CYCLES = 8.0
"""Without a line for longer than both, a trainer was down, not slow. Guesses, for pictures only."""
MEMBERSHIP_EVENTS = frozenset({"peer_joined", "peer_lost", "peer_left"})
LIVE_STATES = frozenset({"alive", "suspect"})
"""States of a peer in peers.json that count as live: a suspect is one until it is found dead (SWIM)."""


@dataclass(frozen=True)
class CycleLine:
    """One line of metrics.jsonl; None for what the line does not say."""

    time: float
    """Unix seconds at which the line was written, at the end of the cycle."""
    final: bool
    """Whether this is the last line of a life, measured on all evaluation examples."""
    cycle: int | None
    accuracy_trained: float | None
    """After local training, before averaging; 0 to 1."""
    accuracy_averaged: float | None
    """After averaging; 0 to 1."""
    models: int | None
    """Models of others that went into the average."""
    asked: int
    """Rounds, as the next two; the first line of a life also counts those of its start."""
    answered: int
    failed: int
    starting_s: float
    """What a life waited for its daemon, its task and its first weights, before its first cycle."""
    training_s: float
    waiting_s: float
    """In which training stood still for an answer or the end of a verification."""
    averaging_s: float
    publishing_s: float
    evaluating_s: float
    collection_s: float | None
    """From the request to its answer."""
    network_peers: int | None

    @property
    def accounted_s(self) -> float:
        """Seconds of the cycle that the trainer ascribes to a part."""
        return self.training_s + self.waiting_s + self.averaging_s + self.publishing_s + self.evaluating_s


@dataclass(frozen=True)
class KnownPeers:
    """How many live others a daemon knew from `time` (unix seconds) on."""

    time: float
    peers: int
    joined: bool = False
    """Whether one more was the reason."""


@dataclass(frozen=True)
class History:
    """One peer's past, each part in order of time."""

    name: str
    """Name of the directory, with as many of its parents as it takes to tell it from the others."""
    cycles: tuple[CycleLine, ...]
    finals: tuple[CycleLine, ...]
    """The last line of every life that ended cleanly."""
    known: tuple[KnownPeers, ...]

    @property
    def silences(self) -> list[tuple[float, float]]:
        """Where no cycle ended for so long that the trainer was down: unix seconds of the lines around."""
        times = [line.time for line in self.cycles]
        if len(times) < 3:
            return []
        usual_s = statistics.median(after - before for before, after in pairwise(times))
        longest_s = max(SILENCE_S, SILENCE_CYCLES * usual_s)
        return [(before, after) for before, after in pairwise(times) if after - before > longest_s]

    @property
    def times(self) -> list[float]:
        """Unix seconds of every line, in no order."""
        return [line.time for line in (*self.cycles, *self.finals)] + [line.time for line in self.known]


def read_histories(dirs: Sequence[Path]) -> list[History]:
    """The histories of the state directories, in the order given, each directory once.

    Raises `DataError` when one is not a directory, or when none holds a line; `StateError` when a
    file cannot be read.
    """
    roots = list(dict.fromkeys(path.resolve() for path in dirs))
    for root in roots:
        if not root.is_dir():
            raise DataError(f"{root} is not a directory: give the state directories of peers, as state/8000")
    histories = [_read(StateDir(root), name) for root, name in zip(roots, _names(roots), strict=True)]
    if not any(history.times for history in histories):
        where = ", ".join(str(path) for path in dirs[:3]) + (", …" if len(dirs) > 3 else "")
        raise DataError(
            f"no measurements in {where or 'no directory'}: "
            "give state directories in which p2pfl-train run has finished a cycle"
        )
    return histories


def origin(histories: Sequence[History]) -> float:
    """Unix seconds of the first line of any peer. At least one history must hold a line."""
    return min(time for history in histories for time in history.times)


def _names(roots: Sequence[Path]) -> list[str]:
    """The shortest tails of the paths that are all different."""
    lengths = [1] * len(roots)
    while True:
        names = ["/".join(root.parts[-length:]) for root, length in zip(roots, lengths, strict=True)]
        doubled = {name for name, count in Counter(names).items() if count > 1}
        if not doubled:
            return names
        lengths = [
            length + 1 if name in doubled else length for name, length in zip(names, lengths, strict=True)
        ]


def _read(state: StateDir, name: str) -> History:
    lines = [line for record in read_json_lines(state.metrics) if (line := parse_cycle(record))]
    lines.sort(key=lambda line: line.time)
    return History(
        name=name,
        cycles=tuple(line for line in lines if not line.final),
        finals=tuple(line for line in lines if line.final),
        known=_read_known(state) or _read_known_last(state, lines),
    )


def _read_known(state: StateDir) -> tuple[KnownPeers, ...]:
    """From events.jsonl."""
    known: list[KnownPeers] = []
    for record in read_json_lines(state.events):
        try:
            time, peers = _number(record, "time"), _count(record, "peers")
        except _Foreign:
            continue
        if time is None:
            continue
        if record.get("event") in MEMBERSHIP_EVENTS and peers is not None:
            known.append(KnownPeers(time, peers, joined=record["event"] == "peer_joined"))
        elif not known:  # a daemon that says its first word knows nobody yet
            known.append(KnownPeers(time, 0))
    return tuple(sorted(known, key=lambda line: line.time))


def _read_known_last(state: StateDir, lines: Sequence[CycleLine]) -> tuple[KnownPeers, ...]:
    """From peers.json, where the events are gone: the live others, at the trainer's last line."""
    data = read_bounded(state.peers, MAX_PEERS_BYTES)
    if data is None or not lines:
        return ()
    try:
        peers = parse_object(data, "peers.json").get("peers")
    except MalformedFile:
        return ()
    if not isinstance(peers, list):
        return ()
    live = sum(isinstance(peer, dict) and str(peer.get("state")).lower() in LIVE_STATES for peer in peers)
    return (KnownPeers(lines[-1].time, live),)


class _Foreign(Exception):
    """A field is not of the type that our writer gives it, so the line is not ours."""


def parse_cycle(record: Mapping[str, Any]) -> CycleLine | None:
    """One line of metrics.jsonl, or None when it is torn or foreign."""
    try:
        time, cycle = _number(record, "time"), _count(record, "cycle")
        final = record.get("final") is True
        if time is None or (cycle is None and not final):
            return None
        return CycleLine(
            time=time,
            final=final,
            cycle=cycle,
            accuracy_trained=_number(record, "accuracy_trained", high=1.0),
            accuracy_averaged=_number(record, "accuracy_averaged", high=1.0),
            models=_count(record, "models"),
            asked=_rounds(record, "asked"),
            answered=_rounds(record, "answered"),
            failed=_rounds(record, "failed"),
            starting_s=_number(record, "seconds_starting") or 0.0,
            training_s=_number(record, "seconds_training") or 0.0,
            waiting_s=_number(record, "seconds_waiting") or 0.0,
            averaging_s=_number(record, "seconds_averaging") or 0.0,
            publishing_s=_number(record, "seconds_publishing") or 0.0,
            evaluating_s=_number(record, "seconds_evaluating") or 0.0,
            collection_s=_number(record, "collection_seconds"),
            network_peers=_count(record, "network_peers"),
        )
    except _Foreign:
        return None


def _number(record: Mapping[str, Any], name: str, *, high: float = MAX_NUMBER) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    # the comparison also refuses NaN, infinities, and whole numbers too large for a float
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise _Foreign(name)
    number = float(value)
    assert math.isfinite(number)
    return number


def _rounds(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    if isinstance(value, bool):  # written before a line could tell of more than one round
        return int(value)
    return _count(record, name) or 0


def _count(record: Mapping[str, Any], name: str) -> int | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
        raise _Foreign(name)
    return value
