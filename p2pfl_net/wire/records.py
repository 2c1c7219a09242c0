"""Peer records to and from protobuf: what a peer says of itself is its signed word, whoever passes it on.

The owner signs bytes, and those bytes travel: nobody encodes them anew. Its loopback addresses are under the
signature by their hash, so that they can be left out on the way to another machine.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.ids import MAX_TAGS, Address, PeerId, TaskDigest, parse_tags
from p2pfl_net.core.messages import MAX_INCARNATION, Record, Seal, Status
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.fields import (
    decode_addresses,
    decode_digest,
    decode_peer_id,
    encode_address,
    parse,
)

MAX_ADDRESSES = 8
MAX_OPENED = 40_000
"""Records whose signature was found good are remembered: twice as many as a table holds."""
MAX_CONTENT_BYTES = 2048
MAX_LOCAL_BYTES = 512
MAX_PUBLIC_KEY_BYTES = 200
"""An ECDSA P-256 key has 91."""
MAX_SIGNATURE_BYTES = 80
"""One of ECDSA P-256 in DER has up to 72."""
SALT_BYTES = 16

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes, bytes], None]
"""(public key, signature, text). Raises `MalformedMessage`."""


def record_text(content: bytes) -> bytes:
    """What the owner of a record signs."""
    return b"p2pfl record 1\0" + content


def seal(record: Record, public_key: bytes, sign: Sign, salt: bytes) -> Record:
    """A peer's own record as its word. `salt`: `SALT_BYTES` random bytes."""
    local = b""
    if record.has_loopback:
        near = [encode_address(address) for address in record.addresses if address.is_loopback]
        local = pb.LocalAddresses(salt=salt, addresses=near).SerializeToString()
    content = pb.RecordContent(
        incarnation=record.incarnation,
        left=record.status is Status.LEFT,
        addresses=[encode_address(address) for address in record.addresses if not address.is_loopback],
        local=hashlib.sha256(local).digest() if local else b"",
        task=bytes.fromhex(record.task or ""),
        published=record.published,
        tags=record.tags,
    ).SerializeToString()
    return replace(record, seal=Seal(public_key, content, sign(record_text(content)), local))


def encode_record(record: Record) -> pb.PeerRecord:
    assert record.seal is not None, "what a daemon knows of others came with its owner's word"
    return pb.PeerRecord(
        public_key=record.seal.public_key,
        content=record.seal.content,
        signature=record.seal.signature,
        local=record.seal.local,
        status=f"PEER_STATUS_{record.status.name}",
        suspected_by=bytes.fromhex(record.suspected_by or ""),
    )


class Opener:
    """Opens sealed records, each once: the same ones come again and again. Thread-safe."""

    def __init__(self, verify: Verify, limit: int = MAX_OPENED) -> None:
        self.verify = verify
        self._limit = limit
        self._lock = threading.Lock()
        self._opened: OrderedDict[tuple[bytes, bytes], Record] = OrderedDict()

    def decode(self, message: pb.PeerRecord) -> Record:
        """Raises `MalformedMessage`."""
        status = _status(message.status)
        sealed = Seal(message.public_key, message.content, message.signature, message.local)
        said = self._open(sealed)
        if status is said.status and not message.suspected_by:
            return said
        if said.status is Status.LEFT or status is Status.LEFT:
            raise MalformedMessage("a goodbye that its peer has not said")
        suspected_by = decode_peer_id(message.suspected_by) if message.suspected_by else None
        return replace(said, status=status, suspected_by=suspected_by)

    def _open(self, sealed: Seal) -> Record:
        key = (sealed.signature, sealed.local)
        with self._lock:
            opened = self._opened.get(key)
            if opened is not None and opened.seal == sealed:
                self._opened.move_to_end(key)
                return opened
        opened = _read(sealed)
        self.verify(sealed.public_key, sealed.signature, record_text(sealed.content))
        with self._lock:
            self._opened[key] = opened
            if len(self._opened) > self._limit:
                self._opened.popitem(last=False)
        return opened


def _read(sealed: Seal) -> Record:
    """What a sealed record says, its signature apart."""
    if len(sealed.public_key) > MAX_PUBLIC_KEY_BYTES or len(sealed.signature) > MAX_SIGNATURE_BYTES:
        raise MalformedMessage("a record whose key or signature has no sound size")
    if len(sealed.content) > MAX_CONTENT_BYTES or len(sealed.local) > MAX_LOCAL_BYTES:
        raise MalformedMessage("a record that is too large")
    content = parse(pb.RecordContent, sealed.content)
    if content.incarnation > MAX_INCARNATION:
        raise MalformedMessage("incarnation out of range")
    if content.published and not content.task:
        raise MalformedMessage("a published model without a task")
    return Record(
        peer_id=PeerId(hashlib.sha256(sealed.public_key).hexdigest()),
        incarnation=content.incarnation,
        status=Status.LEFT if content.left else Status.ALIVE,
        addresses=_addresses(content, sealed.local),
        task=TaskDigest(decode_digest(content.task, "task")) if content.task else None,
        published=content.published,
        tags=_tags(content.tags),
        seal=sealed,
    )


def _addresses(content: pb.RecordContent, local: bytes) -> tuple[Address, ...]:
    """Those of loopback first: they are the nearest."""
    known = decode_addresses(content.addresses, MAX_ADDRESSES)
    if any(address.is_loopback for address in known):
        raise MalformedMessage("a loopback address for everybody")
    if not local:
        return known
    if hashlib.sha256(local).digest() != content.local:
        raise MalformedMessage("local addresses that are not those of the record")
    near = decode_addresses(parse(pb.LocalAddresses, local).addresses, MAX_ADDRESSES - len(known))
    if not near or not all(address.is_loopback for address in near):
        raise MalformedMessage("local addresses that are not of loopback")
    return near + known


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        raise MalformedMessage(f"unknown peer status {number}") from None


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    listed = list(tags)
    if len(listed) > MAX_TAGS:
        raise MalformedMessage(f"more than {MAX_TAGS} tags of one peer")
    try:
        return parse_tags(listed)
    except ValueError as error:
        raise MalformedMessage(str(error)) from None
