"""The messages around a model transfer. Decoders raise `MalformedMessage`.

A chunk is never built as a protobuf message: its wire form is a tag, a length and the file's bytes,
so the bytes are handed through (Protocol Buffers encoding, "length-delimited records").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from p2pfl_proto.v1 import models_pb2 as pb
from p2pfl_state.errors import MalformedFile
from p2pfl_state.manifest import Manifest
from p2pfl_state.taskfile import MAX_TASK_BYTES, TaskFile

from p2pfl_net.core.ids import PeerId, TaskDigest
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.fields import decode_digest, decode_peer_id
from p2pfl_net.wire.records import Verify
from p2pfl_net.wire.versions import Statement, check_manifest, decode_statement, encode_statement

FIRST_CHUNK_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 2 << 20
MAX_HAVE_WEIGHTS = 64
_CHUNK_TAG = bytes([pb.ModelPart.CHUNK_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What a fetcher wants. Digests in hex; None: whatever there is."""

    to: PeerId | None = None
    task: TaskDigest | None = None
    offset: int = 0
    file_digest: str | None = None
    have_weights: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What a server announces before the bytes."""

    peer_id: PeerId
    manifest: Manifest
    size_bytes: int
    file_digest: str
    offset: int
    not_modified: bool
    statement: Statement
    """The server's signed word of this version."""


def encode_request(request: ModelRequest) -> pb.FetchModelRequest:
    return pb.FetchModelRequest(
        to=bytes.fromhex(request.to or ""),
        task=bytes.fromhex(request.task or ""),
        offset=request.offset,
        file_digest=bytes.fromhex(request.file_digest or ""),
        have_weights=[bytes.fromhex(digest) for digest in request.have_weights[:MAX_HAVE_WEIGHTS]],
    )


def decode_request(message: pb.FetchModelRequest) -> ModelRequest:
    if len(message.have_weights) > MAX_HAVE_WEIGHTS:
        raise MalformedMessage(f"more than {MAX_HAVE_WEIGHTS} digests in one request")
    if message.offset and not message.file_digest:
        raise MalformedMessage("an offset without the digest of the file it counts in")
    return ModelRequest(
        to=decode_peer_id(message.to) if message.to else None,
        task=TaskDigest(decode_digest(message.task, "task")) if message.task else None,
        offset=message.offset,
        file_digest=decode_digest(message.file_digest, "file digest") if message.file_digest else None,
        have_weights=tuple(decode_digest(digest, "weights digest") for digest in message.have_weights),
    )


def encode_header(header: ModelHeader) -> bytes:
    """The header as the bytes of a whole `ModelPart`."""
    return pb.ModelPart(
        header=pb.ModelHeader(
            peer_id=bytes.fromhex(header.peer_id),
            manifest=header.manifest.encode().encode(),
            size_bytes=header.size_bytes,
            file_digest=bytes.fromhex(header.file_digest),
            offset=header.offset,
            not_modified=header.not_modified,
            statement=encode_statement(header.statement),
        )
    ).SerializeToString()


def decode_header(data: bytes, verify: Verify) -> ModelHeader:
    """The first part of a transfer, signed by whom it names."""
    try:
        part = pb.ModelPart.FromString(data)
    except DecodeError:
        raise MalformedMessage("a transfer that does not begin with a header") from None
    if part.WhichOneof("part") != "header":
        raise MalformedMessage("a transfer that does not begin with a header")
    header = part.header
    peer_id = decode_peer_id(header.peer_id)
    statement = decode_statement(header.statement, verify)
    if statement.publisher != peer_id:
        raise MalformedMessage("a version that another peer signed")
    manifest = check_manifest(statement, header.manifest)
    if header.offset > header.size_bytes:
        raise MalformedMessage("a transfer that begins after its end")
    return ModelHeader(
        peer_id=peer_id,
        manifest=manifest,
        size_bytes=header.size_bytes,
        file_digest=decode_digest(header.file_digest, "file digest"),
        offset=header.offset,
        not_modified=header.not_modified,
        statement=statement,
    )


def chunk_sizes(offset: int, size_bytes: int, largest: int = CHUNK_BYTES) -> Iterator[int]:
    """The sizes of the chunks from `offset` on: small ones first, so that a receiver sees soon how fast a
    link is, each twice the one before up to `largest`."""
    size = min(FIRST_CHUNK_BYTES, largest)
    while offset < size_bytes:
        yield min(size, size_bytes - offset)
        offset += size
        size = min(2 * size, largest)


def chunk_prefix(length: int) -> bytes:
    """The bytes that make a `ModelPart` of the `length` bytes that follow."""
    prefix = bytearray(_CHUNK_TAG)
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix)


def chunk_payload(data: bytes) -> memoryview:
    """The file's bytes in the wire form of a chunk, without a copy."""
    if data[:1] != _CHUNK_TAG:
        raise MalformedMessage("a transfer with a part that is not a chunk")
    length = shift = 0
    for position in range(1, 6):
        byte = data[position] if position < len(data) else 0x80
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    else:
        raise MalformedMessage("a chunk without a length")
    payload = memoryview(data)[position + 1 :]
    if len(payload) != length or not 0 < length <= MAX_CHUNK_BYTES:
        raise MalformedMessage("a chunk whose length is not what it says")
    return payload


def decode_task(message: pb.FetchTaskReply, wanted: TaskDigest) -> TaskFile:
    """The task that a peer serves, checked against the digest that was wanted."""
    if len(message.task) > MAX_TASK_BYTES:
        raise MalformedMessage("task too large")
    try:
        task = TaskFile.parse(message.task)
    except MalformedFile as error:
        raise MalformedMessage(str(error)) from None
    if task.digest != wanted:
        raise MalformedMessage("a task whose digest is not that of the model")
    return task
