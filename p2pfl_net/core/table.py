"""The peer list: what is known of every other peer, merged from what peers say.

The newer of two records wins, by (incarnation, status): a join-semilattice, so every order of arrival
ends in the same list. The dead stay as tombstones for a while, so that old news cannot revive them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from p2pfl_net.core.gossip import replace_addresses
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.sampling import PeerSet


class Change(Enum):
    """What a merge did to the list."""

    JOINED = "peer_joined"
    SUSPECTED = "peer_suspected"
    REFUTED = "peer_refuted"
    LOST = "peer_lost"
    LEFT = "peer_left"
    UPDATED = "peer_updated"


@dataclass(slots=True)
class Member:
    """One other peer."""

    record: Record
    last_seen: float | None = None
    """When it last answered or called us, in the core's time; None: only heard of."""
    model_version: int = 0
    """As it last told us directly."""
    route: Address | None = None
    """The address that last worked."""

    def addresses(self) -> tuple[Address, ...]:
        """Candidate addresses, the one that last worked first."""
        return tuple(sorted(self.record.addresses, key=lambda address: address != self.route))


class Table:
    """All other peers. `me` never is among them."""

    def __init__(self, me: PeerId, params: Params) -> None:
        self._me = me
        self._params = params
        self._members: dict[PeerId, Member] = {}
        self._deadlines: list[tuple[float, int, PeerId, Record]] = []
        self._entered = 0
        self.live = PeerSet()

    def get(self, peer_id: PeerId) -> Member | None:
        return self._members.get(peer_id)

    def is_live(self, peer_id: PeerId) -> bool:
        return peer_id in self.live

    def live_members(self) -> Iterator[Member]:
        return (self._members[peer_id] for peer_id in self.live.members())

    def merge(self, record: Record, now: float, *, whole: bool = False) -> Change | None:
        """Takes `record` in if it is news. Returns what changed for a reader of the list.

        `whole`: this is the peer's own word over loopback, so it tells all its loopback addresses. Any
        other record says nothing about them, and those that we have stay.
        """
        assert record.peer_id != self._me
        member = self._members.get(record.peer_id)
        if member is None:
            return self._insert(record, now)
        old = member.record
        if whole:
            kept = tuple(a for a in old.addresses if not a.is_loopback or a in record.addresses)
            member.record = old = replace_addresses(old, kept or old.addresses)
        if not record.is_newer_than(old):
            if (record.incarnation, record.status) == (old.incarnation, old.status):
                return self._join_addresses(member, record)
            return None
        if not record.addresses:  # somebody's word of a death may carry none
            record = replace_addresses(record, old.addresses)
        elif not whole:
            loopback = tuple(a for a in old.addresses if a.is_loopback and a not in record.addresses)
            limit = self._params.max_addresses
            record = replace_addresses(record, (*record.addresses, *loopback)[:limit])
        if record.is_live and not record.addresses:  # a tombstone that never had one
            return None
        member.record = record
        self._schedule(record, now)
        if record.is_live:
            self.live.add(record.peer_id)
            if not old.is_live:
                return Change.JOINED
            if record.status is Status.SUSPECT:
                return Change.SUSPECTED
            return Change.REFUTED if old.status is Status.SUSPECT else Change.UPDATED
        self.live.discard(record.peer_id)
        if not old.is_live:
            return None
        return Change.LEFT if record.status is Status.LEFT else Change.LOST

    def _insert(self, record: Record, now: float) -> Change | None:
        if len(self._members) >= self._params.max_peers or (record.is_live and not record.addresses):
            return None
        self._members[record.peer_id] = Member(record)
        self._schedule(record, now)
        if not record.is_live:
            return None
        self.live.add(record.peer_id)
        return Change.JOINED

    def _join_addresses(self, member: Member, record: Record) -> Change | None:
        """Two views of the same record may carry different addresses, for loopback ones are filtered."""
        known = member.record.addresses
        more = tuple(address for address in record.addresses if address not in known)
        if not more or len(known) >= self._params.max_addresses:
            return None
        member.record = replace_addresses(member.record, (known + more)[: self._params.max_addresses])
        return Change.UPDATED

    def _schedule(self, record: Record, now: float) -> None:
        if record.status is Status.ALIVE:
            return
        patience = (
            self._params.suspicion_s(len(self.live))
            if record.status is Status.SUSPECT
            else self._params.tombstone_s
        )
        self._entered += 1
        heapq.heappush(self._deadlines, (now + patience, self._entered, record.peer_id, record))
        if len(self._deadlines) > 2 * len(self._members) + 64:  # peers that come and go leave old ones
            self._deadlines = [entry for entry in self._deadlines if self._is_current(entry[3])]
            heapq.heapify(self._deadlines)

    def _is_current(self, record: Record) -> bool:
        member = self._members.get(record.peer_id)
        return member is not None and (member.record.incarnation, member.record.status) == (
            record.incarnation,
            record.status,
        )

    def next_deadline(self) -> float | None:
        """When the next suspicion or tombstone runs out."""
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> tuple[list[Record], list[PeerId]]:
        """Suspects whose time ran out, as records of their death to merge; and the dead of old, who are
        forgotten now."""
        dead: list[Record] = []
        forgotten: list[PeerId] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, peer_id, record = heapq.heappop(self._deadlines)
            if not self._is_current(record):
                continue
            if record.status is Status.SUSPECT:
                dead.append(replace(self._members[peer_id].record, status=Status.DEAD))
            else:
                del self._members[peer_id]
                forgotten.append(peer_id)
        return dead, forgotten
