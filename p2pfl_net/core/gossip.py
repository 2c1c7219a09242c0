"""News on its way: each update is passed on a bounded number of times, the freshest first.

Das, Gupta, Motivala: SWIM, 2002, section 4.1 (infection-style dissemination).
"""

from __future__ import annotations

import heapq

from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Record


class GossipBuffer:
    """Updates with the number of times each has been sent."""

    def __init__(self) -> None:
        self._updates: dict[PeerId, tuple[Record, int]] = {}

    def __len__(self) -> int:
        return len(self._updates)

    def put(self, record: Record) -> None:
        """Spreads `record` from now on, in place of anything older about the same peer."""
        self._updates[record.peer_id] = (record, 0)

    def discard(self, peer_id: PeerId) -> None:
        """Spreads nothing about this peer any more."""
        self._updates.pop(peer_id, None)

    def take(self, limit: int, retransmissions: int, *, to_loopback: bool) -> tuple[Record, ...]:
        """At most `limit` updates for one message, the least often sent first; counts them as sent."""
        if not self._updates:
            return ()
        chosen: list[Record] = []
        for record, sent in heapq.nsmallest(limit, self._updates.values(), key=lambda update: update[1]):
            visible = visible_to(record, to_loopback=to_loopback)
            if visible is not None:
                chosen.append(visible)
            if sent + 1 >= retransmissions:
                del self._updates[record.peer_id]
            else:
                self._updates[record.peer_id] = (record, sent + 1)
        return tuple(chosen)


def visible_to(record: Record, *, to_loopback: bool) -> Record | None:
    """What of `record` may be told: loopback addresses mean nothing on another machine.

    None when a live peer could not be reached by what is left.
    """
    visible = record if to_loopback else without_loopback(record)
    return None if visible.is_live and not visible.addresses else visible


def without_loopback(record: Record) -> Record:
    return replace_addresses(record, tuple(a for a in record.addresses if not a.is_loopback))


def replace_addresses(record: Record, addresses: tuple[Address, ...]) -> Record:
    if addresses == record.addresses:
        return record
    return Record(record.peer_id, record.incarnation, record.status, addresses, record.task, record.published)
