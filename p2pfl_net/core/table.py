"""The peer list: what is known of every other peer, merged from what peers say.

The newer of two records wins, by (incarnation, status): a join-semilattice, so every order of arrival
ends in the same list. The dead stay as tombstones for a while, so that old news cannot revive them.

A record is kept as its owner signed it, to be passed on. Where else its peer may be reached, as far as we
know, is kept beside it.

A record that somebody told us is `hearsay` until we have called its peer ourselves, and how much of it one
machine may bring in is bounded: a liar fills its own share of the table and not that of others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from p2pfl_net.core.hearsay import Hearsay
from p2pfl_net.core.ids import Address, PeerId, source_of
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.roster import Roster
from p2pfl_net.core.suspicion import Suspicion


class Change(StrEnum):
    """What a merge did to the list, as the event log calls it."""

    JOINED = "peer_joined"
    SUSPECTED = "peer_suspected"
    CONFIRMED = "suspicion_confirmed"
    REFUTED = "peer_refuted"
    LOST = "peer_lost"
    LEFT = "peer_left"
    MOVED = "peer_moved"
    UPDATED = "peer_updated"


@dataclass(slots=True)
class Contact:
    """What direct exchanges with a peer have shown."""

    last_seen: float | None = None
    """When it last answered or called us, in the core's time."""
    model_version: int = 0
    """As it last told us."""
    route: Address | None = None
    """The address that last worked."""
    rtt_s: float | None = None
    """Round-trip time of calls to it, smoothed."""


NO_CONTACT = Contact()
_RTT_SHARE = 1 / 8
"""Weight of a new sample, as in TCP (RFC 6298, section 2)."""


