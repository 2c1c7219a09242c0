"""The keys that a peer had before its present one, in wire form: each vouches for the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from p2pfl_proto.v1 import identity_pb2 as pb

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage

MAX_ROTATIONS = 8
"""Former keys that are kept and told. A guess: who has not heard of a peer for so long asks a person."""
MAX_PUBLIC_KEY_BYTES = 200
"""An ECDSA P-256 key has 91."""
MAX_SIGNATURE_BYTES = 80
"""One of ECDSA P-256 in DER has up to 72."""


@dataclass(frozen=True, slots=True)
class FormerKey:
    """A key that was replaced, and its word for the one that followed."""

    public_key: bytes
    """SubjectPublicKeyInfo in DER."""
    signature: bytes
    """Over `rotation_text`."""


def rotation_text(old: PeerId, new: PeerId) -> bytes:
    """What a replaced key signs: that the peer goes on under this new one."""
    return b"p2pfl rotation 1\0" + bytes.fromhex(old + new)


def encode_former(keys: Iterable[FormerKey]) -> list[pb.FormerKey]:
    return [pb.FormerKey(public_key=key.public_key, signature=key.signature) for key in keys]


def decode_former(messages: Sequence[pb.FormerKey]) -> tuple[FormerKey, ...]:
    """Raises `MalformedMessage`. The signatures are not checked here."""
    if len(messages) > MAX_ROTATIONS:
        raise MalformedMessage(f"{len(messages)} former keys, not at most {MAX_ROTATIONS}")
    for message in messages:
        if len(message.public_key) > MAX_PUBLIC_KEY_BYTES or len(message.signature) > MAX_SIGNATURE_BYTES:
            raise MalformedMessage("a former key of no sound size")
    return tuple(FormerKey(message.public_key, message.signature) for message in messages)
