"""What the commands print: columns for people, JSON for programs.

rich is imported only for a bar: it takes as long as all the rest of `peers`, which people watch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl_net.wire.models import ModelHeader

MAX_EVENT = 110
"""Characters of one event in a line for people; `--json` has all of it."""
MAX_NUMBER = 1e11
"""Of seconds and milliseconds: more is damage, and nothing that a clock can show."""
NOTHING = "-"
BOTH_WAYS = {"_sent": "sent", "_asked": "sent", "_received": "received"}
"""How counters of what goes both ways end, and which way that is."""


def show_peers(value: Mapping[str, Any], *, tags: Sequence[str], is_old: bool, as_json: bool) -> None:
    """One row a peer, in columns: to be looked at again and again while a network runs.

    `tags`: those that all of `value` have; `is_old`: whether the daemon that wrote it runs no more.
    """
    if as_json:
        _print(json.dumps(value))
        return
    me = value["self"]
    own = _tags(me)
    of_tags = "" if own == NOTHING else f", tags {own}"
    age = "; stopped: this is its last list" if is_old else ""
    _print(_printable(f"peer {_start(me.get('id'), 16)} at {me.get('address')}{of_tags}{age}"))
    if not value["peers"]:
        _print(f"no other peer{' has ' + ' and '.join(tags) if tags else ''}")
        return
    header = ("peer", "address", "state", "rtt", "seen", "version", "task", "tags")
    rows = [header, *(_cells(peer) for peer in value["peers"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        _print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(peer: Mapping[str, Any]) -> tuple[str, ...]:
    rtt_ms, seen = _number(peer.get("rtt_ms")), _number(peer.get("last_seen"))
    cells = (
        _start(peer.get("id"), 16),
        str(peer.get("address")),
        str(peer.get("state")),
        NOTHING if rtt_ms is None else f"{rtt_ms:.1f} ms",
        "heard of" if seen is None else f"{max(0.0, time.time() - seen):.0f} s ago",
        str(peer.get("version") or NOTHING),
        _start(peer.get("task"), 8),
        _tags(peer),
    )
    return tuple(_printable(cell) for cell in cells)


def _number(value: object) -> float | None:
    """A time or a duration; None for what is none."""
    if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:  # false for NaN too
        return float(value)
    return None


def _start(digest: object, characters: int) -> str:
    return NOTHING if digest is None else str(digest)[:characters]


def _tags(peer: Mapping[str, Any]) -> str:
    tags = peer.get("tags")
    return ",".join(map(str, tags)) if isinstance(tags, list) and tags else NOTHING


def show_status(value: Mapping[str, Any], *, as_json: bool) -> None:
    """One line a fact."""
    if as_json:
        _print(json.dumps(value))
        return
    for name, fact in value.items():
        if name == "recent_events":
            for event in fact:
                _print(f"event        {_event(event)}")
        elif name == "counters":
            for line in _counters(fact):
                _print(f"counters     {line}")
        elif isinstance(fact, Mapping):
            inner = ", ".join(f"{key} {_short(item)}" for key, item in fact.items() if item not in (None, {}))
            _print(f"{name:<12} {inner}")
        else:
            _print(_printable(f"{name:<12} {NOTHING if fact is None else fact}"))


def show_fetched(header: ModelHeader, target: Path, *, as_json: bool) -> None:
    """What `get` brought."""
    value = {
        "file": str(target),
        "peer_id": header.peer_id,
        "size_bytes": header.size_bytes,
        "file_digest": header.file_digest,
        "manifest": header.manifest.to_json(),
    }
    if as_json:
        _print(json.dumps(value))
        return
    _print(
        f"{target}: version {header.manifest.version} of peer {header.peer_id[:16]}, "
        f"{header.size_bytes} bytes, SHA-256 {header.file_digest}, weights {header.manifest.weights}"
    )


@contextmanager
def progress_bar(*, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task("fetch", total=None)
        yield lambda received, size: bar.update(task, completed=received, total=size)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _counters(counters: Mapping[str, Any]) -> list[str]:
    """Two lines: what went both ways, and what happened."""
    messages: dict[str, dict[str, object]] = {}
    happened = []
    for name, number in counters.items():
        what, way = _way(name)
        if way is None:
            happened.append(f"{name.replace('_', ' ')} {_short(number)}")
        else:
            messages.setdefault(what, {})[way] = number
    both = [f"{what} {_short(ways)}" for what, ways in messages.items()]
    return [_printable(line) for line in (", ".join(both), ", ".join(happened)) if line]


def _way(counter: str) -> tuple[str, str | None]:
    """Of what it is a number, and whether of those sent or received; None: of neither."""
    for ending, way in BOTH_WAYS.items():
        if counter.endswith(ending):
            return counter.removesuffix(ending), way
    return counter, None


def _event(event: Mapping[str, Any]) -> str:
    """When, what, and of its fields as many as a line takes."""
    at = _number(event.get("time"))
    clock = "?" if at is None else time.strftime("%H:%M:%S", time.localtime(at))
    fields = [f"{key} {_short(item)}" for key, item in event.items() if key not in ("time", "event")]
    text = f"{clock} {event.get('event')}: {', '.join(fields)}"
    line = _printable(text)
    return line if len(line) <= MAX_EVENT else f"{line[: MAX_EVENT - 1]}…"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _short(item: object) -> str:
    if isinstance(item, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in item.items())
    if isinstance(item, list | tuple):
        return str(len(item))
    text = f"{item:.4g}" if isinstance(item, float) else str(item)
    return text if len(text) <= 40 else f"{text[:16]}…"
