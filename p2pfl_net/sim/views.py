"""Who knows whom in a simulated network, as counts: whether all views are right is asked often."""

from __future__ import annotations

from collections.abc import Iterable

from p2pfl_net.core.ids import PeerId


class Views:
    """In how many views of live peers each peer is."""

    def __init__(self) -> None:
        self._knowers: dict[PeerId, int] = {}
        self._living: set[PeerId] = set()
        self._of_living = 0
        self._of_dead = 0

    def add(self, peer_id: PeerId, knowers: int = 0) -> None:
        """A live peer more; its own view counts from now on."""
        self._knowers[peer_id] = knowers
        self._living.add(peer_id)
        self._of_living += knowers

    def bury(self, peer_id: PeerId, view: Iterable[PeerId]) -> None:
        """A peer runs no more: its own `view` does not count, and it should be in nobody's."""
        self._living.remove(peer_id)
        self._of_living -= self._knowers[peer_id]
        self._of_dead += self._knowers[peer_id]
        for known in view:
            self.left(known)

    def entered(self, peer_id: PeerId) -> int:
        """One more knows the peer; how many do."""
        return self._change(peer_id, 1)

    def left(self, peer_id: PeerId) -> int:
        """One fewer knows the peer; how many do."""
        return self._change(peer_id, -1)

    def _change(self, peer_id: PeerId, by: int) -> int:
        self._knowers[peer_id] += by
        if peer_id in self._living:
            self._of_living += by
        else:
            self._of_dead += by
        return self._knowers[peer_id]

    def are_right(self) -> bool:
        """Whether every live peer's view holds exactly the other live peers."""
        live = len(self._living)
        return not self._of_dead and self._of_living == live * (live - 1)

    @property
    def live(self) -> int:
        return len(self._living)
