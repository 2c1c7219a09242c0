"""Greetings and tokens through the wire, and whatever else arrives there."""

from __future__ import annotations

import ssl

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_proto.v1 import identity_pb2 as pb
from p2pfl_proto.v1.membership_pb2 import ProtocolRange

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage, PeerFailed
from p2pfl_net.rpc.gate import Gate
from p2pfl_net.rpc.keys import MAX_CERTIFICATE_BYTES, Identity, certified_peer, check_signature
from p2pfl_net.wire import identity
from p2pfl_net.wire.fields import parse
from tests.wire.tolerance import Decoder, check_bytes, check_message

ME = PeerId("ab" * 32)
DECODERS: list[Decoder] = [
    (identity.decode_hello_request, pb.HelloRequest),
    (identity.decode_hello, pb.HelloReply),
    (identity.decode_token, pb.Token),
]

nonces = st.binary(min_size=32, max_size=32)
proofs = st.just(b"") | st.binary(min_size=32, max_size=32)
hellos = st.builds(identity.Hello, nonces, st.integers(0, identity.MAX_VALID_S), proofs)
tokens = st.builds(identity.Token, st.binary(max_size=91), nonces, st.binary(max_size=72), proofs)
anything = st.binary(max_size=300) | nonces
versions = st.integers(0, 2) | st.integers(0, 2**32 - 1)
protocols = st.none() | st.builds(ProtocolRange, lowest=versions, highest=versions)
pb_messages = st.one_of(
    st.builds(pb.HelloRequest, protocol=protocols, nonce=anything),
    st.builds(
        pb.HelloReply, protocol=protocols, nonce=anything, valid_s=st.integers(0, 2**32 - 1), proof=anything
    ),
    st.builds(pb.Token, public_key=anything, nonce=anything, signature=anything, proof=anything),
)


@given(hellos)
def test_a_greeting_survives_the_wire(hello: identity.Hello) -> None:
    assert identity.decode_hello(parse(pb.HelloReply, identity.encode_hello(hello))) == hello


@given(nonces)
def test_a_question_survives_the_wire(nonce: bytes) -> None:
    message = parse(pb.HelloRequest, identity.encode_hello_request(nonce))
    assert identity.decode_hello_request(message) == nonce


@given(tokens)
def test_a_token_survives_the_wire(token: identity.Token) -> None:
    assert identity.decode_token(parse(pb.Token, identity.encode_token(token))) == token


@given(pb_messages)
def test_any_field_values_are_taken_or_malformed(message: Message) -> None:
    check_message(DECODERS, message)


@given(st.sampled_from(DECODERS), st.binary(max_size=300))
def test_any_bytes_are_taken_or_malformed(decoder: Decoder, data: bytes) -> None:
    check_bytes(decoder, data)


@given(st.binary(max_size=600) | st.builds(identity.encode_token, tokens))
def test_no_bytes_are_a_token(data: bytes) -> None:
    gate = Gate(ME, None)
    with pytest.raises((MalformedMessage, PeerFailed)) as caught:
        gate.caller([("other", "x"), (identity.TOKEN_HEADER, data)])
    assert caught.value.kind in (FailureKind.INVALID, FailureKind.UNPROVED)


@given(st.binary(max_size=300), st.binary(max_size=100), st.binary(max_size=100))
def test_no_bytes_are_a_key_or_a_certificate(key: bytes, signature: bytes, text: bytes) -> None:
    with pytest.raises(MalformedMessage):
        check_signature(key, signature, text)
    with pytest.raises(MalformedMessage):
        certified_peer(key)


@pytest.mark.parametrize("version", [1, 3, 4, 127])
def test_a_certificate_of_no_known_version_is_malformed(version: int) -> None:
    """The library says so with an error of a kind of its own, which once ended the daemon."""
    certificate = ssl.PEM_cert_to_DER_cert(Identity.new().certificate.decode())
    known = b"\xa0\x03\x02\x01\x02"
    assert certificate.count(known) == 1
    with pytest.raises(MalformedMessage, match="not a peer's certificate"):
        certified_peer(certificate.replace(known, known[:-1] + bytes([version])))


def test_a_certificate_is_bounded() -> None:
    """Those of many peers are kept."""
    assert len(ssl.PEM_cert_to_DER_cert(Identity.new().certificate.decode())) < MAX_CERTIFICATE_BYTES / 2
    with pytest.raises(MalformedMessage, match="1025 bytes"):
        certified_peer(bytes(MAX_CERTIFICATE_BYTES + 1))


@given(nonces, nonces)
def test_what_is_said_for_one_purpose_serves_no_other(first: bytes, second: bytes) -> None:
    key, other = bytes(32), PeerId("cd" * 32)
    texts = {
        identity.token_text(ME, first),
        identity.call_proof(key, ME, other, first),
        identity.call_proof(key, other, ME, first),
        identity.hello_proof(key, ME, second, first),
        identity.hello_proof(key, other, second, first),
        identity.hello_proof(bytes(31) + b"\1", ME, second, first),
    }
    assert len(texts) == 6
