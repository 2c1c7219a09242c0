"""How much each peer, and each address, may ask of this peer in a minute. Pure: the clock is passed in."""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import PeerFailed

ADDRESS_FACTOR = 10
"""Behind one address many peers may live: it has so many times what one peer has. A guess: a lab behind one
router; a hundred daemons on one machine, each of which calls a given other every hundred seconds."""
MAX_KEYS = 2048
"""Peers, or addresses, that are counted at once: each some 300 bytes."""
NOTES_A_MINUTE = 8
"""Lines about limits in the event log, whoever exceeds what."""
_MINUTE_S = 60.0


class Limit(StrEnum):
    """What is counted."""

    CALLS = "calls"
    STREAMS = "streams"
    JOINS = "joins"
    RECORDS = "records"
    REQUESTS = "requests"
    ACCUSATIONS = "accusations"


@dataclass(frozen=True)
class Limits:
    """What a daemon bears. The numbers are of one peer in a minute, and guesses: an honest peer makes some
    200 calls a minute to all others together."""

    calls: int = 1200
    streams: int = 3000
    """Fifty a second: a trainer of a small network on MNIST asked fourteen times a second, and of two peers
    each has one to ask."""
    joins: int = 120
    records: int = 60_000
    """Three times the largest list that one exchange brings."""
    requests: int = 6
    """To be approved: a person reads them."""
    accusations: int = 6
    """Proofs against other peers, each written to disk: an honest peer tells each once."""
    max_connections: int = 1000
    """Open at once, of all addresses. Each other peer keeps up to 256 of its own, the least used closed
    first, so also in a large network about as many come in."""
    max_upload_bytes_s: float | None = None
    """Of all uploads together; None: as fast as they go."""
    max_stream_s: float = 3600.0
    """How long one upload may last."""

    def per_minute(self, limit: Limit) -> int:
        counts: Mapping[Limit, int] = {
            Limit.CALLS: self.calls,
            Limit.STREAMS: self.streams,
            Limit.JOINS: self.joins,
            Limit.RECORDS: self.records,
            Limit.REQUESTS: self.requests,
            Limit.ACCUSATIONS: self.accusations,
        }
        return counts[limit]


class Rates:
    """A token bucket for each key: a minute's worth at once, and as much again in each minute.

    Of a bucket only the time is kept at which it is full again (the generic cell rate algorithm, ITU-T
    I.371). When all places are taken, a new key gets that of the fullest bucket, and what is in it
    (Space-Saving; Metwally, Agrawal, El Abbadi 2005). So whoever is forgotten and comes again never has more
    than it had: many invented keys give nobody a fresh bucket.
    """

    def __init__(self, per_minute: float, max_keys: int = MAX_KEYS) -> None:
        self._cost_s = _MINUTE_S / per_minute
        self._max_keys = max_keys
        self._full_at: dict[str, float] = {}
        self._fullest: list[tuple[float, str]] = []
        """A heap with one entry for each key; its time may be an earlier one of that key."""

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: str, now: float, count: float = 1) -> bool:
        """Takes `count` tokens from the bucket of `key`, or none where there are not so many."""
        full_at = self._full_at.get(key)
        if full_at is None:
            full_at = self._enter(key, now)
        then = max(full_at, now) + count * self._cost_s
        if then > now + _MINUTE_S * (1 + 1e-9):
            return False
        self._full_at[key] = then
        return True

    def _enter(self, key: str, now: float) -> float:
        full_at = now if len(self._full_at) < self._max_keys else max(now, self._give_up_fullest())
        self._full_at[key] = full_at
        heapq.heappush(self._fullest, (full_at, key))
        return full_at

    def _give_up_fullest(self) -> float:
        """Forgets the key whose bucket is the fullest; when that is full."""
        while True:
            noted, key = self._fullest[0]
            full_at = self._full_at[key]
            if full_at == noted:
                heapq.heappop(self._fullest)
                del self._full_at[key]
                return full_at
            heapq.heapreplace(self._fullest, (full_at, key))


class Limiter:
    """Refuses who asks for too much, and tells of it now and then. Thread-safe."""

    def __init__(
        self, limits: Limits, note: Callable[[str, dict[str, object]], None], clock: Callable[[], float]
    ) -> None:
        """`note` hears, as events for the log, who exceeds which limit, and who is refused: of each once a
        minute, of all together a few times."""
        self._limits = limits
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        self._peers = {limit: Rates(limits.per_minute(limit)) for limit in Limit}
        self._addresses = {limit: Rates(ADDRESS_FACTOR * limits.per_minute(limit)) for limit in Limit}
        self._noted = Rates(1)
        self._noted_in_all = Rates(NOTES_A_MINUTE)

    def check_address(self, source: str, limit: Limit, count: int = 1) -> None:
        """Counts what comes from an address (`source_of`). Raises `PeerFailed` (busy) over its limit."""
        self._check(self._addresses[limit], "address", source, limit, count)

    def check_peer(self, peer_id: PeerId, limit: Limit, count: int = 1) -> None:
        """Counts what a peer does that has shown who it is. Raises `PeerFailed` (busy) over its limit."""
        self._check(self._peers[limit], "peer", peer_id, limit, count)

    def _check(self, rates: Rates, kind: str, key: str, limit: Limit, count: int) -> None:
        now = self._clock()
        with self._lock:
            if rates.take(key, now, count):
                return
            is_noted = self._noted.take(f"{limit} {key}", now) and self._noted_in_all.take("limited", now)
        if is_noted:
            self._note("limited", {kind: key, "limit": limit.value})
        allowed = self._limits.per_minute(limit) * (ADDRESS_FACTOR if kind == "address" else 1)
        raise PeerFailed(
            FailureKind.BUSY, f"more than {allowed} {limit} a minute from this {kind}, try again later"
        )

    def refused(self, source: str, reason: str) -> None:
        """A caller at this address was refused, for it did not show that it belongs here."""
        now = self._clock()
        with self._lock:
            is_noted = self._noted.take(f"refused {source}", now) and self._noted_in_all.take("refused", now)
        if is_noted:
            self._note("caller_refused", {"address": source, "reason": reason})


class Pace:
    """A token bucket of bytes. Pure; not thread-safe."""

    def __init__(self, bytes_s: float, burst_bytes: float) -> None:
        self._bytes_s = bytes_s
        self._burst_s = burst_bytes / bytes_s
        self._full_at = -math.inf

    def wait_s(self, size_bytes: int, now: float) -> float:
        """How long until so many bytes may go: 0, at once. More than the burst go when the bucket is full."""
        cost_s = min(size_bytes / self._bytes_s, self._burst_s)
        return max(0.0, max(self._full_at, now) + cost_s - self._burst_s - now)

    def take(self, size_bytes: int, now: float) -> None:
        """So many bytes go."""
        self._full_at = max(self._full_at, now) + size_bytes / self._bytes_s
