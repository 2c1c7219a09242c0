"""Another process that lives with our key, as in a copied directory: noticed by what it says of itself.

Both announce records of one peer, each newer than the other's last. A record of an earlier life of ours can
be newer too, where the clock was set back, and so can two that reach us one after the other. But nobody who
is gone outbids a record that we have only just said.
"""

from __future__ import annotations

from collections import deque

from p2pfl_net.core.events import Note, Output
from p2pfl_net.core.messages import Record
from p2pfl_net.core.params import Params

CONFLICT_EVENT = "identity_conflict"
MAX_SAID = 64
"""Incarnations of ours that are remembered: more than a life has in the time that a call takes."""


class TwinWatch:
    """Counts the records of ourselves that cannot be ours, and tells whoever runs us."""

    def __init__(self, first: Record, params: Params, out: list[Output]) -> None:
        """`first`: what this life says at first. `out` receives the notes."""
        self._said = deque([first.incarnation], MAX_SAID)
        self._params = params
        self._out = out
        self._heard = 0
        self._heard_at = 0.0
        self._silent_until = 0.0
        self._told_at: float | None = None

    def said(self, record: Record) -> None:
        """This is our own record from now on."""
        self._said.append(record.incarnation)

    def outbid(self, record: Record, me: Record, now: float) -> int:
        """Takes in a record of ourselves that is alive and newer than all that this life has said. How far
        beyond it our own is to go; 0: the other's stands for a while."""
        params = self._params
        if now - self._heard_at > params.tombstone_s:
            self._heard = 0
        self._heard_at = now
        self._heard += 1
        if self._heard < params.twin_records:
            return 1 if self._heard < params.twin_records - 1 else params.twin_step
        self._tell(record, me, now)
        return self._next_step(now)

    def is_other(self, record: Record, me: Record) -> bool:
        """Whether it was somebody else who spoke to us as ourselves: this life has not said so lately."""
        return record.incarnation not in self._said or record.contradicts(me)

    def met(self, record: Record, me: Record, now: float) -> int:
        """Such a one is there. How far we are to go beyond both, so that it sees the same; 0: not now."""
        self._heard, self._heard_at = self._params.twin_records, now
        self._tell(record, me, now)
        return self._next_step(now)

    def _next_step(self, now: float) -> int:
        if now < self._silent_until:
            return 0
        self._silent_until = now + self._params.twin_pause_s
        return self._params.twin_step

    def _tell(self, record: Record, me: Record, now: float) -> None:
        if self._told_at is not None and now - self._told_at < self._params.twin_notice_s:
            return
        self._told_at = now
        others = [str(address) for address in record.addresses if address not in me.addresses]
        self._out.append(Note(CONFLICT_EVENT, {"address": others[0] if others else None}))
