"""Whom this peer trusts with its model, and whose models it takes. Membership does not ask."""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl_net.core.ids import PeerId


@dataclass(frozen=True, slots=True)
class Trust:
    """What a person decided, as far as decisions of the core depend on it."""

    approved: frozenset[PeerId] = frozenset()
    revoked: frozenset[PeerId] = frozenset()
    approved_only: bool = False
    """Whether who was not decided on is left out too."""

    def allows(self, peer_id: PeerId) -> bool:
        """Whether models may go to this peer and come from it."""
        return peer_id in self.approved if self.approved_only else peer_id not in self.revoked

    def said_of(self, peer_id: PeerId) -> str | None:
        """The decision in a word; None: there is none."""
        if peer_id in self.approved:
            return "approved"
        return "revoked" if peer_id in self.revoked else None