class Table:
    """All other peers. `me` never is among them."""

    def __init__(
        self, me: PeerId, params: Params, random: Random, on_forgotten: Callable[[PeerId], None]
    ) -> None:
        """`on_forgotten` hears of each peer of which nothing is known any more."""
        self._me = me
        self._params = params
        self._on_forgotten = on_forgotten
        self._records: dict[PeerId, Record] = {}
        self.evicted: set[PeerId] = set()
        """No members any more, whatever is said of them."""
        self._kept: dict[PeerId, tuple[Address, ...]] = {}
        """Addresses of earlier records at which the peer may still be reached."""
        self._contacts: dict[PeerId, Contact] = {}
        self._suspicions: dict[PeerId, Suspicion] = {}
        self.hearsay = Hearsay(params)
        self._deadlines: list[tuple[float, int, PeerId, int, Status]] = []
        self._entered = 0
        self.live = Roster(random)

    def preload(self, records: Mapping[PeerId, Record], random: Random) -> None:
        """Makes an empty table one that has long known these live peers, ourselves not counted."""
        self._records = dict(records)
        self._records.pop(self._me, None)
        self.live = Roster(random, self._records)

    # what is known ---------------------------------------------------------------------------------

    def get(self, peer_id: PeerId) -> Record | None:
        return self._records.get(peer_id)

    def has(self, record: Record) -> bool:
        """Whether `record` is no news: most that is heard is not, so this costs little."""
        held = self._records.get(record.peer_id)
        if held is None:
            return record.peer_id in self.evicted
        if held.incarnation != record.incarnation:
            return held.incarnation > record.incarnation
        if held.status is not record.status:
            return held.status > record.status
        if held.status is Status.SUSPECT and self._suspicions[record.peer_id].counts(record.suspected_by):
            return False
        return held.addresses == record.addresses

    def contact(self, peer_id: PeerId) -> Contact:
        """What direct exchanges have shown; not to be changed."""
        return self._contacts.get(peer_id, NO_CONTACT)

    def is_live(self, peer_id: PeerId) -> bool:
        record = self._records.get(peer_id)
        return record is not None and record.is_live

    def live_records(self) -> Iterator[Record]:
        return (self._records[peer_id] for peer_id in self.live.members())

    @property
    def known(self) -> Mapping[PeerId, Record]:
        """Records of the live, and of the gone that are still remembered."""
        return self._records

    def addresses(self, peer_id: PeerId) -> tuple[Address, ...]:
        """Candidate addresses of a known peer, the one that last worked first."""
        addresses = self._records[peer_id].addresses + self._kept.get(peer_id, ())
        route = self.contact(peer_id).route
        if route is None or len(addresses) < 2:
            return addresses
        return tuple(sorted(addresses, key=lambda address: address != route))

    # contact ---------------------------------------------------------------------------------------

    def saw(self, peer_id: PeerId, model_version: int, now: float) -> None:
        """A known peer spoke to us."""
        contact = self._contacts.get(peer_id)
        if contact is None:
            if peer_id not in self._records:
                return
            contact = self._contacts[peer_id] = Contact()
        contact.last_seen = now
        contact.model_version = model_version

    def verify(self, peer_id: PeerId, route: Address | None = None, rtt_s: float | None = None) -> None:
        """A known peer answered our call, at `route` after `rtt_s`."""
        if peer_id not in self._records:
            return
        self.hearsay.unmark(peer_id)
        contact = self._contacts.get(peer_id)
        if contact is None:
            contact = self._contacts[peer_id] = Contact()
        if route is not None and route in self.addresses(peer_id):
            contact.route = route
        if rtt_s is not None:
            old_s = contact.rtt_s
            contact.rtt_s = rtt_s if old_s is None else old_s + _RTT_SHARE * (rtt_s - old_s)

    def vouch(self, peer_id: PeerId, host: str) -> None:
        """An unverified peer called us from `host`: if that is its own machine, nobody else brought it."""
        if self.hearsay.source(peer_id) is None:
            return
        if any(address.host == host for address in self.addresses(peer_id)):
            self.hearsay.mark(peer_id, source_of(host))

    # merging ---------------------------------------------------------------------------------------

    def merge(
        self, record: Record, now: float, *, source: str | None = None, whole: bool = False
    ) -> Change | None:
        """Takes `record` in if it is news. Returns what changed for a reader of the list.

        `source`: the host whose word it is; None: our own. `whole`: this is the peer's own word over
        loopback, so it tells all its loopback addresses. Any other record says nothing about them, and
        those that we have stay.
        """
        old = self._records.get(record.peer_id)
        if old is record:
            return None
        if old is None:
            return self._insert(record, now, source)
        if not record.is_newer_than(old):
            if record.incarnation != old.incarnation or record.status is not old.status:
                return None
            if record.status is Status.SUSPECT and self._confirm(record):
                return Change.CONFIRMED
            return self._take_fuller(old, record, whole=whole)
        before = self.addresses(record.peer_id)
        if record.is_live and not record.addresses and not before:  # a tombstone that never had one
            return None
        self._records[record.peer_id] = record
        self._keep(record, before, whole=whole)
        if record.status is not Status.SUSPECT:
            self._suspicions.pop(record.peer_id, None)
        self._schedule(record, now)
        return self._changed(old, record, before)

    def _keep(self, record: Record, before: tuple[Address, ...], *, whole: bool) -> None:
        """What still counts of the addresses that were known: all, where a record carries none; else those of
        this machine, unless the peer itself has told all of them."""
        ports = {address.port for address in record.addresses}  # at another port lives another life
        if not ports:
            kept = before
        elif whole:
            kept = ()
        else:
            here = (a for a in before if a.is_loopback and a.port in ports)
            kept = tuple(a for a in here if a not in record.addresses)
        kept = kept[: self._params.max_addresses - len(record.addresses)]
        if kept:
            self._kept[record.peer_id] = kept
        else:
            self._kept.pop(record.peer_id, None)

    def _changed(self, old: Record, record: Record, before: tuple[Address, ...]) -> Change | None:
        """Brings the live set up to date; what a reader would call the change."""
        if record.is_live:
            if not old.is_live:
                self.live.add(record.peer_id)
                return Change.JOINED
            if record.status is Status.SUSPECT:
                return Change.SUSPECTED
            if record.incarnation > old.incarnation and not set(before) & set(self.addresses(record.peer_id)):
                return Change.MOVED
            return Change.REFUTED if old.status is Status.SUSPECT else Change.UPDATED
        if not old.is_live:
            return None
        self.live.discard(record.peer_id)
        return Change.LEFT if record.status is Status.LEFT else Change.LOST

    def _insert(self, record: Record, now: float, source: str | None) -> Change | None:
        assert record.peer_id != self._me
        if record.peer_id in self.evicted or (record.is_live and not record.addresses):
            return None
        if source is not None and not self.hearsay.has_room(source):
            return None
        if len(self._records) >= self._params.max_peers and not self._make_room(source):
            return None
        self._records[record.peer_id] = record
        if source is not None:
            self.hearsay.mark(record.peer_id, source)
        self._schedule(record, now)
        if not record.is_live:
            return None
        self.live.add(record.peer_id)
        return Change.JOINED

    def _make_room(self, source: str | None) -> bool:
        given_up = self.hearsay.to_give_up(source)
        if given_up is not None:
            self.forget(given_up)
        return given_up is not None

    def forget(self, peer_id: PeerId) -> None:
        """Drops all that is known of a peer."""
        record = self._records.pop(peer_id)
        self._kept.pop(peer_id, None)
        self._contacts.pop(peer_id, None)
        self._suspicions.pop(peer_id, None)
        self.hearsay.unmark(peer_id)
        if record.is_live:
            self.live.discard(peer_id)
        self._on_forgotten(peer_id)

    def _take_fuller(self, old: Record, record: Record, *, whole: bool) -> Change | None:
        """Of two views of one record keeps that with the loopback addresses, or the peer's own."""
        is_fuller = set(old.addresses) < set(record.addresses)
        if not is_fuller and not (whole and record.addresses):
            return None
        had = self.addresses(record.peer_id)
        self._records[record.peer_id] = record
        self._keep(record, had, whole=whole)
        return Change.UPDATED if set(had) != set(self.addresses(record.peer_id)) else None

    # suspicions and tombstones ---------------------------------------------------------------------

    def suspicion(self, peer_id: PeerId) -> Suspicion | None:
        return self._suspicions.get(peer_id)

    def witness(self, peer_id: PeerId, witnesses: int, *, refused: bool) -> None:
        """Adds what our own probe of a suspect has shown: helpers that did not reach it either, and
        whether its machine says that nobody listens there."""
        suspicion = self._suspicions.get(peer_id)
        if suspicion is None:
            return
        suspicion.failed_again(witnesses)
        if refused:
            suspicion.minimum_s = min(suspicion.minimum_s, self._params.refused_s(len(self.live)))
            suspicion.maximum_s = self._params.suspicion_max_factor * suspicion.minimum_s
        self._push(suspicion.next_at(self._params.probe_s), self._records[peer_id])

    def postpone(self, seconds: float) -> None:
        """We were not there to hear refutations for so long."""
        for suspicion in self._suspicions.values():
            suspicion.began += seconds

    def _confirm(self, record: Record) -> bool:
        """Whether this is one more accuser who counts."""
        suspicion = self._suspicions.get(record.peer_id)
        if suspicion is None or not suspicion.agree(record.suspected_by):
            return False
        self._push(suspicion.next_at(self._params.probe_s), record)
        return True

    def _schedule(self, record: Record, now: float) -> None:
        if record.status is Status.ALIVE:
            return
        if record.status is not Status.SUSPECT:
            self._push(now + self._params.tombstone_s, record)
            return
        live = len(self.live)
        minimum_s = self._params.suspicion_s(live)
        suspicion = self._suspicions[record.peer_id] = Suspicion(
            incarnation=record.incarnation,
            began=now,
            minimum_s=minimum_s,
            maximum_s=self._params.suspicion_max_factor * minimum_s,
            wanted=min(self._params.confirmations, live - 1),
        )
        suspicion.agree(record.suspected_by)
        self._push(suspicion.next_at(self._params.probe_s), record)

    def _push(self, time: float, record: Record) -> None:
        self._entered += 1
        entry = (time, self._entered, record.peer_id, record.incarnation, record.status)
        heapq.heappush(self._deadlines, entry)
        if len(self._deadlines) > 2 * len(self._records) + 64:  # peers that come and go leave old ones
            entries = sorted(self._deadlines, reverse=True)
            soonest = {entry[2]: entry for entry in entries if self._is_current(entry)}
            self._deadlines[:] = soonest.values()
            heapq.heapify(self._deadlines)

    def _is_current(self, entry: tuple[float, int, PeerId, int, Status]) -> bool:
        record = self._records.get(entry[2])
        return record is not None and record.incarnation == entry[3] and record.status is entry[4]

    def next_deadline(self) -> float | None:
        """When the next suspicion or tombstone may run out."""
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now: float) -> tuple[list[Record], list[PeerId]]:
        """Suspects whose time ran out, as records of their death to merge, and those who are to be probed
        once more before. The dead of old are forgotten."""
        dead: dict[PeerId, Record] = {}
        doubtful: list[PeerId] = []
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or not self._is_current(deadlines[0])):
            entry = heapq.heappop(deadlines)
            if not self._is_current(entry):
                continue
            _, _, peer_id, _, status = entry
            if status is not Status.SUSPECT:
                self.forget(peer_id)
                continue
            record, suspicion = self._records[peer_id], self._suspicions[peer_id]
            if suspicion.ask_again(now, self._params.probe_s):
                doubtful.append(peer_id)
            due = suspicion.next_at(self._params.probe_s)
            if due <= now:
                dead[peer_id] = replace(record, status=Status.DEAD, suspected_by=None)
            else:
                self._push(due, record)
        return list(dead.values()), doubtful
