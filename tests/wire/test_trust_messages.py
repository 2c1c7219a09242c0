"""Requests to be approved through the wire, and whatever else arrives there."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_proto.v1 import trust_pb2 as pb

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire import trust
from p2pfl_net.wire.fields import parse
from tests.wire.tolerance import Decoder, check_bytes, check_message

ME = PeerId("ab" * 32)
DECODERS: list[Decoder] = [
    (trust.decode_asking, pb.TrustRequest),
    (trust.decode_standing, pb.TrustReply),
]
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=500)

pb_messages = st.one_of(
    st.builds(pb.TrustRequest, to=st.binary(max_size=40), reason=st.text(max_size=600)),
    st.builds(pb.TrustReply, status=st.integers(0, 2**31 - 1)),
)


@given(PRINTABLE)
def test_a_request_survives_the_wire(reason: str) -> None:
    asking = trust.Asking(ME, reason)
    assert trust.decode_asking(parse(pb.TrustRequest, trust.encode_asking(asking))) == asking


@pytest.mark.parametrize("standing", trust.Standing)
def test_an_answer_survives_the_wire(standing: trust.Standing) -> None:
    assert trust.decode_standing(parse(pb.TrustReply, trust.encode_standing(standing))) is standing


@pytest.mark.parametrize("reason", ["", " ", "a\nb", "\x1b[2J", "x" * 501, "\u202e", "\x00"])
def test_only_a_printable_line_is_a_reason(reason: str) -> None:
    with pytest.raises(MalformedMessage, match="printable"):
        trust.decode_asking(pb.TrustRequest(to=bytes(32), reason=reason))


@given(pb_messages)
def test_any_field_values_are_taken_or_malformed(message: Message) -> None:
    check_message(DECODERS, message)


@given(st.sampled_from(DECODERS), st.binary(max_size=300))
def test_any_bytes_are_taken_or_malformed(decoder: Decoder, data: bytes) -> None:
    check_bytes(decoder, data)
