"""`p2pfl-net provenance DIGEST`: what went into a model, as far as this peer has seen it signed."""

from __future__ import annotations

import json
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl_state import atomic
from p2pfl_state.errors import DirectoryUnusable
from p2pfl_state.layout import StateDir

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage, UsageError
from p2pfl_net.rpc.keys import check_signature
from p2pfl_net.runtime.versions import Seen, read_line
from p2pfl_net.wire.versions import decode_statement, encode_statement

MAX_MODELS = 10_000
"""That are told of one ancestry; a network of years has more."""
MAX_DEPTH = 100
_PREFIX = re.compile(r"[0-9a-f]{8,64}")

Key = tuple[PeerId, int]


@dataclass(frozen=True)
class Ancestor:
    """One model of an ancestry."""

    depth: int
    """0: the model that was asked for; its parents have 1."""
    publisher: PeerId
    version: int
    weights: str
    seen: Seen | None
    """None: this peer has not seen it, only that another names it."""
    is_repeated: bool = False
    """Its own parents stand where it comes first."""

    def to_json(self) -> dict[str, Any]:
        known = self.seen is not None
        return {
            "depth": self.depth,
            "peer_id": self.publisher,
            "version": self.version,
            "weights": self.weights,
            "signed": known,
            "samples": None if self.seen is None else self.seen[1].samples,
            "task": None if self.seen is None else self.seen[1].task,
            "repeated": self.is_repeated,
        }


def read(root: Path) -> dict[Key, Seen]:
    """The versions in `provenance.jsonl` whose signatures are good. Raises `DirectoryUnusable`."""
    state = StateDir(root)
    if not state.provenance.exists():
        raise DirectoryUnusable(
            f"{root} has no {state.provenance.name}: is it the --state of a peer that has run?"
        )
    seen = OrderedDict[Key, Seen]()
    for line in atomic.read_json_lines(state.provenance):
        found = read_line(line)
        if found is not None:
            seen[found[0].publisher, found[0].version] = found
    return seen


def find(seen: dict[Key, Seen], prefix: str) -> Key:
    """The newest version with these weights. Raises `UsageError`."""
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"{prefix[:70]!r} is no weights digest: give at least its first 8 hex digits")
    digests = {statement.weights for statement, _ in seen.values() if statement.weights.startswith(prefix)}
    if not digests:
        raise UsageError(
            f"no model with weights {prefix} was published or fetched here: p2pfl-net status names one"
        )
    if len(digests) > 1:
        raise UsageError(
            f"{len(digests)} models have weights that begin with {prefix}: give more of the digest"
        )
    return [key for key, (statement, _) in seen.items() if statement.weights in digests][-1]


def ancestry(seen: dict[Key, Seen], key: Key) -> Iterator[Ancestor]:
    """A model and all that went into it, each before its parents, depth first."""
    told: set[Key] = set()
    left = [(0, key, seen[key][0].weights)]
    while left and len(told) < MAX_MODELS:
        depth, (publisher, version), weights = left.pop()
        found = seen.get((publisher, version))
        if found is not None and (found[0].weights != weights or not _is_signed(found)):
            found = None
        is_repeated = (publisher, version) in told
        yield Ancestor(depth, publisher, version, weights, found, is_repeated)
        told.add((publisher, version))
        if found is not None and not is_repeated and depth < MAX_DEPTH:
            parents = [(depth + 1, (PeerId(p.peer_id), p.version), p.weights) for p in found[1].parents]
            left.extend(reversed(parents))


def _is_signed(found: Seen) -> bool:
    try:
        return decode_statement(encode_statement(found[0]), check_signature) == found[0]
    except (MalformedMessage, ValueError):
        return False


def run(root: Path, digest: str, *, as_json: bool) -> None:
    """Prints the ancestry of a model. Raises `UsageError`, `StateError`."""
    seen = read(root)
    found = ancestry(seen, find(seen, digest))
    if as_json:
        sys.stdout.write(json.dumps([ancestor.to_json() for ancestor in found]) + "\n")
        return
    for ancestor in found:
        said = (
            f"version {ancestor.version} of peer {ancestor.publisher[:16]}, weights {ancestor.weights[:16]}"
        )
        if ancestor.seen is None:
            said += ", not seen here"
        elif ancestor.is_repeated:
            said += ", see above"
        else:
            said += f", {ancestor.seen[1].samples} samples, signed"
        sys.stdout.write("  " * ancestor.depth + said + "\n")
