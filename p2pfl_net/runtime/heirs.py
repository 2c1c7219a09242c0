"""Decisions on a peer go on when its key is replaced: what was said of the old id holds for the new one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise

from p2pfl_state.trust import MAX_LINKS, Link

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.trust import Trust

MAX_ROTATIONS_OF_ONE = 64
"""New keys in a row that a decision follows; then a person decides anew. A guess: years of rotations."""
MAX_RIVALS_OF_ONE = 8
"""Ids beside the line of one decided peer, which its former keys vouch for too. A guess: each is a theft."""


class Heirs:
    """Who follows whom, as former keys have signed, from the ids on that a person decided on. Not
    thread-safe.

    Of several that one old key vouches for, the first counts: a second line is a thief's. It inherits no
    approval, but a revocation all the same. An old id that has an heir is approved no more: its key may be in
    other hands. Nothing that came first is ever forgotten for what comes later, and of peers on whom nobody
    decided nothing is kept, so strangers move nothing here.
    """

    def __init__(self, decided: Collection[PeerId] = ()) -> None:
        self._decided: frozenset[PeerId] = frozenset(decided)
        self._forget()

    def _forget(self) -> None:
        self._next: dict[PeerId, list[PeerId]] = {}
        """Who follows each id: the heir first, then its rivals. A forest: nobody follows two."""
        self._root: dict[PeerId, PeerId] = {}
        """From which decided id each of those who follow comes. A decided one is its own."""
        self._rivals: set[PeerId] = set()
        """Those that are not on the first line of their root."""
        self._counts: dict[tuple[PeerId, bool], int] = {}
        """Of each root, how many follow it, on its line and beside it."""

    @property
    def links(self) -> tuple[Link, ...]:
        """All of it; the heir of each id before its rivals."""
        return tuple(Link(old, new) for old, news in self._next.items() for new in news)

    def decide(self, decided: Collection[PeerId]) -> None:
        """These are the ids on which was decided, from now on; what comes from others is dropped."""
        links = self.links
        self._decided = frozenset(decided)
        self._forget()
        self.restore(links)

    def restore(self, links: Iterable[Link]) -> None:
        """What was known before."""
        for link in links:
            self.add(PeerId(link.new), (PeerId(link.old),))

    def add(self, peer_id: PeerId, former: tuple[PeerId, ...]) -> bool:
        """`former`: the ids that this peer had before, newest first, verified. Whether that is news here."""
        line = (*reversed(former), peer_id)
        known = next((n for n, old in enumerate(line) if self._root_of(old) is not None), None)
        if known is None:
            return False
        linked = [self._link(old, new) for old, new in pairwise(line[known:])]
        return any(linked)

    def _root_of(self, peer_id: PeerId) -> PeerId | None:
        return peer_id if peer_id in self._decided else self._root.get(peer_id)

    def _link(self, old: PeerId, new: PeerId) -> bool:
        """Lets one follow another; false where it does already, or there is no room."""
        root = self._root_of(old)
        news = self._next.get(old, [])
        if root is None or new in news or new == root or new in self._root:
            return False
        is_rival = bool(news) or (old in self._rivals and old not in self._decided)
        count = self._counts.get((root, is_rival), 0)
        full = count >= (MAX_RIVALS_OF_ONE if is_rival else MAX_ROTATIONS_OF_ONE)
        one_at_least = not is_rival and count == 0  # of each decided peer, whatever others have
        if full or (len(self._root) >= MAX_LINKS and not one_at_least):
            return False
        self._next[old] = [*news, new]
        self._root[new] = root
        self._counts[root, is_rival] = count + 1
        if is_rival:
            self._rivals.add(new)
        return True

    def applied(self, trust: Trust) -> Trust:
        """The same decisions, for the heirs too. What a person said of an heir itself comes first, and holds
        for its heirs."""
        revoked = set(trust.revoked)
        for old in trust.revoked & self._next.keys():
            revoked.update(self._followers(old))
        approved = set(trust.approved)
        for old in trust.approved & self._next.keys():
            approved.discard(old)
            heir = self._last(old)
            if heir is not None and heir not in revoked:
                approved.add(heir)
        return Trust(frozenset(approved), frozenset(revoked), trust.approved_only)

    def _followers(self, old: PeerId) -> Iterator[PeerId]:
        """All that come from a decided id, up to the next decided one."""
        left = [old]
        while left:
            for new in self._next.get(left.pop(), ()):
                if new not in self._decided:
                    left.append(new)
                    yield new

    def _last(self, old: PeerId) -> PeerId | None:
        """The end of the line of a decided id; None where a person decided on somebody in it."""
        while old in self._next:
            old = self._next[old][0]
            if old in self._decided:
                return None
        return old
