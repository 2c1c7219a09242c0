"""Signed versions: our own, each signed once, and those of others, in which a liar is found.

Whoever tells two peers different things is found when they compare: a model names the versions that went into
it, so a fetched one shows what its publisher got from others. Where that is not what we got, we ask for the
word that it was given, and two signed words that contradict each other are a proof.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from typing import Any

from p2pfl_state import atomic, signed
from p2pfl_state.errors import MalformedFile
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest, Parent
from p2pfl_state.signed import SignedVersion

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import Equivocation
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.wire import versions
from p2pfl_net.wire.versions import Statement

MAX_STATEMENTS = 4096
"""That are compared and told to others; older ones stay in the file."""
MAX_SEEN_BYTES = 8 << 20
"""Of them together: with a stranger's manifest a line may have 256 KiB, an honest one has about one."""
MAX_LOG_BYTES = 64 << 20
"""Then the older half of `provenance.jsonl` is dropped."""

Seen = tuple[Statement, Manifest]


class VersionLog:
    """`provenance.jsonl`: each version that was published here or fetched, once. Thread-safe."""

    def __init__(self, state: StateDir) -> None:
        """Raises `DirectoryUnusable`."""
        self._state = state
        self._lock = threading.Lock()
        self._seen_bytes = 0
        self._seen: OrderedDict[tuple[PeerId, int], bytes] = OrderedDict()
        """Lines: a tenth of the memory of what they say."""
        for line in atomic.read_json_lines(state.provenance):
            seen = read_line(line)
            if seen is not None:
                self._remember(seen[0], atomic.encode_json(line_of(*seen)))
        self._lines = atomic.JsonLines(state.provenance)

    def add(self, statement: Statement, manifest: Manifest) -> Equivocation | None:
        """Keeps a version whose signature was checked; the proof, where another was signed before.

        Raises `DirectoryUnusable`.
        """
        with self._lock:
            known = self._get(statement.publisher, statement.version)
            if known is not None:
                if statement.contradicts(known[0]):
                    return versions.equivocation(known[0], statement)
                return None
            line = line_of(statement, manifest)
            self._remember(statement, atomic.encode_json(line))
            self._lines.append(line)
            self._bound()
        return None

    def get(self, publisher: PeerId, version: int) -> Seen | None:
        with self._lock:
            return self._get(publisher, version)

    def doubtful(self, manifest: Manifest) -> list[Parent]:
        """Parents that are not the versions that we know under these numbers."""
        found = []
        for parent in manifest.parents:
            known = self.get(PeerId(parent.peer_id), parent.version)
            if known is not None and known[0].weights != parent.weights:
                found.append(parent)
        return found

    def close(self) -> None:
        with self._lock:
            self._lines.close()

    def _get(self, publisher: PeerId, version: int) -> Seen | None:
        line = self._seen.get((publisher, version))
        return None if line is None else read_line(json.loads(line))

    def _remember(self, statement: Statement, line: bytes) -> None:
        replaced = self._seen.pop((statement.publisher, statement.version), b"")
        self._seen[statement.publisher, statement.version] = line
        self._seen_bytes += len(line) - len(replaced)
        while len(self._seen) > MAX_STATEMENTS or self._seen_bytes > MAX_SEEN_BYTES:
            _, dropped = self._seen.popitem(last=False)
            self._seen_bytes -= len(dropped)

    def _bound(self) -> None:
        """Drops the older half of a file that has become too large."""
        if self._lines.size_bytes <= MAX_LOG_BYTES:
            return
        self._lines.close()
        with atomic.replacing(self._state.provenance) as draft, open(draft, "wb") as kept:
            dropped = 0
            for line in atomic.read_json_lines(self._state.provenance):
                try:
                    encoded = atomic.encode_json(line)
                except ValueError:  # somebody else's: a NaN, which only Python's own reader takes
                    continue
                if dropped < MAX_LOG_BYTES // 2:
                    dropped += len(encoded)
                else:
                    kept.write(encoded)
        self._lines = atomic.JsonLines(self._state.provenance)


class Signer:
    """Signs this peer's versions, no two under one number. Thread-safe."""

    def __init__(self, state: StateDir, own: Identity, log: VersionLog) -> None:
        """Raises `StateError`."""
        self._state = state
        self._own = own
        self._log = log
        self._lock = threading.Lock()
        self.left_out = signed.recover(state)
        """Where the mark came from a backup: the version up to which nothing is signed."""
        self._mark = signed.read(state)

    def sign(self, manifest: Manifest) -> Statement:
        """This peer's word on what it publishes, the mark written first.

        Raises `MalformedFile` where the number was used for another, `DirectoryUnusable`.
        """
        own = self._own
        digest = versions.manifest_digest(manifest.encode().encode())
        with self._lock:
            if self._mark is None or self._mark.version != manifest.version:
                if self._mark is not None and not self._mark.allows(manifest.version, digest):
                    raise _used(manifest, self._mark)
                mark = SignedVersion(manifest.version, digest, round(time.time(), 3))
                signed.write(self._state, mark)
                self._mark = mark
            elif self._mark.manifest != digest:
                raise _used(manifest, self._mark)
            statement = versions.state(manifest, own.peer_id, own.public_key, own.sign)
            self._log.add(statement, manifest)
        return statement


def _used(manifest: Manifest, mark: SignedVersion) -> MalformedFile:
    return MalformedFile(
        f"version {manifest.version} is not signed, for this peer has signed up to {mark.version} before: "
        "publish a higher one"
    )


# lines of the log ----------------------------------------------------------------------------------


def line_of(statement: Statement, manifest: Manifest) -> dict[str, Any]:
    return {
        "time": round(time.time(), 3),
        "peer_id": statement.publisher,
        "version": statement.version,
        "weights": statement.weights,
        "public_key": statement.public_key.hex(),
        "signature": statement.signature.hex(),
        "manifest": manifest.to_json(),
    }


def read_line(line: dict[str, Any]) -> Seen | None:
    """What a line says; None for one that is none. Its signature is not checked."""
    try:
        manifest = Manifest.read(line["manifest"])
        public_key, signature = bytes.fromhex(line["public_key"]), bytes.fromhex(line["signature"])
        publisher = PeerId(str(line["peer_id"]))
        digest = versions.manifest_digest(manifest.encode().encode())
    except (MalformedFile, KeyError, TypeError, ValueError):
        return None
    return Statement(publisher, manifest.version, manifest.weights, digest, public_key, signature), manifest
