"""What a peer says of a version of its model, signed; and two such words that cannot both be true.

The statement names the manifest by its hash, and the manifest names the samples, the task and the parents:
what went into a model can be followed from peer to peer, and who tells two peers different things is found.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from p2pfl_proto.v1 import versions_pb2 as pb
from p2pfl_state.errors import MalformedFile
from p2pfl_state.manifest import MAX_MANIFEST_BYTES, Manifest

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import Equivocation
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.fields import decode_digest, decode_peer_id, parse
from p2pfl_net.wire.records import MAX_PUBLIC_KEY_BYTES, MAX_SIGNATURE_BYTES, Sign, Verify

VERSIONS_SERVICE = "p2pfl.v1.Versions"
FETCH_VERSION_METHOD = f"/{VERSIONS_SERVICE}/FetchVersion"
MAX_VERSION = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Statement:
    """A publisher's word that this is its version."""

    publisher: PeerId
    version: int
    weights: str
    """Weights digest, in hex."""
    manifest: str
    """SHA-256 of the manifest, in hex."""
    public_key: bytes
    signature: bytes

    def contradicts(self, other: Statement) -> bool:
        """Whether no honest peer signs both."""
        if (self.publisher, self.version) != (other.publisher, other.version):
            return False
        return (self.weights, self.manifest) != (other.weights, other.manifest)


def manifest_digest(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


def version_text(publisher: PeerId, version: int, weights: str, manifest: str) -> bytes:
    """What a publisher signs."""
    return (
        b"p2pfl version 1\0"
        + bytes.fromhex(publisher)
        + version.to_bytes(8)
        + bytes.fromhex(weights + manifest)
    )


def state(manifest: Manifest, publisher: PeerId, public_key: bytes, sign: Sign) -> Statement:
    """The word of a peer on what it publishes."""
    digest = manifest_digest(manifest.encode().encode())
    text = version_text(publisher, manifest.version, manifest.weights, digest)
    return Statement(publisher, manifest.version, manifest.weights, digest, public_key, sign(text))


def encode_statement(statement: Statement) -> pb.VersionStatement:
    return pb.VersionStatement(
        public_key=statement.public_key,
        version=statement.version,
        weights=bytes.fromhex(statement.weights),
        manifest=bytes.fromhex(statement.manifest),
        signature=statement.signature,
    )


def decode_statement(message: pb.VersionStatement, verify: Verify) -> Statement:
    """Raises `MalformedMessage`, also when the signature is not the publisher's."""
    if len(message.public_key) > MAX_PUBLIC_KEY_BYTES or len(message.signature) > MAX_SIGNATURE_BYTES:
        raise MalformedMessage("a statement whose key or signature has no sound size")
    if message.version > MAX_VERSION:
        raise MalformedMessage("model version out of range")
    publisher = PeerId(hashlib.sha256(message.public_key).hexdigest())
    weights = decode_digest(message.weights, "weights digest")
    manifest = decode_digest(message.manifest, "manifest digest")
    text = version_text(publisher, message.version, weights, manifest)
    verify(message.public_key, message.signature, text)
    return Statement(publisher, message.version, weights, manifest, message.public_key, message.signature)


def check_manifest(statement: Statement, manifest: bytes) -> Manifest:
    """The manifest that a statement is of. Raises `MalformedMessage` when it is another."""
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise MalformedMessage("manifest too large")
    if manifest_digest(manifest) != statement.manifest:
        raise MalformedMessage("a manifest that is not the one that was signed")
    try:
        said = Manifest.decode(manifest)
    except MalformedFile as error:
        raise MalformedMessage(str(error)) from None
    if said.encode().encode() != manifest:
        raise MalformedMessage("a manifest that is not canonical JSON")
    if (said.version, said.weights) != (statement.version, statement.weights):
        raise MalformedMessage("a manifest of another version than was signed")
    return said


# proofs --------------------------------------------------------------------------------------------


def equivocation(first: Statement, second: Statement) -> Equivocation:
    """The proof that a peer has signed both."""
    assert first.contradicts(second)
    proof = pb.Equivocation(first=encode_statement(first), second=encode_statement(second))
    return Equivocation(first.publisher, first.version, proof.SerializeToString())


def encode_equivocation(said: Equivocation) -> pb.Equivocation:
    return pb.Equivocation.FromString(said.proof)


def decode_equivocation(message: pb.Equivocation, verify: Verify) -> Equivocation:
    """Raises `MalformedMessage` for what proves nothing."""
    first, second = (decode_statement(part, verify) for part in (message.first, message.second))
    if not first.contradicts(second):
        raise MalformedMessage("two statements that do not contradict each other")
    return equivocation(first, second)


# questions -----------------------------------------------------------------------------------------


def encode_question(publisher: PeerId, version: int) -> bytes:
    return pb.FetchVersionRequest(publisher=bytes.fromhex(publisher), version=version).SerializeToString()


def decode_question(data: bytes) -> tuple[PeerId, int]:
    """Raises `MalformedMessage`."""
    message = parse(pb.FetchVersionRequest, data)
    return decode_peer_id(message.publisher), message.version


def encode_answer(statement: Statement, manifest: Manifest) -> bytes:
    said = manifest.encode().encode()
    return pb.FetchVersionReply(statement=encode_statement(statement), manifest=said).SerializeToString()


def decode_answer(data: bytes, verify: Verify) -> tuple[Statement, Manifest]:
    """Raises `MalformedMessage`."""
    message = parse(pb.FetchVersionReply, data)
    statement = decode_statement(message.statement, verify)
    return statement, check_manifest(statement, message.manifest)
