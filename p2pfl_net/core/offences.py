"""What was wrong with the models of each peer, and who is put aside for it.

A model offends that breaks the protocol on its way here, or that the trainer refuses. Some in a row put
its peer aside: no round asks it for a while, which doubles each further time in the row. A model ends the row
that was answered to the trainer and that its next request does not refuse: until then nobody looked at it.

Whoever refuses us its model has done nothing wrong, but is asked ever more rarely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from p2pfl_net.core.events import Ask, Note
from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.params import Params


@dataclass(slots=True)
class _Row:
    """Offences since the last good model."""

    offences: int = 0
    asides: int = 0
    """How often the peer was put aside for them."""
    until: float = 0.0
    """When it comes back, in the core's time."""


@dataclass(slots=True)
class _Refusals:
    """Refusals to serve us, since it last did."""

    count: int = 0
    until: float = 0.0
    """When it is asked again, in the core's time."""


class Offences:
    """The offenders of one peer's rounds."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._rows: dict[PeerId, _Row] = {}
        self._refusing: dict[PeerId, _Refusals] = {}
        self._unjudged: set[PeerId] = set()
        """Whose models were answered and can still be refused."""
        self.counts: Counter[PeerId] = Counter()
        """How often a peer's model was invalid here or refused by the trainer, since the start."""

    def is_aside(self, peer_id: PeerId, now: float) -> bool:
        """Whether this peer is put aside for wrong models."""
        row = self._rows.get(peer_id)
        return row is not None and now < row.until

    def is_asked(self, peer_id: PeerId, now: float) -> bool:
        """Whether a round may ask this peer now."""
        refusing = self._refusing.get(peer_id)
        return not self.is_aside(peer_id, now) and (refusing is None or now >= refusing.until)

    def refuses(self, peer_id: PeerId, now: float) -> None:
        """The peer does not let us have its model."""
        if peer_id not in self._refusing and len(self._refusing) >= self._params.max_peers:
            return
        refusing = self._refusing.setdefault(peer_id, _Refusals())
        if now < refusing.until:
            return
        seconds = self._params.forbidden_s * 2**refusing.count
        refusing.until = now + min(seconds, self._params.forbidden_max_s)
        refusing.count = min(refusing.count + 1, 64)

    def serves(self, peer_id: PeerId) -> None:
        """The peer has let us have its model."""
        self._refusing.pop(peer_id, None)

    def offend(self, peer_id: PeerId, reason: str, now: float) -> list[Note]:
        """Counts a wrong model; a note where its peer is put aside for it."""
        if peer_id not in self.counts and len(self.counts) >= self._params.max_peers:
            return []
        self.counts[peer_id] += 1
        row = self._rows.setdefault(peer_id, _Row())
        row.offences += 1
        if row.offences < self._params.offences_in_a_row or now < row.until:
            return []
        seconds = min(self._params.aside_s * 2**row.asides, self._params.aside_max_s)
        row.asides = min(row.asides + 1, 64)
        row.until = now + seconds
        return [Note("peer_put_aside", {"peer": peer_id, "seconds": seconds, "reason": reason})]

    def answered(self, peer_ids: Iterable[PeerId]) -> None:
        """The trainer has models of these peers now, to look at."""
        self._unjudged.update(peer_ids)

    def judge(self, request: Ask, now: float) -> list[Note]:
        """The trainer's next request says which of them it refused: the others were good."""
        notes = []
        for peer_id, reason in request.refused[: self._params.max_refusals_noted]:
            self._unjudged.discard(peer_id)
            notes.append(Note("model_refused", {"peer": peer_id, "reason": reason}))
            notes += self.offend(peer_id, reason, now)
        for peer_id in self._unjudged:
            self._rows.pop(peer_id, None)
        self._unjudged.clear()
        return notes
