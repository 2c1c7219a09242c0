"""Who lived at the addresses that a person named, as ssh's known_hosts: trust on first use.

Boot addresses count, and those of the peers that an earlier life knew. The members of a network are called by
their ids, which nobody else can answer to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir
from p2pfl_state.trust import read_links

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId, is_peer_id
from p2pfl_net.errors import PeerFailed

P = TypeVar("P", PeerId, PeerId | None)

MAX_BYTES = 1 << 20
MAX_PEERS = 4096
"""Addresses that are remembered, and replaced keys; the oldest are forgotten first."""


class KnownPeers:
    """The addresses of one state directory. Thread-safe."""

    def __init__(
        self,
        path: Path,
        named: Mapping[Address, PeerId | None],
        remembered: Mapping[Address, PeerId],
        note: Callable[[str, dict[str, object]], None],
    ) -> None:
        """`named`: the boot peers, with their ids where they are told. `remembered`: where an earlier life
        knew whom. `note` takes an event for the log.

        Raises `MalformedFile` for a damaged file: it is never replaced silently.
        """
        self._path = path
        self._named = named
        self.remembered = remembered
        self._note = note
        self._lock = threading.Lock()
        self._known, self._rotated = _read(path)

    def check(self, address: Address, peer_id: PeerId, former: Callable[[], tuple[PeerId, ...]]) -> None:
        """Raises `PeerFailed` (wrong peer) when another lived there, or is meant. A new one is remembered,
        and so is a new key that the expected one vouches for, which then counts no more itself.

        `former` asks the peer for the ids that it had before, newest first, and raises what a call raises.
        """
        name, is_named = str(address), address in self._named
        meant = self._named.get(address)
        with self._lock:
            first = self._known.get(name) if is_named else self.remembered.get(address)
            expected = latest(self._rotated, meant or first)
            if expected == peer_id or (expected is None and not is_named):
                return
            if expected is None:
                self._known[name] = peer_id
                self._write()
                return
        ids = former()
        if expected not in ids:
            reason = f"peer {peer_id[:16]} lives there now, and not {expected[:16]}"
            if is_named:
                reason = self._refusal(name, meant, expected, peer_id)
            raise PeerFailed(FailureKind.WRONG_PEER, reason)
        with self._lock:
            self._rotated.update(dict.fromkeys(ids[: ids.index(expected) + 1], peer_id))
            if is_named and meant is None:
                self._known[name] = peer_id
            self._write()
        self._note("key_rotated", {"address": name, "old": expected, "new": peer_id})

    def _refusal(self, name: str, meant: PeerId | None, expected: PeerId, peer_id: PeerId) -> str:
        if latest(self._rotated, peer_id) == expected:
            return (
                f"AN OLD KEY IS USED AGAIN: that of peer {peer_id[:16]} was replaced by that of "
                f"{expected[:16]}: it may be a copy of its state from before, or in wrong hands"
            )
        if meant is not None:
            return f"peer {peer_id[:16]} lives there, not {expected[:16]} as --boot says"
        return (
            f"THE KEY HAS CHANGED: it was of peer {expected[:16]} and is of {peer_id[:16]}; if its "
            f"state was made anew, say --boot {peer_id}@{name}, or remove its line from {self._path}"
        )

    def _write(self) -> None:
        while len(self._known) > MAX_PEERS:
            del self._known[next(iter(self._known))]
        while len(self._rotated) > MAX_PEERS:
            del self._rotated[next(iter(self._rotated))]
        value = {"contract": CONTRACT_VERSION, "peers": self._known, "rotated": self._rotated}
        atomic.write_json(self._path, value)


def _read(path: Path) -> tuple[dict[str, PeerId], dict[PeerId, PeerId]]:
    """Who lives where, and whose key was replaced by whose."""
    data = atomic.read_bounded(path, MAX_BYTES)
    if data is None:
        return {}, {}
    value = parse_object(data, path.name)
    peers, rotated = value.get("peers"), value.get("rotated", {})
    if not isinstance(peers, dict) or not isinstance(rotated, dict):
        raise _damaged(path)
    if not all(map(is_peer_id, (*peers.values(), *rotated, *rotated.values()))):
        raise _damaged(path)
    known = {str(name): PeerId(peer_id) for name, peer_id in peers.items()}
    return known, {PeerId(old): PeerId(new) for old, new in rotated.items()}


def read_successors(state: StateDir) -> dict[PeerId, PeerId]:
    """Who is known in a state directory to have followed whose replaced key. Raises `StateError`."""
    following = {PeerId(link.old): PeerId(link.new) for link in reversed(read_links(state))}
    return following | _read(state.known_peers)[1]


def latest(following: Mapping[PeerId, PeerId], peer_id: P) -> P | PeerId:
    """The end of the line that a peer's key begins: itself where nobody follows. No way round ends, for a
    file may say anything."""
    seen = set[PeerId]()
    current: P | PeerId = peer_id
    while current is not None and current not in seen and current in following:
        seen.add(current)
        current = following[current]
    return current


def _damaged(path: Path) -> MalformedFile:
    return MalformedFile(f"{path} is damaged: correct it, or delete it to trust on first use again")
