"""News on its way: each update is passed on a bounded number of times, the freshest first.

Das, Gupta, Motivala: SWIM, 2002, section 4.1 (infection-style dissemination).
"""

from __future__ import annotations

from dataclasses import replace

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import Record


class GossipBuffer:
    """Updates by the number of times each has been sent.

    Three lists side by side, for a message mostly takes all there is: that is one copy.
    """

    def __init__(self) -> None:
        self._turn = 0
        """Messages so far."""
        self._ids: list[PeerId] = []
        self._records: list[Record] = []
        self._since: list[int] = []
        """Since which turn each has been sent in every one; the least often sent come first."""
        self.about: dict[PeerId, Record] = {}
        """The same by peer: what is heard is mostly on its way here too, and this is small enough to stay in
        a processor's cache, as a table of thousands is not."""
        self._elsewhere: dict[PeerId, Record | None] = {}
        """What other machines may hear, where that is not the same; None: nothing."""

    def __len__(self) -> int:
        return len(self._ids)

    def put(self, record: Record) -> None:
        """Spreads `record` from now on, in place of anything older about the same peer."""
        peer_id = record.peer_id
        self.discard(peer_id)
        self._ids.insert(0, peer_id)
        self._records.insert(0, record)
        self._since.insert(0, self._turn)
        self.about[peer_id] = record
        if record.has_loopback:
            self._elsewhere[peer_id] = visible_to(record, to_loopback=False)

    def discard(self, peer_id: PeerId) -> None:
        """Spreads nothing about this peer any more."""
        if peer_id in self.about:
            self._drop(self._ids.index(peer_id))

    def take(self, limit: int, retransmissions: int, *, to_loopback: bool) -> tuple[Record, ...]:
        """At most `limit` updates for one message, the least often sent first; counts them as sent."""
        if not self._ids:
            return ()
        taken = self._records[:limit]
        if self._elsewhere and not to_loopback:
            elsewhere = [self._elsewhere.get(record.peer_id, record) for record in taken]
            taken = [record for record in elsewhere if record is not None]
        self._turn += 1
        if len(self._ids) > limit:
            self._wait_from(limit)
        while self._ids and self._turn - self._since[-1] >= retransmissions:
            self._drop(-1)
        return tuple(taken)

    def _wait_from(self, limit: int) -> None:
        """Those from `limit` on were left out this time, so some before them are more often sent now."""
        since = self._since[:limit] + [turn + 1 for turn in self._since[limit:]]
        order = sorted(range(len(since)), key=since.__getitem__, reverse=True)
        self._ids = [self._ids[place] for place in order]
        self._records = [self._records[place] for place in order]
        self._since = [since[place] for place in order]

    def _drop(self, place: int) -> None:
        peer_id = self._ids.pop(place)
        del self._records[place], self._since[place]
        del self.about[peer_id]
        self._elsewhere.pop(peer_id, None)


def visible_to(record: Record, *, to_loopback: bool) -> Record | None:
    """What of `record` may be told: loopback addresses mean nothing on another machine.

    None when a live peer could not be reached by what is left.
    """
    visible = record if to_loopback or not record.has_loopback else without_loopback(record)
    return None if visible.is_live and not visible.addresses else visible


def without_loopback(record: Record) -> Record:
    if not record.has_loopback:
        return record
    seal = None if record.seal is None else replace(record.seal, local=b"")
    addresses = tuple(address for address in record.addresses if not address.is_loopback)
    return replace(record, addresses=addresses, seal=seal)
