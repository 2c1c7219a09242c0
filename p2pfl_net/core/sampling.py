"""Choosing peers at random: uniform subsets, and an order in which everybody gets a turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from p2pfl_net.core.ids import PeerId


class PeerSet:
    """A set of peers with O(1) insertion, removal and uniform choice, and a reproducible order."""

    def __init__(self) -> None:
        self._order: list[PeerId] = []
        self._place: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._place

    def add(self, peer_id: PeerId) -> None:
        if peer_id not in self._place:
            self._place[peer_id] = len(self._order)
            self._order.append(peer_id)

    def discard(self, peer_id: PeerId) -> None:
        place = self._place.pop(peer_id, None)
        if place is None:
            return
        last = self._order.pop()
        if last != peer_id:
            self._order[place] = last
            self._place[last] = place

    def sample(self, count: int, random: Random) -> list[PeerId]:
        """`count` different peers, every subset equally likely; all of them when there are fewer."""
        return random.sample(self._order, min(count, len(self._order)))

    def members(self) -> Sequence[PeerId]:
        """All of them in a fixed but arbitrary order; not to be changed, nor kept over a change."""
        return self._order


class ProbeOrder:
    """Round-robin over a shuffled list, shuffled again after each round (SWIM, section 4.3).

    A peer is probed at least once in 2n - 1 periods, however the choice falls.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._queue: list[PeerId] = []
        self._queued: set[PeerId] = set()

    def next(self, live: Sequence[PeerId], is_live: Callable[[PeerId], bool]) -> PeerId | None:
        """The next live peer to probe, None when there is none."""
        while self._queue:
            peer_id = self._pop()
            if is_live(peer_id):
                return peer_id
        self._queue = list(live)
        self._queued = set(self._queue)
        self._random.shuffle(self._queue)
        return self._pop() if self._queue else None

    def _pop(self) -> PeerId:
        peer_id = self._queue.pop()
        self._queued.discard(peer_id)
        return peer_id

    def add(self, peer_id: PeerId) -> None:
        """Puts a new peer at a random place of the current round; one that returns may still be in it."""
        if peer_id in self._queued:
            return
        self._queued.add(peer_id)
        self._queue.insert(self._random.randint(0, len(self._queue)), peer_id)
