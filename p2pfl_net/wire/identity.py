"""Who calls, in wire form: the greeting before the first call, and the token in every other one.

What is signed and proved is bytes of a fixed layout that begin with what they are for, so that none can stand
for another (domain separation).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from p2pfl_proto.v1 import identity_pb2 as pb
from p2pfl_proto.v1.membership_pb2 import ProtocolRange

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.membership import PROTOCOL_HIGHEST, PROTOCOL_LOWEST, check_protocol
from p2pfl_net.wire.rotation import (
    MAX_PUBLIC_KEY_BYTES,
    MAX_ROTATIONS,
    MAX_SIGNATURE_BYTES,
    FormerKey,
    decode_former,
    encode_former,
)

IDENTITY_SERVICE = "p2pfl.v1.Identity"
HELLO_METHOD = f"/{IDENTITY_SERVICE}/Hello"
TOKEN_HEADER = "p2pfl-token-bin"  # noqa: S105 - a name, no secret

NONCE_BYTES = 32
NETWORK_KEY_BYTES = 32
MAX_TOKEN_BYTES = 512 + 256 * MAX_ROTATIONS
MAX_VALID_S = 86_400
_PROOF_BYTES = 32


@dataclass(frozen=True, slots=True)
class Hello:
    """A called peer's greeting."""

    nonce: bytes
    valid_s: int
    """How long tokens with this nonce are accepted at least."""
    proof: bytes
    """Of a private network; empty: it is open."""
    former: tuple[FormerKey, ...] = ()
    """Keys that the peer had before, newest first; not checked yet."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a caller shows of itself."""

    public_key: bytes
    """SubjectPublicKeyInfo in DER."""
    nonce: bytes
    signature: bytes
    proof: bytes
    """Of a private network; empty: it is open."""
    former: tuple[FormerKey, ...] = ()
    """Keys that the caller had before, newest first; not checked yet."""


def encode_hello_request(nonce: bytes) -> bytes:
    protocol = ProtocolRange(lowest=PROTOCOL_LOWEST, highest=PROTOCOL_HIGHEST)
    return pb.HelloRequest(protocol=protocol, nonce=nonce).SerializeToString()


def decode_hello_request(message: pb.HelloRequest) -> bytes:
    """The caller's nonce. Raises `MalformedMessage`."""
    check_protocol(message.protocol)
    return _exactly(message.nonce, NONCE_BYTES, "a nonce")


def encode_hello(hello: Hello) -> bytes:
    protocol = ProtocolRange(lowest=PROTOCOL_LOWEST, highest=PROTOCOL_HIGHEST)
    return pb.HelloReply(
        protocol=protocol,
        nonce=hello.nonce,
        valid_s=hello.valid_s,
        proof=hello.proof,
        former=encode_former(hello.former),
    ).SerializeToString()


def decode_hello(message: pb.HelloReply) -> Hello:
    """Raises `MalformedMessage`."""
    check_protocol(message.protocol)
    nonce = _exactly(message.nonce, NONCE_BYTES, "a nonce")
    valid_s = min(message.valid_s, MAX_VALID_S)
    return Hello(nonce, valid_s, _proof(message.proof), decode_former(message.former))


def encode_token(token: Token) -> bytes:
    return pb.Token(
        public_key=token.public_key,
        nonce=token.nonce,
        signature=token.signature,
        proof=token.proof,
        former=encode_former(token.former),
    ).SerializeToString()


def decode_token(message: pb.Token) -> Token:
    """Raises `MalformedMessage`."""
    if len(message.public_key) > MAX_PUBLIC_KEY_BYTES or len(message.signature) > MAX_SIGNATURE_BYTES:
        raise MalformedMessage("a token of no sound size")
    nonce = _exactly(message.nonce, NONCE_BYTES, "a nonce")
    former = decode_former(message.former)
    return Token(message.public_key, nonce, message.signature, _proof(message.proof), former)


def _proof(data: bytes) -> bytes:
    return _exactly(data, _PROOF_BYTES, "a proof") if data else b""


def _exactly(data: bytes, size: int, what: str) -> bytes:
    if len(data) != size:
        raise MalformedMessage(f"{what} of {len(data)} bytes, not {size}")
    return data


# what is signed and proved -------------------------------------------------------------------------


def token_text(called: PeerId, nonce: bytes) -> bytes:
    """What a caller signs: that it calls this very peer, in the time of this nonce."""
    return b"p2pfl token 1\0" + bytes.fromhex(called) + nonce


def call_proof(key: bytes, caller: PeerId, called: PeerId, nonce: bytes) -> bytes:
    """That a caller holds the key of a private network."""
    return hmac.digest(key, b"p2pfl call 1\0" + bytes.fromhex(caller + called) + nonce, "sha256")


def hello_proof(key: bytes, called: PeerId, asked: bytes, nonce: bytes) -> bytes:
    """That a called peer holds it: over the caller's nonce, so that no earlier answer serves again."""
    return hmac.digest(key, b"p2pfl hello 1\0" + bytes.fromhex(called) + asked + nonce, "sha256")
