"""What this peer knows of itself and of the others, what it takes in and what it passes on.

SWIM's dissemination component (Das, Gupta, Motivala 2002, section 4.1), with the refutation of section
4.2. Who is called, when and why is `probing`'s, `joining`'s and `membership`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from p2pfl_net.core.counters import Counters
from p2pfl_net.core.events import Note, Output
from p2pfl_net.core.gossip import GossipBuffer, visible_to, without_loopback
from p2pfl_net.core.healing import LastKnown
from p2pfl_net.core.health import LocalHealth
from p2pfl_net.core.ids import PeerId, is_loopback, source_of
from p2pfl_net.core.messages import MAX_INCARNATION, Record, Sender, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.table import Change, Table
from p2pfl_net.core.twins import TwinWatch

Sealing = Callable[[Record], Record]
"""Signs a peer's own record."""


def unsealed(record: Record) -> Record:
    """For a network in which nobody lies about others."""
    return record


class Dissemination:
    """The peer's own record, the table of the others, and the news on its way."""

    def __init__(
        self,
        me: Record,
        params: Params,
        random: Random,
        out: list[Output],
        *,
        health: LocalHealth | None = None,
        counters: Counters | None = None,
        seal: Sealing = unsealed,
    ) -> None:
        """`out` receives the outputs; whoever owns it hands them on. `seal` signs our own
        record."""
        self._seal = seal
        self.me = seal(me)
        """This peer's own record; made with `say`. An attribute, for every message asks for it."""
        self.me_elsewhere = without_loopback(self.me)
        """The same as other machines may hear it."""
        self._gossip = GossipBuffer()
        self.table = Table(me.peer_id, params, random, on_forgotten=self._gossip.discard)
        self.last_known = LastKnown(params, random)
        self.offers_left = params.candidate_offers
        """Probes that still offer our unconfirmed addresses."""
        self.ignorant: dict[PeerId, PeerId] = {}
        """Who spoke of an evicted peer as of a member, and of whom; for whoever tells them."""
        self.list_changed = False
        """Whether readers of the peer list must hear of it: once for a message, however much that brings."""
        self._gossip_at: float | None = None
        self._budget = float(params.gossip_burst)
        self._budget_at = 0.0
        self._params = params
        self._random = random
        self._health = health or LocalHealth(params.max_health)
        self._counters = counters or Counters()
        self._out = out
        self._twins = TwinWatch(me, params, out)

    def say(self, record: Record) -> None:
        """Makes `record` our own without telling anybody yet."""
        self.me = self._seal(record)
        self.me_elsewhere = without_loopback(self.me)
        self._twins.said(record)

    # when to gossip --------------------------------------------------------------------------------

    def wakeup(self) -> float | None:
        """When the next gossip is due; None: there is no news, or nobody to tell."""
        return self._gossip_at if self._gossip and self.table.live else None

    def take_turn(self, now: float) -> int:
        """How many peers to gossip to now; the next turn is a gossip interval away, or as long as the
        budget needs to allow one more."""
        if not self._gossip or self._gossip_at is None or now < self._gossip_at:
            return 0
        params = self._params
        earned = (now - self._budget_at) * params.gossip_rate
        self._budget = min(float(params.gossip_burst), self._budget + earned)
        self._budget_at = now
        turns = min(params.gossip_fan_out, int(self._budget))
        self._budget -= turns
        short_s = max(0.0, 1.0 - self._budget) / params.gossip_rate
        self._gossip_at = now + max(params.gossip_interval_s, short_s)
        return turns

    # taking in -------------------------------------------------------------------------------------

    def hear(
        self,
        sender: Sender,
        updates: tuple[Record, ...],
        now: float,
        *,
        host: str,
        exchange: bool = False,
        spread: bool = True,
    ) -> None:
        """Takes in a message that came from `host`: the sender's own record, then what it tells of others.

        What came from another machine brings no loopback addresses in, whatever the sender tells. In an
        `exchange` of all that is known, a death that is news here is a suspicion: after a split, each half
        holds the other dead, and those who live must be asked first (as memberlist's push-pull does). What is
        news is passed on if it is to `spread`: a newcomer's is not, for its network has just told it.
        """
        if sender.record.peer_id == self.me.peer_id:
            return
        over_loopback = is_loopback(host)
        source = source_of(host)
        said = sender.record if over_loopback else without_loopback(sender.record)
        me, table, known = self.me.peer_id, self.table, self.table.known
        if known.get(said.peer_id) is not said:
            self.merge(said, now, source=source, whole=over_loopback, spread=spread)
        self._counters.updates_received += len(updates)
        on_its_way = self._gossip.about
        for record in [update for update in updates if on_its_way.get(update.peer_id) is not update]:
            if known.get(record.peer_id) is record or table.has(record):
                if record.is_live and record.peer_id in table.evicted:
                    self.ignorant[sender.record.peer_id] = record.peer_id
                continue
            if record.peer_id != me:
                visible = visible_to(record, to_loopback=over_loopback)
                if visible is None:
                    continue
                if exchange and record.status is Status.DEAD:
                    if not table.is_live(record.peer_id):
                        continue
                    visible = replace(visible, status=Status.SUSPECT, suspected_by=sender.record.peer_id)
                record = visible
            self.merge(record, now, source=source, spread=spread)
        table.saw(sender.record.peer_id, sender.model_version, now)

    def merge(
        self,
        record: Record,
        now: float,
        *,
        source: str | None = None,
        whole: bool = False,
        spread: bool = True,
    ) -> Change | None:
        """Takes in one record: into the table (`source` and `whole` as there), or in our defence. What is
        news is passed on if it is to `spread`."""
        if record.peer_id == self.me.peer_id:
            self._defend(record, now)
            return None
        change = self.table.merge(record, now, source=source, whole=whole)
        if change is None:
            return None
        held = self.table.get(record.peer_id)
        assert held is not None
        if spread:
            self._spread(record if change is Change.CONFIRMED else held, now)
        self.list_changed = True
        self._follow(change, held, now)
        if change not in (Change.UPDATED, Change.CONFIRMED):
            self._tell(change, held)
        return change

    def _follow(self, change: Change, record: Record, now: float) -> None:
        """Keeps the last known addresses and the counters true."""
        if change is Change.LOST:
            self._counters.deaths += 1
            addresses = self.table.addresses(record.peer_id)
            self.last_known.add(addresses, now, peer_id=record.peer_id)
        elif change is Change.SUSPECTED:
            self._counters.suspicions += 1
        elif change in (Change.JOINED, Change.LEFT):
            self.last_known.found(record.peer_id)

    def _tell(self, change: Change, record: Record) -> None:
        addresses = self.table.addresses(record.peer_id)
        fields: dict[str, str | int | None] = {
            "peer": record.peer_id,
            "address": str(addresses[0]) if addresses else None,
            "peers": len(self.table.live),
        }
        if change is Change.SUSPECTED:
            fields["by"] = record.suspected_by
        self._out.append(Note(change, fields))

    def suspect(
        self, peer_id: PeerId, incarnation: int, now: float, *, witnesses: int, refused: bool
    ) -> None:
        """Nobody reached the peer in the incarnation that it had when it was probed."""
        record = self.table.get(peer_id)
        if record is None or not record.is_live or record.incarnation != incarnation:
            return
        self.merge(replace(record, status=Status.SUSPECT, suspected_by=self.me.peer_id), now)
        self.table.witness(peer_id, witnesses, refused=refused)

    def expire(self, now: float) -> list[PeerId]:
        """Declares dead whose time ran out, and forgets the long dead and all news of them: what is not
        in the table must not fill the buffer. Returns suspects to probe once more."""
        dead, doubtful = self.table.expire(now)
        for record in dead:
            self.merge(record, now)
        return doubtful

    def evict(self, peer_id: PeerId) -> None:
        """This peer is no member from now on."""
        self.table.evicted.add(peer_id)
        if self.table.get(peer_id) is not None:
            self.table.forget(peer_id)
            self.list_changed = True

    def is_twin(self, said: Record, now: float) -> bool:
        """Whether who spoke to us as ourselves is another process. Then it must see that too, by ours."""
        if not self._twins.is_other(said, self.me):
            return False
        step = self._twins.met(said, self.me, now)
        if step and self.me.status is Status.ALIVE:
            highest = max(said.incarnation, self.me.incarnation)
            self.renew(replace(self.me, incarnation=highest + step - 1), now)
        return True

    def _defend(self, record: Record, now: float) -> None:
        """Refutes what is said of us, and outlives the record of an earlier life (SWIM, 4.2)."""
        if self.me.status is not Status.ALIVE or not record.contradicts(self.me):
            return
        step = 1
        if record.status is Status.ALIVE and record.incarnation > self.me.incarnation:
            step = self._twins.outbid(record, self.me, now)
            if not step:
                return
        self.offers_left = self._params.candidate_offers  # perhaps somebody does not reach us
        if record.incarnation == self.me.incarnation and record.status is not Status.ALIVE:
            self._counters.refutations += 1
            self._budget = max(self._budget, float(self._params.gossip_defence))
            self._health.degrade()
        self.renew(replace(self.me, incarnation=record.incarnation + step - 1), now)

    def renew(self, record: Record, now: float) -> None:
        """Makes `record` our own with a higher incarnation, and tells.

        At the bound of incarnations, where only a liar can have taken us, nothing is left to say.
        """
        if record.incarnation >= MAX_INCARNATION:
            return
        self.say(replace(record, incarnation=record.incarnation + 1))
        self.list_changed = True
        self._spread(self.me, now)

    def _spread(self, record: Record, now: float) -> None:
        if not self._gossip:
            soon = now + self._params.gossip_interval_s * self._random.random()
            self._gossip_at = soon if self._gossip_at is None else max(soon, self._gossip_at)
        self._gossip.put(record)

    # passing on ------------------------------------------------------------------------------------

    def news(self, *, to_loopback: bool) -> tuple[Record, ...]:
        """The freshest updates for one message, counted as sent."""
        if not self._gossip:
            return ()
        retransmissions = self._params.retransmissions(len(self.table.live))
        return self._gossip.take(self._params.max_updates, retransmissions, to_loopback=to_loopback)

    def held_against(self, peer_id: PeerId, said: Record | None, *, to_loopback: bool) -> tuple[Record, ...]:
        """What a peer must hear about itself, so that it can refute: suspicion, death, or a record that
        does not agree with what it just `said`."""
        held = self.table.get(peer_id)
        if held is None or (held.status is Status.ALIVE and (said is None or held is said)):
            return ()
        if not to_loopback:
            held = without_loopback(held)
        if held.status is Status.ALIVE and said is not None and not held.contradicts(said):
            return ()
        return (held,)

    def everything(self, reader: PeerId | None, *, to_loopback: bool) -> tuple[Record, ...]:
        """All live peers that `reader` can reach, but itself, and the dead that are remembered."""
        left = Status.LEFT
        told = [r for r in self.table.known.values() if r.status is not left and r.peer_id != reader]
        if to_loopback:
            return tuple(told)
        visible = [visible_to(r, to_loopback=False) if r.has_loopback else r for r in told]
        return tuple([record for record in visible if record is not None])
