"""News on its way: each update is passed on a bounded number of times, the freshest first.

Das, Gupta, Motivala: SWIM, 2002, section 4.1 (infection-style dissemination).
"""

from __future__ import annotations

from dataclasses import replace

from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Record


class GossipBuffer:
    """Updates by the number of times each has been sent."""

    def __init__(self) -> None:
        self._sent: dict[PeerId, int] = {}
        self._levels: list[dict[PeerId, tuple[Record, Record | None]]] = []
        """By times sent: what may be told on this machine, and what elsewhere."""

    def __len__(self) -> int:
        return len(self._sent)

    def put(self, record: Record) -> None:
        """Spreads `record` from now on, in place of anything older about the same peer."""
        self.discard(record.peer_id)
        self._place(record.peer_id, 0, (record, visible_to(record, to_loopback=False)))

    def discard(self, peer_id: PeerId) -> None:
        """Spreads nothing about this peer any more."""
        sent = self._sent.pop(peer_id, None)
        if sent is not None:
            del self._levels[sent][peer_id]

    def take(self, limit: int, retransmissions: int, *, to_loopback: bool) -> tuple[Record, ...]:
        """At most `limit` updates for one message, the least often sent first; counts them as sent."""
        if not self._sent:
            return ()
        taken: list[tuple[PeerId, int]] = []
        for sent, level in enumerate(self._levels):
            for peer_id in level:
                if len(taken) == limit:
                    break
                taken.append((peer_id, sent))
        chosen: list[Record] = []
        for peer_id, sent in taken:
            update = self._levels[sent].pop(peer_id)
            visible = update[0] if to_loopback else update[1]
            if visible is not None:
                chosen.append(visible)
            if sent + 1 >= retransmissions:
                del self._sent[peer_id]
            else:
                self._place(peer_id, sent + 1, update)
        return tuple(chosen)

    def _place(self, peer_id: PeerId, sent: int, update: tuple[Record, Record | None]) -> None:
        while len(self._levels) <= sent:
            self._levels.append({})
        self._levels[sent][peer_id] = update
        self._sent[peer_id] = sent


def visible_to(record: Record, *, to_loopback: bool) -> Record | None:
    """What of `record` may be told: loopback addresses mean nothing on another machine.

    None when a live peer could not be reached by what is left.
    """
    visible = record if to_loopback else without_loopback(record)
    return None if visible.is_live and not visible.addresses else visible


def without_loopback(record: Record) -> Record:
    if not any(address.is_loopback for address in record.addresses):
        return record
    return replace_addresses(record, tuple(a for a in record.addresses if not a.is_loopback))


def replace_addresses(record: Record, addresses: tuple[Address, ...]) -> Record:
    if addresses == record.addresses:
        return record
    return replace(record, addresses=addresses)
