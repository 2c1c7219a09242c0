"""Who a peer was before its key was replaced, as far as its former keys themselves say so."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.rpc.keys import Identity, check_signature, peer_id_of
from p2pfl_net.wire.rotation import MAX_ROTATIONS, FormerKey, rotation_text

MAX_ROTATED_PEERS = 1024
"""Peers whose former ids are remembered: as many as tokens that are (`gate`)."""


def rotated(old: Identity, new: Identity) -> Identity:
    """`new` as the one that follows `old`, with the old key's word for it."""
    vouched = FormerKey(old.public_key, old.sign(rotation_text(old.peer_id, new.peer_id)))
    return new.following((vouched, *old.former)[:MAX_ROTATIONS])


def former_ids(keys: Iterable[FormerKey], peer_id: PeerId) -> tuple[PeerId, ...]:
    """The ids that the peer had before, newest first. Raises `MalformedMessage` unless each key has signed
    for the one that followed it."""
    ids = [peer_id]
    for key in keys:
        old = peer_id_of(key.public_key)
        if old in ids:
            raise MalformedMessage("former keys that come back to an earlier one")
        check_signature(key.public_key, key.signature, rotation_text(old, ids[-1]))
        ids.append(old)
    return tuple(ids[1:])


class FormerIds:
    """Verified former ids of peers that have shown who they are, for whoever knows them by those. The least
    recently seen are forgotten first. Thread-safe."""

    def __init__(self) -> None:
        self.on_news: Callable[[PeerId, tuple[PeerId, ...]], None] = lambda peer_id, former: None
        """Hears of each peer that shows other former ids than before."""
        self._lock = threading.Lock()
        self._ids: OrderedDict[PeerId, tuple[PeerId, ...]] = OrderedDict()

    def of(self, peer_id: PeerId) -> tuple[PeerId, ...]:
        """Newest first; empty: the peer has always had its key, or has not told."""
        with self._lock:
            return self._ids.get(peer_id, ())

    def all(self) -> tuple[tuple[PeerId, tuple[PeerId, ...]], ...]:
        """Each peer that has replaced its key, and the ids that it had before."""
        with self._lock:
            return tuple(self._ids.items())

    def note(self, peer_id: PeerId, former: tuple[PeerId, ...]) -> None:
        """The peer is here, and has shown this of itself."""
        if not former:
            return
        with self._lock:
            is_news = self._ids.get(peer_id) != former
            self._ids[peer_id] = former
            self._ids.move_to_end(peer_id)
            if len(self._ids) > MAX_ROTATED_PEERS:
                self._ids.popitem(last=False)
        if is_news:
            self.on_news(peer_id, former)
