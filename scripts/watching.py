"""Follows what a peer writes while it runs: the latest figures for a display."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2pfl_state.errors import StateError
from p2pfl_state.layout import StateDir

from p2pfl_net.inspect import read_peers
from p2pfl_train.plots.records import LIVE_STATES, CycleLine, parse_cycle

MAX_READ_BYTES = 1 << 20
"""Read at once from a file that grows; the rest comes at the next look."""


@dataclass
class Figures:
    """The latest of one peer; None for what has not been measured."""

    cycle: int = 0
    peers_known: int = 0
    """Live others."""
    models: int = 0
    """Models of others averaged since the start."""
    rounds_failed: int = 0
    accuracy_trained: float | None = None
    accuracy_averaged: float | None = None
    too_few: bool = False
    """Whether the last models that came were left out, as too few to outvote liars."""
    final: CycleLine | None = None
    """The last line of this life: measured on all evaluation examples."""


class Tail:
    """The whole lines that a file has got since it was looked at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def lines(self) -> Iterator[bytes]:
        """Those since the last look. Raises `OSError` when the file cannot be read."""
        while new := self._read():
            *lines, self._rest = (self._rest + new).split(b"\n")
            yield from lines

    def _read(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                new = file.read(MAX_READ_BYTES)
        except FileNotFoundError:
            return b""
        self._offset += len(new)
        return new


class Watcher:
    """Reads `metrics.jsonl` as it grows, from its end at the first look, and `peers.json`."""

    def __init__(self, state: StateDir) -> None:
        self.figures = Figures()
        self._state = state
        self._metrics = Tail(state.metrics)

    def look(self) -> Figures:
        """The figures now. Raises `OSError` when a file cannot be read."""
        for text in self._metrics.lines():
            self._take(text)
        self.figures.peers_known = live_peers(self._state)
        return self.figures

    def _take(self, text: bytes) -> None:
        try:
            record = json.loads(text)
        except ValueError:
            return
        line = parse_cycle(record) if isinstance(record, dict) else None
        if line is None:
            return
        figures = self.figures
        figures.cycle = line.cycle or figures.cycle
        figures.models += line.models or 0
        if line.models or record.get("too_few"):
            figures.too_few = not line.models
        figures.rounds_failed += line.failed
        if line.accuracy_trained is not None:
            figures.accuracy_trained = line.accuracy_trained
        if line.accuracy_averaged is not None:
            figures.accuracy_averaged = line.accuracy_averaged
        if line.final:
            figures.final = line


def live_peers(state: StateDir) -> int:
    """How many live others the daemon of `state` knows; 0 before it has written a list."""
    try:
        listed = read_peers(state.root).get("peers")
    except StateError:
        return 0
    if not isinstance(listed, list):
        return 0
    return sum(isinstance(peer, dict) and peer.get("state") in LIVE_STATES for peer in listed)
