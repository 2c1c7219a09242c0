"""What the commands print: tables for people, JSON for programs. rich is imported only for tables."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl_net.wire.models import ModelHeader

MAX_EVENT = 110
"""Characters of one event in a line for people; `--json` has all of it."""


def show_peers(value: Mapping[str, Any], *, as_json: bool) -> None:
    """One row a peer: id, address, state, model version, when it was last heard directly."""
    if as_json:
        _print(json.dumps(value))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    me = value["self"]
    table = Table(title=escape(f"peers of {str(me.get('id'))[:16]} at {me.get('address')}"))
    for column in ("peer", "address", "state", "version", "last seen"):
        table.add_column(column)
    for peer in value["peers"]:
        version = peer.get("version") or "-"
        cells = (str(peer.get("id"))[:16], peer.get("address"), peer.get("state"), version)
        table.add_row(*(escape(str(cell)) for cell in cells), _ago(peer.get("last_seen")))
    Console().print(table)


def show_status(value: Mapping[str, Any], *, as_json: bool) -> None:
    """One line a fact."""
    if as_json:
        _print(json.dumps(value))
        return
    for name, fact in value.items():
        if name == "recent_events":
            for event in fact:
                _print(f"event        {_event(event)}")
        elif isinstance(fact, Mapping):
            inner = ", ".join(f"{key} {_short(item)}" for key, item in fact.items() if item not in (None, {}))
            _print(f"{name:<12} {inner}")
        else:
            _print(f"{name:<12} {'-' if fact is None else fact}")


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
        f"{header.size_bytes} bytes, SHA-256 {header.file_digest}"
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


def _ago(seen: object) -> str:
    return f"{max(0.0, time.time() - seen):.0f} s ago" if isinstance(seen, int | float) else "heard of"


def _event(event: Mapping[str, Any]) -> str:
    """When, what, and of its fields as many as a line takes."""
    at = event.get("time")
    clock = time.strftime("%H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else "?"
    fields = [f"{key} {_short(item)}" for key, item in event.items() if key not in ("time", "event")]
    text = f"{clock} {event.get('event')}: {', '.join(fields)}"
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= MAX_EVENT else f"{line[: MAX_EVENT - 1]}…"


def _short(item: object) -> str:
    if isinstance(item, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in item.items())
    if isinstance(item, list | tuple):
        return str(len(item))
    text = f"{item:.4g}" if isinstance(item, float) else str(item)
    return text if len(text) <= 40 else f"{text[:16]}…"
