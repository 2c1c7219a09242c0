"""Who has signed two models under one version is no member any more, and everybody hears the proof.

The proof spreads as a rumour does: who hears it for the first time tells some random peers (Demers et al.:
Epidemic Algorithms for Replicated Database Maintenance, 1987). Who speaks of an evicted peer as of a member
has not heard, and is told. A rumour about a peer of which nobody spoke as of a member is nobody's business:
keys that contradict themselves can be made without end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from p2pfl_net.core.calls import Calls
from p2pfl_net.core.dissemination import Dissemination
from p2pfl_net.core.events import Evicted, Note, Output
from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import Equivocation
from p2pfl_net.core.params import Params


class Evictions:
    """The proofs that this peer holds."""

    def __init__(self, known: Dissemination, calls: Calls, params: Params, out: list[Output]) -> None:
        """`out` receives the outputs; whoever owns it hands them on."""
        self._known = known
        self._calls = calls
        self._params = params
        self._out = out
        self._proofs: OrderedDict[PeerId, Equivocation] = OrderedDict()
        self._strangers: dict[PeerId, None] = {}
        """Those of them that we had never called: their proofs make room for others."""
        self._told: OrderedDict[tuple[PeerId, PeerId], float] = OrderedDict()
        """When whom was told about whom."""

    def restore(self, proofs: Iterable[Equivocation]) -> None:
        """What an earlier life held."""
        for proof in proofs:
            self._hold(proof, is_stranger=False)

    def is_evicted(self, peer_id: PeerId) -> bool:
        return peer_id in self._proofs

    def hear(self, proof: Equivocation, now: float) -> None:
        """Takes in what another peer proves of a third, if that is known here."""
        if self._known.table.get(proof.peer_id) is not None or proof.peer_id == self._known.me.peer_id:
            self.prove(proof, now)

    def prove(self, proof: Equivocation, now: float) -> None:
        """Takes in a proof that was checked, and passes it on if it is news."""
        peer_id = proof.peer_id
        if peer_id in self._proofs:
            return
        if peer_id == self._known.me.peer_id:
            self._out.append(Note("accused", {"version": proof.version}))
            return
        is_stranger = self._known.table.hearsay.source(peer_id) is not None
        if is_stranger and len(self._proofs) >= self._params.max_evicted:
            return
        self._out.append(Evicted(proof, self._hold(proof, is_stranger=is_stranger)))
        live = self._known.table.live
        note = Note("peer_evicted", {"peer": peer_id, "version": proof.version, "peers": len(live)})
        self._out.append(note)
        for teller in live.sample(self._params.retransmissions(len(live))):
            self._tell(teller, proof, now)

    def inform(self, now: float) -> None:
        """Tells those who spoke of an evicted peer as of a member."""
        while self._known.ignorant:
            teller, about = self._known.ignorant.popitem()
            proof = self._proofs.get(about)
            if proof is not None and self._known.table.is_live(teller):
                self._tell(teller, proof, now)

    def _hold(self, proof: Equivocation, *, is_stranger: bool) -> PeerId | None:
        """Who is forgotten for it, where there are too many."""
        self._proofs[proof.peer_id] = proof
        self._known.evict(proof.peer_id)
        if is_stranger:
            self._strangers[proof.peer_id] = None
        if len(self._proofs) <= self._params.max_evicted:
            return None
        forgotten = next(iter(self._strangers or self._proofs))
        self._strangers.pop(forgotten, None)
        del self._proofs[forgotten]
        self._known.table.evicted.discard(forgotten)
        return forgotten

    def _tell(self, teller: PeerId, proof: Equivocation, now: float) -> None:
        told_at = self._told.get((teller, proof.peer_id))
        if told_at is not None and now - told_at < self._params.tell_again_s:
            return
        self._told[teller, proof.peer_id] = now
        self._told.move_to_end((teller, proof.peer_id))
        if len(self._told) > self._params.max_evicted:
            self._told.popitem(last=False)
        self._calls.accuse(teller, proof, now)
