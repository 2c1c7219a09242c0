"""What this peer knows of itself and of the others, what it takes in and what it passes on.

SWIM's dissemination component (Das, Gupta, Motivala 2002, section 4.1), with the refutation of section
4.2. Who is called, when and why is `membership`'s.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from p2pfl_net.core.events import Note, Output, PeersChanged
from p2pfl_net.core.gossip import GossipBuffer, visible_to, without_loopback
from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import MAX_INCARNATION, Record, Sender, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.sampling import ProbeOrder
from p2pfl_net.core.table import Change, Table


class Dissemination:
    """The peer's own record, the table of the others, and the news on its way."""

    def __init__(self, me: Record, params: Params, random: Random, out: list[Output]) -> None:
        """`out` receives the outputs; whoever owns it hands them on."""
        self.me = me
        self.table = Table(me.peer_id, params)
        self.probe_order = ProbeOrder(random)
        self.offers_left = params.candidate_offers
        """Probes that still offer our unconfirmed addresses."""
        self._gossip = GossipBuffer()
        self._gossip_at: float | None = None
        self._params = params
        self._random = random
        self._out = out

    # when to gossip --------------------------------------------------------------------------------

    def wakeup(self) -> float | None:
        """When the next gossip is due; None: there is no news, or nobody to tell."""
        return self._gossip_at if self._gossip and self.table.live else None

    def take_turn(self, now: float) -> bool:
        """Whether gossip is due; if so, the next turn is a gossip interval away."""
        if not self._gossip or self._gossip_at is None or now < self._gossip_at:
            return False
        self._gossip_at = now + self._params.gossip_interval_s
        return True

    # taking in -------------------------------------------------------------------------------------

    def hear(
        self,
        sender: Sender,
        updates: tuple[Record, ...],
        now: float,
        *,
        over_loopback: bool,
    ) -> None:
        """Takes in a message of `sender` with its updates.

        What came from another machine brings no loopback addresses in, whatever the sender tells.
        """
        if sender.record.peer_id == self.me.peer_id:
            return
        said = sender.record if over_loopback else without_loopback(sender.record)
        self.merge(said, now, whole=over_loopback)
        for record in updates:
            visible = visible_to(record, to_loopback=over_loopback)
            if visible is not None or record.peer_id == self.me.peer_id:
                self.merge(visible or record, now)
        member = self.table.get(sender.record.peer_id)
        if member is not None:
            member.last_seen = now
            member.model_version = sender.model_version

    def merge(self, record: Record, now: float, *, whole: bool = False) -> None:
        """Takes in one record: into the table (`whole` as there), or in our defence."""
        if record.peer_id == self.me.peer_id:
            self._defend(record, now)
            return
        change = self.table.merge(record, now, whole=whole)
        if change is None:
            return
        member = self.table.get(record.peer_id)
        assert member is not None
        self._spread(member.record, now)
        self._out.append(PeersChanged())
        if change is Change.JOINED:
            self.probe_order.add(record.peer_id)
        if change is not Change.UPDATED:
            addresses = member.addresses()
            fields: dict[str, str | int | None] = {
                "peer": record.peer_id,
                "address": str(addresses[0]) if addresses else None,
                "peers": len(self.table.live),
            }
            self._out.append(Note(change.value, fields))

    def expire(self, now: float) -> None:
        """Declares dead whose time ran out, and forgets the long dead and all news of them: what is not
        in the table must not fill the buffer."""
        dead, forgotten = self.table.expire(now)
        for peer_id in forgotten:
            self._gossip.discard(peer_id)
        for record in dead:
            self.merge(record, now)

    def _defend(self, record: Record, now: float) -> None:
        """Refutes what is said of us, and outlives the record of an earlier life (SWIM, 4.2)."""
        if self.me.status is Status.ALIVE and record.contradicts(self.me):
            self.offers_left = self._params.candidate_offers  # perhaps somebody does not reach us
            self.renew(replace(self.me, incarnation=record.incarnation), now)

    def renew(self, record: Record, now: float) -> None:
        """Makes `record` our own with a higher incarnation, and tells.

        At the bound of incarnations, where only a liar can have taken us, nothing is left to say.
        """
        if record.incarnation >= MAX_INCARNATION:
            return
        self.me = replace(record, incarnation=record.incarnation + 1)
        self._out.append(PeersChanged())
        self._spread(self.me, now)

    def _spread(self, record: Record, now: float) -> None:
        if not self._gossip:
            self._gossip_at = now + self._params.gossip_interval_s * self._random.random()
        self._gossip.put(record)

    # passing on ------------------------------------------------------------------------------------

    def news(self, *, to_loopback: bool) -> tuple[Record, ...]:
        """The freshest updates for one message, counted as sent."""
        retransmissions = self._params.retransmissions(len(self.table.live))
        return self._gossip.take(self._params.max_updates, retransmissions, to_loopback=to_loopback)

    def held_against(self, peer_id: PeerId, said: Record | None, *, to_loopback: bool) -> tuple[Record, ...]:
        """What a peer must hear about itself, so that it can refute: suspicion, death, or a record that
        does not agree with what it just `said`."""
        member = self.table.get(peer_id)
        if member is None:
            return ()
        held = member.record if to_loopback else without_loopback(member.record)
        if held.status is Status.ALIVE and (said is None or not held.contradicts(said)):
            return ()
        return (held,)

    def whole(self, reader: PeerId, *, to_loopback: bool) -> tuple[Record, ...]:
        """All live peers that `reader` can reach, but itself."""
        visible = (visible_to(member.record, to_loopback=to_loopback) for member in self.table.live_members())
        return tuple(record for record in visible if record is not None and record.peer_id != reader)
