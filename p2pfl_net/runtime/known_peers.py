"""Who lived at the addresses that a person named, as ssh's known_hosts: trust on first use.

Only boot addresses count. The members of a network are called by their ids, which nobody else can answer to.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import parse_object

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId, is_peer_id
from p2pfl_net.errors import PeerFailed

MAX_BYTES = 1 << 20
MAX_PEERS = 4096
"""Addresses that are remembered; the oldest are forgotten first."""


class KnownPeers:
    """The addresses of one state directory. Thread-safe."""

    def __init__(self, path: Path, named: Mapping[Address, PeerId | None]) -> None:
        """`named`: the boot peers, with their ids where they are told.

        Raises `MalformedFile` for a damaged file: it is never replaced silently.
        """
        self._path = path
        self._named = named
        self._lock = threading.Lock()
        self._known = _read(path)

    def check(self, address: Address, peer_id: PeerId) -> None:
        """Raises `PeerFailed` (wrong peer) when another lived there, or is meant. A new one is remembered."""
        if address not in self._named:
            return
        meant = self._named[address]
        if meant is not None:
            if peer_id != meant:
                reason = f"peer {peer_id[:16]} lives there, not {meant[:16]} as --boot says"
                raise PeerFailed(FailureKind.WRONG_PEER, reason)
            return
        name = str(address)
        with self._lock:
            known = self._known.get(name)
            if known == peer_id:
                return
            if known is not None:
                raise PeerFailed(
                    FailureKind.WRONG_PEER,
                    f"THE KEY HAS CHANGED: it was of peer {known[:16]} and is of {peer_id[:16]}; if its "
                    f"state was made anew, say --boot {peer_id}@{name}, or remove its line from {self._path}",
                )
            self._known[name] = peer_id
            while len(self._known) > MAX_PEERS:
                del self._known[next(iter(self._known))]
            atomic.write_json(self._path, {"contract": 1, "peers": self._known})


def _read(path: Path) -> dict[str, PeerId]:
    data = atomic.read_bounded(path, MAX_BYTES)
    if data is None:
        return {}
    peers = parse_object(data, path.name).get("peers")
    if not isinstance(peers, dict) or not all(is_peer_id(peer_id) for peer_id in peers.values()):
        raise MalformedFile(f"{path} is damaged: correct it, or delete it to trust on first use again")
    return {str(name): PeerId(peer_id) for name, peer_id in peers.items()}
