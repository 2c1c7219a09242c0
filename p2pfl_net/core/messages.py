"""What peers tell each other: records of peers, and the messages that carry them."""

from __future__ import annotations

from dataclasses import dataclass, field
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
class Seal:
    """What shows that a record is its owner's word. Bytes that the core passes on as they came."""

    public_key: bytes
    content: bytes
    """What the owner says of itself, as it signed it."""
    signature: bytes
    local: bytes = b""
    """The owner's loopback addresses, of which the content names the hash: told on its machine only."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is said of one peer. Of two records the greater (incarnation, status) is the newer.

    All but suspicion and death is the owner's word, and nobody else can alter it where records are sealed.
    """

    peer_id: PeerId
    incarnation: int
    status: Status
    addresses: tuple[Address, ...]
    task: TaskDigest | None = None
    published: bool = False
    tags: tuple[str, ...] = ()
    """What the peer trains for, in its operator's words; sorted."""
    suspected_by: PeerId | None = None
    """Of a suspicion: who could not reach the peer. Those who agree count (see `suspicion`)."""
    seal: Seal | None = field(default=None, repr=False, compare=False)
    """None in a simulated network, where nobody lies about others."""
    has_loopback: bool = field(init=False, repr=False, compare=False)
    """Whether any of its addresses means one machine only."""

    def __post_init__(self) -> None:
        has_loopback = any(address.is_loopback for address in self.addresses)
        object.__setattr__(self, "has_loopback", has_loopback)  # asked of thousands of records at once

    @property
    def is_live(self) -> bool:
        return self.status <= Status.SUSPECT

    def is_newer_than(self, other: Record) -> bool:
        if self.incarnation != other.incarnation:
            return self.incarnation > other.incarnation
        return self.status > other.status

    def contradicts(self, other: Record) -> bool:
        """Whether whoever holds this is not up to date with `other`, said by the peer itself.

        It is newer, or as new but of an earlier life: both lives began in about the same second.
        """
        if self.is_newer_than(other):
            return True
        if self.seal is not None and other.seal is not None and self.status is other.status:
            return self.incarnation == other.incarnation and self.seal.content != other.seal.content
        return (self.incarnation, self.status) == (other.incarnation, other.status) and (
            (self.task, self.published, self.tags) != (other.task, other.published, other.tags)
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
    """Take me in, and tell me all you know; with `records`, an exchange of all that both know."""

    sender: Sender
    dialled: Address
    records: tuple[Record, ...] = ()
    to: PeerId | None = None
    """Who is meant; None: whoever answers there."""


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


@dataclass(frozen=True, slots=True)
class Relay:
    """Please ping `target` for me: I get no answer (SWIM's ping-req)."""

    sender: Sender
    to: PeerId
    dialled: Address
    target: PeerId


@dataclass(frozen=True, slots=True)
class RelayReply:
    """What came of it. That it comes at all tells the asker that its own link works (Lifeguard's nack)."""

    sender: Sender
    reached: bool
    updates: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Proof that a peer has signed two models under one version."""

    peer_id: PeerId
    version: int
    proof: bytes = field(repr=False, compare=False)
    """Both statements, see `wire.versions`: checked before it comes here, passed on as it came."""


@dataclass(frozen=True, slots=True)
class Accuse:
    """This peer has lied, and here is the proof."""

    sender: Sender
    to: PeerId
    dialled: Address
    equivocation: Equivocation


@dataclass(frozen=True, slots=True)
class Accused:
    """Heard."""

    sender: Sender


Request = Join | Ping | Relay | Accuse
Response = JoinReply | Ack | RelayReply | Accused
