"""Decisions on a peer go on when its key is replaced: what was said of the old id holds for the new one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set

from p2pfl_state.trust import MAX_HEIRS, Heir

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.trust import Trust


class Heirs:
    """Who follows whom, as former keys have signed. Not thread-safe.

    Of several that one old key vouches for, the first counts: a second line is a thief's. It inherits no
    approval, but a revocation all the same. An old id that has an heir is approved no more: its key may be in
    other hands. `MAX_HEIRS` are remembered; those that came first are forgotten first.
    """

    def __init__(self) -> None:
        self._former: OrderedDict[PeerId, tuple[PeerId, ...]] = OrderedDict()
        self._heir: dict[PeerId, PeerId] = {}

    def add(self, peer_id: PeerId, former: tuple[PeerId, ...]) -> None:
        """`former`: the ids that this peer had before, newest first, verified."""
        self._former[peer_id] = former
        for new, old in zip((peer_id, *former), former, strict=False):
            self._heir.setdefault(old, new)
        if len(self._former) > MAX_HEIRS:
            _, forgotten = self._former.popitem(last=False)
            for old in forgotten:
                self._heir.pop(old, None)

    def of(self, decided: Set[str]) -> tuple[Heir, ...]:
        """Those of peers on whom, under any of their ids, was decided, in the order in which they came."""
        return tuple(
            Heir(peer_id, former)
            for peer_id, former in self._former.items()
            if not decided.isdisjoint((peer_id, *former))
        )

    def applied(self, trust: Trust) -> Trust:
        """The same decisions, for the heirs too. What a person said of an heir itself comes first."""
        approved, revoked = set(trust.approved), set(trust.revoked)
        for peer_id, former in self._former.items():
            if trust.said_of(peer_id) is not None:
                continue
            if not trust.revoked.isdisjoint(former):
                revoked.add(peer_id)
            elif self._is_first(peer_id, former) and not trust.approved.isdisjoint(former):
                approved.add(peer_id)
        approved -= self._heir.keys()
        return Trust(frozenset(approved), frozenset(revoked), trust.approved_only)

    def _is_first(self, peer_id: PeerId, former: tuple[PeerId, ...]) -> bool:
        """Whether the whole line is the one that came first."""
        line = zip((peer_id, *former), former, strict=False)
        return all(self._heir.get(old) == new for new, old in line)
