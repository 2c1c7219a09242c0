"""The last known addresses of peers that are lost: tried again, so that a split network becomes one.

A peer that was declared dead may be behind a cable that was cut. Both halves of a network forget each
other and go on; when the cable is back, one attempt that gets through is enough, for with it each half
tells the other all it knows (as Serf's reconnect does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.params import Params

ADDRESSES_OF_ONE = 2
"""Of a lost peer's addresses: the one that worked, and one more."""


@dataclass(slots=True)
class _Attempts:
    due: float
    pause_s: float
    give_up_at: float
    peer_id: PeerId | None


class LastKnown:
    """A bounded number of addresses, and when to try each. Times in seconds of the core's clock."""

    def __init__(self, params: Params, random: Random) -> None:
        self._params = params
        self._random = random
        self._attempts: dict[Address, _Attempts] = {}
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._attempts)

    def add(
        self,
        addresses: tuple[Address, ...],
        now: float,
        *,
        peer_id: PeerId | None = None,
        at_once: bool = False,
    ) -> None:
        """Remembers where a peer was, or where somebody may be. When there are too many, chance decides
        who is forgotten."""
        first_s = self._params.heal_interval_s
        for address in addresses[:ADDRESSES_OF_ONE] if peer_id is not None else addresses:
            if address in self._attempts:
                continue
            if len(self._attempts) >= self._params.max_lost:
                del self._attempts[self._random.choice(list(self._attempts))]
            due = now if at_once else now + first_s * (0.5 + self._random.random())
            self._attempts[address] = _Attempts(due, first_s, now + self._params.lost_for_s, peer_id)

    def found(self, peer_id: PeerId) -> None:
        """The peer is back, or has left for good."""
        if self._attempts:
            self._attempts = {a: entry for a, entry in self._attempts.items() if entry.peer_id != peer_id}

    def answered(self, address: Address) -> None:
        """Somebody lives there and knows us now."""
        self._attempts.pop(address, None)

    def next_due(self) -> float | None:
        if not self._attempts:
            return None
        return max(self._not_before, min(entry.due for entry in self._attempts.values()))

    def take(self, now: float, live: int, is_known: Callable[[Address], bool]) -> Address | None:
        """The address to try now, and later again; None: none is due, somebody we know lives there, or it
        is left to others: all `live` peers have lost the same one, and a few attempts do for all of them."""
        due = self.next_due()
        if due is None or now < due:
            return None
        address, entry = min(self._attempts.items(), key=lambda item: item[1].due)
        if now >= entry.give_up_at or is_known(address):
            del self._attempts[address]
            return None
        entry.due = now + entry.pause_s * (0.75 + 0.5 * self._random.random())
        entry.pause_s = min(2 * entry.pause_s, self._params.heal_max_s)
        if entry.peer_id is not None and self._random.random() * (live + 1) >= self._params.heal_attempts:
            return None
        self._not_before = now + self._params.heal_spacing_s
        return address
