"""What peers tell each other: records of peers, and the messages that carry them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from p2pfl_net.core.ids import Address, PeerId, TaskDigest

MAX_INCARNATION = 2**53
"""Bound of incarnations, in messages too. Unix seconds plus refutations stay far below."""


class Status(IntEnum):
    """In the order in which one overrides another at the same incarnation."""

    ALIVE = 1
    SUSPECT = 2
    DEAD = 3
    LEFT = 4


@dataclass(frozen=True, slots=True)
class Record:
    """What is said of one peer. Of two records the greater (incarnation, status) is the newer."""

    peer_id: PeerId
    incarnation: int
    status: Status
    addresses: tuple[Address, ...]
    task: TaskDigest | None = None
    published: bool = False

    @property
    def is_live(self) -> bool:
        return self.status in (Status.ALIVE, Status.SUSPECT)

    def is_newer_than(self, other: Record) -> bool:
        return (self.incarnation, self.status) > (other.incarnation, other.status)

    def contradicts(self, other: Record) -> bool:
        """Whether whoever holds this is not up to date with `other`, said by the peer itself.

        It is newer, or as new but of an earlier life: both lives began in about the same second.
        """
        if self.is_newer_than(other):
            return True
        return (self.incarnation, self.status) == (other.incarnation, other.status) and (
            (self.task, self.published) != (other.task, other.published)
            or any(a not in other.addresses for a in self.addresses if not a.is_loopback)
        )


# messages ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sender:
    """Who speaks."""

    record: Record
    model_version: int = 0
    candidates: tuple[Address, ...] = ()
    """Addresses that the sender would like to have dialled, to learn whether they reach it. Told when
    it joins, in its first probes, and as long as the receiver could not reach it otherwise."""


@dataclass(frozen=True, slots=True)
class Join:
    sender: Sender
    dialled: Address


@dataclass(frozen=True, slots=True)
class JoinReply:
    sender: Sender
    observed_host: str
    """IP literal that the join came from."""
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    sender: Sender
    to: PeerId
    dialled: Address
    updates: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    sender: Sender
    updates: tuple[Record, ...] = ()


Request = Join | Ping
Response = JoinReply | Ack
