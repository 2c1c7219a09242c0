"""Peers that somebody told us of and that we have not called ourselves: who told us, and how many each may.

A source is what one party easily has only one of (`ids.source_of`). Names of peers are free, so counting by
the peer that speaks would bound nothing.
"""

from __future__ import annotations

from collections import Counter

from p2pfl_net.core.ids import PeerId, is_loopback
from p2pfl_net.core.params import Params


class Hearsay:
    """Unverified peers by source."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._sources: dict[PeerId, str] = {}
        self._brought: Counter[str] = Counter()
        self._trusted: set[str] = set()

    def source(self, peer_id: PeerId) -> str | None:
        """Who told us of a peer; None: it is verified, or nobody did."""
        return self._sources.get(peer_id)

    def bounded_source(self, peer_id: PeerId) -> str | None:
        """The source whose word alone the peer is known by, if it may not bring in as many as it likes.

        None: the peer counts in full, for we have called it, or the operator named who told us of it.
        """
        source = self._sources.get(peer_id)
        return None if source in self._trusted else source

    def mark(self, peer_id: PeerId, source: str) -> None:
        """The peer is known by the word of `source` alone, in place of anybody else's."""
        self.unmark(peer_id)
        self._sources[peer_id] = source
        self._brought[source] += 1

    def unmark(self, peer_id: PeerId) -> None:
        """The peer counts against nobody: it was called, or is forgotten."""
        source = self._sources.pop(peer_id, None)
        if source is not None:
            self._brought[source] -= 1
            if not self._brought[source]:
                del self._brought[source]

    def trust(self, source: str) -> None:
        """The operator named this machine: it may tell us of a large network."""
        if len(self._trusted) < self._params.max_trusted_sources:
            self._trusted.add(source)

    def has_room(self, source: str) -> bool:
        """Whether `source` may tell us of one more."""
        if source in self._trusted or is_loopback(source):
            return self._brought[source] < self._params.max_peers * 3 // 4
        return self._brought[source] < self._params.max_hearsay

    def to_give_up(self, source: str | None) -> PeerId | None:
        """In a full table, who makes room for one of `source`: a peer of the source that has brought most.
        None: that is `source` itself, and nobody does."""
        fullest, count = max(self._brought.items(), key=lambda entry: entry[1], default=("", 0))
        if count <= self._brought.get(source or "", 0) + 1:
            return None
        return next(peer_id for peer_id, brought in self._sources.items() if brought == fullest)
