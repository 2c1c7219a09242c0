"""The last known addresses of peers that are lost: tried again, so that a split network becomes one.

A peer that was declared dead may be behind a cable that was cut. Both halves of a network forget each
other and go on; when the cable is back, one attempt that gets through is enough, for with it each half
tells the other all it knows (as Serf's reconnect does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.params import Params
from p2pfl_net.core.times import soonest

ADDRESSES_OF_ONE = 2
"""Of a lost peer's addresses: the one that worked, and one more."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Where somebody was, or may be."""

    address: Address
    peer_id: PeerId | None
    """Who: another that lives there now is not looked for. None: whoever does."""


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
        self._soonest: float | None = None
        """No later than when the first of them is due: asked after every event."""
        self._lost: Counter[PeerId | None] = Counter()
        """Who was there, at how many addresses."""
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
                self._forget(self._random.choice(list(self._attempts)))
            due = now if at_once else now + first_s * (0.5 + self._random.random())
            self._attempts[address] = _Attempts(due, first_s, now + self._params.lost_for_s, peer_id)
            self._soonest = soonest(self._soonest, due)
            self._lost[peer_id] += 1

    def found(self, peer_id: PeerId) -> None:
        """The peer is back, or has left for good."""
        if peer_id in self._lost:
            self._forget(*[a for a, entry in self._attempts.items() if entry.peer_id == peer_id])

    def answered(self, address: Address) -> None:
        """Somebody lives there and knows us now."""
        self._forget(address)

    def next_due(self) -> float | None:
        return None if self._soonest is None else max(self._not_before, self._soonest)

    def take(self, now: float, live: int, is_known: Callable[[Address], bool]) -> Lost | None:
        """Whom to try now, and later again; None: none is due, somebody we know lives there, or it is left to
        others: all `live` peers have lost the same one, and a few attempts do for all of them."""
        due = self.next_due()
        if due is None or now < due:
            return None
        self._not_before = now + self._params.heal_spacing_s(live)
        share = self._params.heal_attempts / (live + 1)
        ready = [item for item in self._attempts.items() if item[1].due <= now]
        taken: Lost | None = None
        for address, entry in sorted(ready, key=lambda item: item[1].due):
            if taken is not None:
                break
            is_ours = entry.peer_id is None or self._random.random() < share
            if now >= entry.give_up_at or (is_ours and is_known(address)):
                self._forget(address)
                continue
            entry.due = now + entry.pause_s * (0.75 + 0.5 * self._random.random())
            entry.pause_s = min(2 * entry.pause_s, self._params.heal_max_s)
            if is_ours:
                taken = Lost(address, entry.peer_id)
        self._look_again()
        return taken

    def _forget(self, *addresses: Address) -> None:
        for address in addresses:
            entry = self._attempts.pop(address, None)
            if entry is not None:
                self._lost[entry.peer_id] -= 1
                if not self._lost[entry.peer_id]:
                    del self._lost[entry.peer_id]

    def _look_again(self) -> None:
        self._soonest = min([entry.due for entry in self._attempts.values()], default=None)
