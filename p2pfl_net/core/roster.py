"""The live peers in a random order: whose turn it is to be probed, and uniform choices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from p2pfl_net.core.ids import PeerId


class Roster:
    """A set of peers with O(1) insertion, removal, uniform choice and turns.

    Turns are round-robin over a random order (SWIM, section 4.3), so everybody gets one within n turns.
    Unlike SWIM's, it is the same in each round: so others can tell when our next call is due. It is drawn as
    it is needed: the part before the cursor has had its turn. Who is removed stays in the list, marked, until
    the next round: among ten thousand, a list and a place for each would be most of a peer's memory.
    """

    def __init__(self, random: Random, members: Iterable[PeerId] = ()) -> None:
        self._random = random
        self._order: list[PeerId] = list(members)
        self._removed: set[PeerId] = set()
        """Removed, and still in the list."""
        self._cursor = 0
        self._drawn = 0
        """How many places at the front have their peer for good; the rest is drawn in the first round."""

    def __len__(self) -> int:
        return len(self._order) - len(self._removed)

    def add(self, peer_id: PeerId) -> None:
        """Adds who is not in it, at a random place among the turns."""
        if peer_id in self._removed:
            self._removed.discard(peer_id)
        elif self._drawn < len(self._order):
            self._order.append(peer_id)
        else:
            place = self._random.randrange(len(self._order) + 1)
            self._order.insert(place, peer_id)
            self._drawn += 1
            self._cursor += place < self._cursor

    def discard(self, peer_id: PeerId) -> None:
        """Removes who is in it."""
        self._removed.add(peer_id)
        if 4 * len(self._removed) > len(self._order) + 16:
            self._compact()

    def members(self) -> Iterator[PeerId]:
        """All of them in an arbitrary order; not to be changed meanwhile."""
        removed = self._removed
        return (peer_id for peer_id in self._order if peer_id not in removed)

    def next_turn(self) -> PeerId | None:
        """Whose turn it is; None when there is nobody."""
        order = self._order
        for _ in range(len(order) + 1):
            if self._cursor >= len(order):
                self._compact()
                self._cursor = 0
                if not order:
                    return None
            cursor = self._cursor
            if cursor >= self._drawn:
                drawn = self._random.randrange(cursor, len(order))
                order[cursor], order[drawn] = order[drawn], order[cursor]
                self._drawn = cursor + 1
            self._cursor = cursor + 1
            if order[cursor] not in self._removed:
                return order[cursor]
        return None

    def sample(self, count: int, without: Iterable[PeerId] = ()) -> list[PeerId]:
        """`count` different peers, every subset equally likely; all of them when there are fewer."""
        excluded = set(without)
        order, removed = self._order, self._removed
        if 4 * (count + len(excluded) + len(removed)) >= len(order):
            eligible = [p for p in order if p not in removed and p not in excluded]
            return self._random.sample(eligible, min(count, len(eligible)))
        chosen: list[PeerId] = []
        while len(chosen) < count:  # more than three in four draws succeed
            peer_id = order[self._random.randrange(len(order))]
            if peer_id not in removed and peer_id not in excluded:
                excluded.add(peer_id)
                chosen.append(peer_id)
        return chosen

    def _compact(self) -> None:
        """Drops the removed from the list; who had a turn keeps it."""
        if not self._removed:
            return
        removed, order = self._removed, self._order
        self._cursor -= sum(peer_id in removed for peer_id in order[: self._cursor])
        self._drawn -= sum(peer_id in removed for peer_id in order[: self._drawn])
        order[:] = [peer_id for peer_id in order if peer_id not in removed]
        removed.clear()
