"""Records under signatures that are none, for tests of all else."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from hypothesis import strategies as st
from p2pfl_proto.v1 import membership_pb2 as pb
from p2pfl_proto.v1 import versions_pb2 as vpb
from p2pfl_state.manifest import Manifest

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.records import Opener, record_text, seal
from p2pfl_net.wire.versions import Statement, encode_statement, manifest_digest, state, version_text
from tests.core import strategies

SALT = bytes(16)


def signature_of(public_key: bytes, text: bytes) -> bytes:
    return hashlib.sha256(public_key + text).digest()


def verify(public_key: bytes, signature: bytes, text: bytes) -> None:
    if signature != signature_of(public_key, text):
        raise MalformedMessage("a signature that is not of this key")


def opener() -> Opener:
    return Opener(verify)


def sealed(record: Record, public_key: bytes = b"key") -> Record:
    """The word of the peer with this key, its loopback addresses first."""
    near = tuple(address for address in record.addresses if address.is_loopback)
    far = tuple(address for address in record.addresses if not address.is_loopback)
    said = Status.LEFT if record.status is Status.LEFT else Status.ALIVE
    owner = PeerId(hashlib.sha256(public_key).hexdigest())
    word = replace(record, peer_id=owner, status=said, addresses=near + far)
    word = seal(word, public_key, lambda text: signature_of(public_key, text), SALT)
    return replace(word, status=record.status)


def seal_content(
    content: pb.RecordContent | bytes,
    local: pb.LocalAddresses | bytes | None,
    *,
    status: int = 1,
    suspected_by: bytes = b"",
    public_key: bytes = b"key",
) -> pb.PeerRecord:
    """What a liar says of itself, well signed."""
    near = local if isinstance(local, bytes) else b"" if local is None else local.SerializeToString()
    if isinstance(content, pb.RecordContent):
        if near:
            content.local = hashlib.sha256(near).digest()
        content = content.SerializeToString()
    message = pb.PeerRecord(
        public_key=public_key,
        content=content,
        signature=signature_of(public_key, record_text(content)),
        local=near,
        suspected_by=suspected_by,
    )
    message.status = status  # type: ignore[assignment]
    return message


def stated(manifest: Manifest, public_key: bytes = b"key") -> Statement:
    """A publisher's word on its model."""
    publisher = PeerId(hashlib.sha256(public_key).hexdigest())
    return state(manifest, publisher, public_key, lambda text: signature_of(public_key, text))


def pb_stated(
    manifest: bytes, version: int, weights: str, public_key: bytes = b"key"
) -> vpb.VersionStatement:
    """A publisher's word on anything."""
    publisher = PeerId(hashlib.sha256(public_key).hexdigest())
    digest = manifest_digest(manifest)
    text = version_text(publisher, version, weights, digest)
    signature = signature_of(public_key, text)
    return encode_statement(Statement(publisher, version, weights, digest, public_key, signature))


public_keys = st.binary(min_size=1, max_size=91)
records = st.builds(sealed, strategies.records(), public_keys)
speakers = st.builds(
    sealed, strategies.records(statuses=st.sampled_from([Status.ALIVE, Status.LEFT])), public_keys
)
