"""`p2pfl-net provenance DIGEST`: what went into a model, as far as this peer has seen it signed."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl_state import atomic
from p2pfl_state.errors import DirectoryUnusable
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage, UsageError
from p2pfl_net.rpc.keys import check_signature
from p2pfl_net.runtime.versions import Seen, read_line
from p2pfl_net.wire.versions import decode_statement, encode_statement

MAX_MODELS = 10_000
_PREFIX = re.compile(r"[0-9a-f]{8,64}")

Key = tuple[PeerId, int]


@dataclass(frozen=True)
class Named:
    """A version as another names it."""

    publisher: PeerId
    version: int
    weights: str

    def to_json(self) -> dict[str, Any]:
        return {"peer_id": self.publisher, "version": self.version, "weights": self.weights}

    def __str__(self) -> str:
        return f"version {self.version} of peer {self.publisher[:16]}, weights {self.weights[:16]}"


@dataclass(frozen=True)
class Ancestor:
    """One model of an ancestry."""

    named: Named
    manifest: Manifest | None
    """Its publisher's signed word. None: this peer has not seen it, only that another names it."""

    @property
    def made_of(self) -> tuple[Named, ...]:
        """What it went on from, then the models that were averaged in."""
        if self.manifest is None:
            return ()
        before = self.manifest.previous
        publisher = self.named.publisher
        if before is not None and before.peer_id is not None:
            publisher = PeerId(before.peer_id)
        own = () if before is None else (Named(publisher, before.version, before.weights),)
        return own + tuple(Named(PeerId(p.peer_id), p.version, p.weights) for p in self.manifest.parents)

    def to_json(self) -> dict[str, Any]:
        said = self.manifest
        return {
            **self.named.to_json(),
            "signed": said is not None,
            "samples": None if said is None else said.samples,
            "task": None if said is None else said.task,
            "made_of": [named.to_json() for named in self.made_of],
        }


def read(root: Path) -> dict[Key, Seen]:
    """The versions in `provenance.jsonl` whose signatures are good. Raises `DirectoryUnusable`."""
    state = StateDir(root)
    if not state.provenance.exists():
        raise DirectoryUnusable(
            f"{root} has no {state.provenance.name}: is it the --state of a peer that has run?"
        )
    seen: dict[Key, Seen] = {}
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


def ancestry(seen: dict[Key, Seen], key: Key, limit: int) -> list[Ancestor]:
    """A model and up to `limit` - 1 that went into it, the nearest first."""
    first = Named(key[0], key[1], seen[key][0].weights)
    told = {first: _ancestor(seen, first)}
    left = deque(told)
    while left:
        for named in told[left.popleft()].made_of:
            if named not in told and len(told) < limit:
                told[named] = _ancestor(seen, named)
                left.append(named)
    return list(told.values())


def _ancestor(seen: dict[Key, Seen], named: Named) -> Ancestor:
    found = seen.get((named.publisher, named.version))
    is_known = found is not None and found[0].weights == named.weights and _is_signed(found)
    return Ancestor(named, found[1] if found is not None and is_known else None)


def _is_signed(found: Seen) -> bool:
    try:
        return decode_statement(encode_statement(found[0]), check_signature) == found[0]
    except (MalformedMessage, ValueError):
        return False


def run(root: Path, digest: str, *, limit: int, as_json: bool) -> None:
    """Prints the ancestry of a model. Raises `UsageError`, `StateError`."""
    seen = read(root)
    found = ancestry(seen, find(seen, digest), min(limit, MAX_MODELS))
    if as_json:
        sys.stdout.write(json.dumps([ancestor.to_json() for ancestor in found]) + "\n")
        return
    for ancestor in found:
        said = ancestor.manifest
        what = "not seen here" if said is None else f"signed, {said.samples} samples"
        sys.stdout.write(f"{ancestor.named}: {what}\n")
        for number, named in enumerate(ancestor.made_of):
            went_on = number == 0 and said is not None and said.previous is not None
            sys.stdout.write(f"  {'after' if went_on else 'with '} {named}\n")
    for line in _summary(found):
        sys.stdout.write(line + "\n")
    if len(found) >= limit:
        sys.stdout.write(f"these are the {limit} nearest: --limit N shows more\n")


def _summary(found: list[Ancestor]) -> list[str]:
    """Whose models they are, and on how many samples each learned, by its nearest model."""
    versions = Counter(ancestor.named.publisher for ancestor in found)
    samples: dict[PeerId, int] = {}
    for ancestor in found:
        if ancestor.manifest is not None:
            samples.setdefault(ancestor.named.publisher, ancestor.manifest.samples)
    return [
        f"from peer {publisher}: {count} versions, {samples.get(publisher, 'unknown')} samples"
        for publisher, count in versions.most_common()
    ]
