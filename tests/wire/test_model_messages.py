"""The messages around a transfer, and chunks that are never built as messages."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from p2pfl_proto.v1 import models_pb2 as pb
from p2pfl_state.manifest import MAX_MANIFEST_BYTES, Manifest, Parent
from p2pfl_state.taskfile import MAX_TASK_BYTES, TaskFile

from p2pfl_net.core.ids import TaskDigest
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire import models
from p2pfl_net.wire.models import ModelHeader, ModelRequest
from tests.core.strategies import digests, peer_ids
from tests.wire.sealed import pb_stated, public_keys, stated, verify
from tests.wire.tolerance import check_line, taken_or_malformed

COUNT = st.integers(0, 2**53 - 1)
MANIFEST = Manifest(version=1, samples=60, task="1" * 64, weights="2" * 64)
STATEMENT = stated(MANIFEST)
HEADER = ModelHeader(
    STATEMENT.publisher, MANIFEST, 1000, "4" * 64, 0, not_modified=False, statement=STATEMENT
)
TASK = TaskFile({"architecture": {"name": "mlp", "source_sha256": None}, "classes": ["a", "b"]}, None)
BOUNDARIES = [1, 2, 126, 127, 128, 129, 16_383, 16_384, 16_385, 1 << 20, (1 << 21) - 1, 1 << 21]

manifests = st.builds(
    Manifest,
    version=COUNT,
    samples=COUNT,
    task=digests,
    weights=digests,
    parents=st.lists(st.builds(Parent, digests, COUNT, digests), max_size=3).map(tuple),
    metrics=st.dictionaries(
        st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=3
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> ModelRequest:
    file_digest = draw(st.none() | digests)
    return ModelRequest(
        to=draw(st.none() | peer_ids),
        task=draw(st.none() | digests.map(TaskDigest)),
        offset=draw(st.integers(0, 2**64 - 1)) if file_digest else 0,
        file_digest=file_digest,
        have_weights=tuple(draw(st.lists(digests, max_size=64))),
    )


@st.composite
def headers(draw: st.DrawFn) -> ModelHeader:
    size_bytes = draw(st.integers(0, 2**64 - 1))
    manifest = draw(manifests)
    statement = stated(manifest, draw(public_keys))
    return ModelHeader(
        peer_id=statement.publisher,
        manifest=manifest,
        size_bytes=size_bytes,
        file_digest=draw(digests),
        offset=draw(st.integers(0, size_bytes)),
        not_modified=draw(st.booleans()),
        statement=statement,
    )


@given(requests())
def test_a_request_survives_the_wire(request: ModelRequest) -> None:
    data = models.encode_request(request).SerializeToString()
    assert models.decode_request(pb.FetchModelRequest.FromString(data)) == request


@given(headers())
def test_a_header_survives_the_wire(header: ModelHeader) -> None:
    assert models.decode_header(models.encode_header(header), verify) == header


@given(
    st.builds(
        pb.FetchModelRequest,
        to=st.binary(max_size=40),
        task=st.binary(max_size=40),
        offset=st.integers(0, 2**64 - 1),
        file_digest=st.binary(max_size=40) | st.binary(min_size=32, max_size=32),
        have_weights=st.lists(st.binary(min_size=31, max_size=32), max_size=3),
    )
)
def test_any_request_is_taken_or_malformed(message: pb.FetchModelRequest) -> None:
    with taken_or_malformed():
        models.decode_request(message)


def test_requests_are_bounded() -> None:
    with pytest.raises(MalformedMessage, match="more than 64 digests"):
        models.decode_request(pb.FetchModelRequest(have_weights=[b"x" * 32] * 65))
    with pytest.raises(MalformedMessage, match="an offset without"):
        models.decode_request(pb.FetchModelRequest(offset=1))
    many = ModelRequest(have_weights=tuple(f"{n:064x}" for n in range(100)))
    assert len(models.decode_request(models.encode_request(many)).have_weights) == 64


# headers -------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_malformed(data: bytes) -> None:
    with taken_or_malformed():
        models.decode_header(data, verify)


@given(headers(), st.data())
def test_a_damaged_header_is_taken_or_malformed(header: ModelHeader, data: st.DataObject) -> None:
    raw = bytearray(models.encode_header(header))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with taken_or_malformed():
        models.decode_header(bytes(raw), verify)


def manifest_text(**changes: object) -> bytes:
    said = {**MANIFEST.to_json(), **changes}
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def header_of(manifest: bytes, **changes: object) -> bytes:
    header = pb.ModelHeader(
        peer_id=bytes.fromhex(STATEMENT.publisher),
        manifest=manifest,
        size_bytes=1000,
        file_digest=b"4" * 32,
        statement=pb_stated(manifest, MANIFEST.version, MANIFEST.weights),
    )
    for name, value in changes.items():
        setattr(header, name, value)
    return pb.ModelPart(header=header).SerializeToString()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        manifest_text(version=-1),
        manifest_text(version=2**53),
        manifest_text(version=True),
        manifest_text(samples="many"),
        manifest_text(task="not a digest"),
        manifest_text(weights="AB" * 32),
        manifest_text(contract=2),
        manifest_text(parents=[{"peer_id": "0" * 64, "version": 1, "weights": "0" * 64}] * 513),
        manifest_text(metrics={"loss": "low"}),
        manifest_text(metrics={"loss": True}),
        manifest_text(metrics={str(n): 1 for n in range(257)}),
        manifest_text(later=float("nan")),
        manifest_text(later=float("inf")),
        manifest_text(later="\ud800"),
        manifest_text().replace(b"60", b"6" * 5000),
        manifest_text(later=0)[:-2] + b"1e999}",
        manifest_text(later=0)[:-2] + b"[" * 500 + b"]" * 500 + b"}",
        manifest_text(later="x" * MAX_MANIFEST_BYTES),
        json.dumps(MANIFEST.to_json()).encode(),
        manifest_text(version=2),
        manifest_text(weights="3" * 64),
    ],
    ids=range(27),
)
def test_a_wrong_manifest_is_malformed(manifest: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        models.decode_header(header_of(manifest), verify)
    check_line(str(caught.value))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
@example([[[[[float("nan")]]]]])
def test_what_is_taken_can_be_written_again(later: object) -> None:
    """An unknown field is kept, so it must be fit for the answer to the trainer."""
    try:
        header = models.decode_header(header_of(manifest_text(later=later)), verify)
    except MalformedMessage:
        return
    assert models.decode_header(models.encode_header(header), verify) == header
    assert header.manifest.encode().encode()


def test_another_manifest_than_was_signed_is_malformed() -> None:
    part = pb.ModelPart.FromString(header_of(manifest_text()))
    part.header.manifest = manifest_text(samples=61)
    with pytest.raises(MalformedMessage, match="not the one that was signed"):
        models.decode_header(part.SerializeToString(), verify)


@given(headers(), headers(), st.sampled_from(["public_key", "version", "weights", "manifest", "signature"]))
def test_nobody_alters_what_was_signed(header: ModelHeader, other: ModelHeader, field: str) -> None:
    part, donor = (pb.ModelPart.FromString(models.encode_header(each)) for each in (header, other))
    taken = getattr(donor.header.statement, field)
    assume(taken != getattr(part.header.statement, field))
    setattr(part.header.statement, field, taken)
    with pytest.raises(MalformedMessage):
        models.decode_header(part.SerializeToString(), verify)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peer_id": b""}, "peer id"),
        ({"file_digest": b"x"}, "file digest"),
        ({"offset": 1001}, "begins after its end"),
        ({"peer_id": b"3" * 32}, "another peer signed"),
    ],
)
def test_a_header_past_its_bounds_is_malformed(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        models.decode_header(header_of(MANIFEST.encode().encode(), **changes), verify)


def test_a_transfer_begins_with_a_header() -> None:
    for data in (b"", pb.ModelPart(chunk=b"x").SerializeToString(), pb.ModelPart().SerializeToString()):
        with pytest.raises(MalformedMessage, match="does not begin with a header"):
            models.decode_header(data, verify)


# chunks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", BOUNDARIES)
def test_a_chunk_is_what_protobuf_would_write(size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    check_chunk(content[:size])


@given(st.integers(1, 40_000))
def test_a_chunk_of_any_size_is_what_protobuf_would_write(size: int) -> None:
    check_chunk(b"\x12" * size)


def check_chunk(content: bytes) -> None:
    naive = pb.ModelPart(chunk=content).SerializeToString()
    assert models.chunk_prefix(len(content)) + content == naive
    assert models.chunk_payload(naive) == content


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda data: b"\x12" + data))
def test_any_bytes_are_a_chunk_or_malformed(data: bytes) -> None:
    with taken_or_malformed():
        payload = models.chunk_payload(data)
        assert pb.ModelPart.FromString(data).chunk == payload


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x12",
        b"\x12\x00",
        b"\x12\x05abcd",
        b"\x12\x03abcd",
        b"\x12\x80",
        b"\x12\x80\x80\x80\x80\x80\x01" + b"x",
        b"\x12" + b"\xff" * 10,
        b"\x0a\x01a",
        models.encode_header(HEADER),
        models.chunk_prefix((2 << 20) + 1) + bytes((2 << 20) + 1),
    ],
    ids=range(11),
)
def test_a_part_that_is_no_chunk_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        models.chunk_payload(data)


def test_a_payload_is_not_copied() -> None:
    naive = pb.ModelPart(chunk=b"abc").SerializeToString()
    assert models.chunk_payload(naive).obj is naive


# tasks ---------------------------------------------------------------------------------------------


def test_a_task_survives_the_wire() -> None:
    assert models.decode_task(pb.FetchTaskReply(task=TASK.encode()), TaskDigest(TASK.digest)) == TASK


def task_bytes(descriptor: object, source: object = None) -> bytes:
    return json.dumps({"contract": 1, "descriptor": descriptor, "source": source}).encode()


ARCHITECTURE = {"name": "mlp", "source_sha256": None}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        task_bytes({}),
        task_bytes({"architecture": []}),
        task_bytes({"architecture": ARCHITECTURE}, "import os"),
        task_bytes({"architecture": {**ARCHITECTURE, "source_sha256": "0" * 64}}),
        task_bytes({"architecture": ARCHITECTURE}, "\ud800"),
        task_bytes({"architecture": ARCHITECTURE, "mean": float("nan")}),
        task_bytes({"architecture": ARCHITECTURE, "\ud800": 1}),
        task_bytes({"architecture": ARCHITECTURE, "x": 0}).replace(
            b'"x": 0', b'"x": ' + b"[" * 900 + b"]" * 900
        ),
        task_bytes({"architecture": ARCHITECTURE, "x": "x" * MAX_TASK_BYTES}),
        task_bytes({"architecture": ARCHITECTURE}),
    ],
    ids=range(12),
)
def test_a_wrong_task_is_malformed(data: bytes) -> None:
    """The last is a good one, but not the one that was wanted."""
    with pytest.raises(MalformedMessage) as caught:
        models.decode_task(pb.FetchTaskReply(task=data), TaskDigest(TASK.digest))
    check_line(str(caught.value))
