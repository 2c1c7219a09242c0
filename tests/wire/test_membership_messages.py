"""Membership messages through the wire, and whatever else arrives there."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.ids import Address
from p2pfl_net.core.messages import MAX_INCARNATION, Ack, Join, JoinReply, Ping, Record, Sender, Status
from p2pfl_net.core.params import Params
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire import membership
from tests.core.strategies import acks, addresses, join_replies, joins, pings, records
from tests.wire.tolerance import Decoder, check_bytes, check_line, check_message, taken_or_malformed

DECODERS: list[Decoder] = [
    (membership.decode_join, pb.JoinRequest),
    (membership.decode_join_reply, pb.JoinReply),
    (membership.decode_ping, pb.PingRequest),
    (membership.decode_ack, pb.PingReply),
    (membership.decode_record, pb.PeerRecord),
]
HOME = Address("10.0.0.1", 8000)
RECORD = Record(peer_id="ab" * 32, incarnation=7, status=Status.ALIVE, addresses=(HOME,))  # type: ignore[arg-type]
SENDER = Sender(RECORD, 3)


@given(joins)
def test_a_join_survives_the_wire(message: Join) -> None:
    data = membership.encode_join(message).SerializeToString()
    assert membership.decode_join(pb.JoinRequest.FromString(data)) == message


@given(join_replies)
def test_a_join_reply_survives_the_wire(message: JoinReply) -> None:
    data = membership.encode_join_reply(message).SerializeToString()
    assert membership.decode_join_reply(pb.JoinReply.FromString(data)) == message


@given(pings)
def test_a_ping_survives_the_wire(message: Ping) -> None:
    data = membership.encode_ping(message).SerializeToString()
    assert membership.decode_ping(pb.PingRequest.FromString(data)) == message


@given(acks)
def test_an_ack_survives_the_wire(message: Ack) -> None:
    data = membership.encode_ack(message).SerializeToString()
    assert membership.decode_ack(pb.PingReply.FromString(data)) == message


@given(records())
def test_a_record_survives_the_wire(record: Record) -> None:
    data = membership.encode_record(record).SerializeToString()
    assert membership.decode_record(pb.PeerRecord.FromString(data)) == record


# anything else -------------------------------------------------------------------------------------

texts = st.text(max_size=40) | st.sampled_from(
    [
        "",
        "10.0.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "fe80::1%\n",
        "0.0.0.0",
        "::",
        "localhost",
        "1.2.3",
    ]
)
digests = st.binary(max_size=40) | st.binary(min_size=32, max_size=32)
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
pb_addresses = st.builds(pb.Address, host=texts, port=uint32 | st.integers(0, 65536))
pb_records = st.builds(
    pb.PeerRecord,
    peer_id=digests,
    incarnation=uint64,
    status=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5),
    addresses=st.lists(pb_addresses, max_size=10),
    task=digests,
    published=st.booleans(),
)
versions = uint32 | st.integers(0, 2)
pb_senders = st.builds(
    pb.Sender,
    protocol=st.none() | st.builds(pb.ProtocolRange, lowest=versions, highest=versions),
    record=st.none() | pb_records,
    model_version=uint64,
    candidates=st.lists(pb_addresses, max_size=10),
)
few = st.lists(pb_records, max_size=3)
pb_messages = st.one_of(
    st.builds(
        pb.JoinRequest,
        sender=st.none() | pb_senders,
        dialled=st.none() | pb_addresses,
        records=few,
        to=digests,
    ),
    st.builds(pb.JoinReply, sender=st.none() | pb_senders, observed_host=texts, records=few),
    st.builds(
        pb.PingRequest,
        sender=st.none() | pb_senders,
        to=digests,
        dialled=st.none() | pb_addresses,
        updates=few,
    ),
    st.builds(pb.PingReply, sender=st.none() | pb_senders, updates=few),
    pb_records,
)


@given(pb_messages)
def test_any_field_values_are_taken_or_malformed(message: Message) -> None:
    check_message(DECODERS, message)


@given(st.sampled_from(DECODERS), st.binary(max_size=300))
def test_any_bytes_are_taken_or_malformed(decoder: Decoder, data: bytes) -> None:
    check_bytes(decoder, data)


@given(pings, st.data())
def test_a_damaged_ping_is_taken_or_malformed(message: Ping, data: st.DataObject) -> None:
    raw = bytearray(membership.encode_ping(message).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with taken_or_malformed():
        membership.decode_ping(pb.PingRequest.FromString(bytes(raw)))


# what is believed is within its bounds -------------------------------------------------------------


def pb_record(**changes: Any) -> pb.PeerRecord:
    message = membership.encode_record(RECORD)
    for name, value in changes.items():
        if isinstance(value, list):
            message.ClearField(name)
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def pb_address(host: str, port: int = 8000) -> pb.Address:
    return pb.Address(host=host, port=port)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peer_id": b"x" * 31}, "peer id has 31 bytes"),
        ({"peer_id": b"x" * 33}, "peer id has 33 bytes"),
        ({"peer_id": b""}, "peer id has 0 bytes"),
        ({"incarnation": MAX_INCARNATION + 1}, "incarnation out of range"),
        ({"status": 0}, "unknown peer status 0"),
        ({"status": 5}, "unknown peer status 5"),
        ({"task": b"x"}, "task has 1 bytes"),
        ({"published": True}, "a published model without a task"),
        ({"addresses": [pb_address(f"10.0.0.{n}") for n in range(1, 10)]}, "more than 8 addresses"),
        ({"addresses": [pb_address("10.0.0.1", 0)]}, "a port is out of range"),
        ({"addresses": [pb_address("10.0.0.1", 65536)]}, "a port is out of range"),
        ({"addresses": [pb_address("lab1")]}, "not an IP address"),
        ({"addresses": [pb_address("")]}, "not an IP address"),
        ({"addresses": [pb_address("fe80::1%eth0")]}, "not an IP address"),
        ({"addresses": [pb_address("fe80::1%\n" + "x" * 10_000)]}, "not an IP address"),
        ({"addresses": [pb_address("0.0.0.0")]}, "no peer can be reached"),
        ({"addresses": [pb_address("::")]}, "no peer can be reached"),
        ({"addresses": [pb_address("::ffff:0.0.0.0")]}, "no peer can be reached"),
        ({"addresses": [pb_address("224.0.0.1")]}, "no peer can be reached"),
        ({"tags": ["x" * 100_000]}, "a tag has up to 32"),
        ({"tags": [f"tag{n}" for n in range(9)]}, "at most 8"),
    ],
)
def test_a_record_past_its_bounds_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason) as caught:
        membership.decode_record(pb_record(**changes))
    check_line(str(caught.value))


def test_addresses_come_in_their_normal_form_and_once() -> None:
    spellings = ["::ffff:10.0.0.1", "10.0.0.1", "2001:DB8:0::1", "2001:db8::1"]
    record = membership.decode_record(pb_record(addresses=[pb_address(host) for host in spellings]))
    assert record.addresses == (HOME, Address("2001:db8::1", 8000))


def test_a_mapped_loopback_address_is_seen_as_one() -> None:
    record = membership.decode_record(pb_record(addresses=[pb_address("::ffff:127.0.0.1")]))
    assert record.addresses[0].is_loopback


@pytest.mark.parametrize(
    ("lowest", "highest", "reason"),
    [(0, 0, "no protocol"), (2, 1, "no protocol"), (0, 1, "no protocol"), (2, 9, "speaks protocol 2 to 9")],
)
def test_other_protocol_versions_are_refused_with_the_remedy(lowest: int, highest: int, reason: str) -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.protocol.CopyFrom(pb.ProtocolRange(lowest=lowest, highest=highest))
    with pytest.raises(MalformedMessage, match=reason):
        membership.decode_ack(message)


def test_a_newer_program_that_still_speaks_ours_is_understood() -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.protocol.highest = 12
    assert membership.decode_ack(message) == Ack(SENDER)


@pytest.mark.parametrize("status", [Status.SUSPECT, Status.DEAD])
def test_who_speaks_is_alive_or_leaving(status: Status) -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.record.status = int(status)  # type: ignore[assignment]
    with pytest.raises(MalformedMessage, match="a peer that speaks"):
        membership.decode_ack(message)


def test_the_model_version_is_bounded() -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.model_version = membership.MAX_VERSION + 1
    with pytest.raises(MalformedMessage, match="model version"):
        membership.decode_ack(message)


def test_candidates_are_bounded() -> None:
    message = membership.encode_join(Join(SENDER, HOME))
    message.sender.candidates.extend(pb_address(f"10.0.0.{n}") for n in range(1, 10))
    with pytest.raises(MalformedMessage, match="more than 8 addresses"):
        membership.decode_join(message)


def test_the_number_of_updates_is_bounded() -> None:
    full = Ack(SENDER, (RECORD,) * membership.MAX_UPDATES)
    assert membership.decode_ack(membership.encode_ack(full)) == full
    message = membership.encode_ack(Ack(SENDER, (RECORD,) * (membership.MAX_UPDATES + 1)))
    with pytest.raises(MalformedMessage, match="more than 128 records"):
        membership.decode_ack(message)
    ping = membership.encode_ping(
        Ping(SENDER, RECORD.peer_id, HOME, (RECORD,) * (membership.MAX_UPDATES + 1))
    )
    with pytest.raises(MalformedMessage, match="more than 128 records"):
        membership.decode_ping(ping)


def test_the_number_of_records_in_a_join_reply_is_bounded() -> None:
    one = membership.encode_record(RECORD)
    message = pb.JoinReply(sender=membership.encode_ack(Ack(SENDER)).sender, observed_host="10.0.0.2")
    message.records.extend([one] * (membership.MAX_RECORDS + 1))
    with pytest.raises(MalformedMessage, match="more than 20000 records"):
        membership.decode_join_reply(message)


def test_our_own_messages_fit_the_bounds_of_others() -> None:
    params = Params()
    assert params.max_updates + 1 <= membership.MAX_UPDATES, "the news, and what is held against the receiver"
    assert params.max_peers <= membership.MAX_RECORDS
    assert params.max_addresses <= membership.MAX_ADDRESSES


@given(addresses)
def test_where_the_caller_dialled_may_be_any_address(dialled: Address) -> None:
    assert membership.decode_join(membership.encode_join(Join(SENDER, dialled))).dialled == dialled


def test_who_dialled_the_wildcard_address_is_not_refused_for_it() -> None:
    """Linux takes 0.0.0.0 for this machine, and so do people."""
    wildcard = Address("0.0.0.0", 8000)
    assert membership.decode_join(membership.encode_join(Join(SENDER, wildcard))).dialled == wildcard
