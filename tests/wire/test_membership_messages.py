"""Membership messages through the wire, and whatever else arrives there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import assume, given
from hypothesis import strategies as st
from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.gossip import without_loopback
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import MAX_INCARNATION, Ack, Join, JoinReply, Ping, Record, Sender, Status
from p2pfl_net.core.params import Params
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire import membership
from p2pfl_net.wire.records import MAX_ADDRESSES, Opener, encode_record
from tests.core.strategies import addresses, few_addresses, hosts, peer_ids
from tests.wire.sealed import opener, records, seal_content, sealed, speakers, verify
from tests.wire.tolerance import Decoder, check_bytes, check_line, check_message, taken_or_malformed

OPENER = opener()
DECODERS: list[Decoder] = [
    (partial(membership.decode_join, opener=OPENER), pb.JoinRequest),
    (partial(membership.decode_join_reply, opener=OPENER), pb.JoinReply),
    (partial(membership.decode_ping, opener=OPENER), pb.PingRequest),
    (partial(membership.decode_ack, opener=OPENER), pb.PingReply),
    (OPENER.decode, pb.PeerRecord),
]
HOME = Address("10.0.0.1", 8000)
NEAR = Address("127.0.0.1", 8000)
RECORD = sealed(Record(PeerId(""), 7, Status.ALIVE, (HOME,)))
SENDER = Sender(RECORD, 3)

senders = st.builds(Sender, speakers, st.integers(0, 2**53), few_addresses)
updates = st.lists(records, max_size=5).map(tuple)
joins = st.builds(Join, senders, addresses, updates, st.none() | peer_ids)
join_replies = st.builds(JoinReply, senders, hosts, updates)
pings = st.builds(Ping, senders, peer_ids, addresses, updates)
acks = st.builds(Ack, senders, updates)


@given(joins)
def test_a_join_survives_the_wire(message: Join) -> None:
    data = membership.encode_join(message).SerializeToString()
    assert membership.decode_join(pb.JoinRequest.FromString(data), OPENER) == message


@given(join_replies)
def test_a_join_reply_survives_the_wire(message: JoinReply) -> None:
    data = membership.encode_join_reply(message).SerializeToString()
    assert membership.decode_join_reply(pb.JoinReply.FromString(data), OPENER) == message


@given(pings)
def test_a_ping_survives_the_wire(message: Ping) -> None:
    data = membership.encode_ping(message).SerializeToString()
    assert membership.decode_ping(pb.PingRequest.FromString(data), OPENER) == message


@given(acks)
def test_an_ack_survives_the_wire(message: Ack) -> None:
    data = membership.encode_ack(message).SerializeToString()
    assert membership.decode_ack(pb.PingReply.FromString(data), OPENER) == message


@given(records)
def test_a_record_is_passed_on_as_it_came(record: Record) -> None:
    data = encode_record(record).SerializeToString()
    came = OPENER.decode(pb.PeerRecord.FromString(data))
    assert (came, came.seal) == (record, record.seal)
    assert encode_record(came).SerializeToString() == data


# whose word it is ----------------------------------------------------------------------------------


@given(records)
def test_loopback_addresses_are_left_out_under_the_same_signature(record: Record) -> None:
    elsewhere = OPENER.decode(encode_record(without_loopback(record)))
    assert elsewhere == without_loopback(record)
    assert not any(address.is_loopback for address in elsewhere.addresses)


SEALED = ["public_key", "content", "signature", "local"]


@given(records, records, st.sampled_from(SEALED))
def test_nobody_alters_the_record_of_another(record: Record, other: Record, field: str) -> None:
    message, donor = encode_record(record), encode_record(other)
    assume(getattr(message, field) != getattr(donor, field) and getattr(donor, field))
    setattr(message, field, getattr(donor, field))
    with pytest.raises(MalformedMessage):
        OPENER.decode(message)


@given(records, st.data())
def test_a_changed_byte_is_noticed(record: Record, data: st.DataObject) -> None:
    message = encode_record(record)
    field = data.draw(st.sampled_from([name for name in SEALED if getattr(message, name)]))
    raw = bytearray(getattr(message, field))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    setattr(message, field, bytes(raw))
    with pytest.raises(MalformedMessage):
        OPENER.decode(message)


def test_only_the_peer_itself_says_goodbye() -> None:
    message = encode_record(RECORD)
    message.status = pb.PEER_STATUS_LEFT
    with pytest.raises(MalformedMessage, match="goodbye"):
        OPENER.decode(message)
    for status in (pb.PEER_STATUS_ALIVE, pb.PEER_STATUS_SUSPECT, pb.PEER_STATUS_DEAD):
        message = encode_record(sealed(replace(RECORD, status=Status.LEFT)))
        message.status = status
        with pytest.raises(MalformedMessage, match="goodbye"):
            OPENER.decode(message)


def test_two_words_of_one_incarnation_are_of_two_processes() -> None:
    """Also where only loopback addresses tell them apart, which are left out on the way."""
    one, other = (sealed(replace(RECORD, addresses=(Address("127.0.0.1", port), HOME))) for port in (1, 2))
    for held, said in ((one, other), (without_loopback(one), other), (one, without_loopback(other))):
        assert held.contradicts(said)
    assert not one.contradicts(without_loopback(one))
    assert not without_loopback(one).contradicts(one)


def test_each_signature_is_checked_once_and_few_are_remembered() -> None:
    checked: list[bytes] = []

    def counting(public_key: bytes, signature: bytes, text: bytes) -> None:
        checked.append(text)
        verify(public_key, signature, text)

    made = Opener(counting, limit=10)
    messages = [encode_record(replace(RECORD, status=status)) for status in list(Status)[:3]]
    first = made.decode(messages[0])
    assert all(made.decode(message).seal == first.seal for message in messages * 3)
    assert made.decode(messages[0]) is first
    assert len(checked) == 1
    for number in range(100, 120):
        made.decode(encode_record(sealed(replace(RECORD, incarnation=number))))
    assert made.decode(messages[0]) == first
    assert len(checked) == 22


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
pb_contents = st.builds(
    pb.RecordContent,
    incarnation=uint64,
    left=st.booleans(),
    addresses=st.lists(pb_addresses, max_size=10),
    local=digests,
    task=digests,
    published=st.booleans(),
    tags=st.lists(texts, max_size=10),
)
pb_local = st.builds(pb.LocalAddresses, salt=digests, addresses=st.lists(pb_addresses, max_size=10))
pb_records = st.builds(
    seal_content,
    pb_contents | st.binary(max_size=60),
    st.none() | pb_local | st.binary(max_size=60),
    status=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5),
    suspected_by=digests,
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
        membership.decode_ping(pb.PingRequest.FromString(bytes(raw)), OPENER)


# what is believed is within its bounds -------------------------------------------------------------


def pb_record(status: int = 1, **changes: Any) -> pb.PeerRecord:
    """A record of which its owner says something else."""
    assert RECORD.seal is not None
    content = pb.RecordContent.FromString(RECORD.seal.content)
    local = pb.LocalAddresses(addresses=changes.pop("near", []))
    for name, value in changes.items():
        if isinstance(value, list):
            content.ClearField(name)
            getattr(content, name).extend(value)
        else:
            setattr(content, name, value)
    return seal_content(content, local if local.addresses else None, status=status)


def pb_address(host: str, port: int = 8000) -> pb.Address:
    return pb.Address(host=host, port=port)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"incarnation": MAX_INCARNATION + 1}, "incarnation out of range"),
        ({"status": 0}, "unknown peer status 0"),
        ({"status": 5}, "unknown peer status 5"),
        ({"task": b"x"}, "task has 1 bytes"),
        ({"published": True}, "a published model without a task"),
        ({"tags": [f"tag{n}" for n in range(9)]}, "more than 8 tags"),
        ({"tags": ["\n"]}, "a tag has up to 32"),
        ({"addresses": [pb_address(f"10.0.0.{n}") for n in range(1, 10)]}, "more than 8 addresses"),
        ({"near": [pb_address(f"127.0.0.{n}") for n in range(1, 9)]}, "more than 7 addresses"),
        ({"addresses": [pb_address("10.0.0.1", 0)]}, "a port is out of range"),
        ({"addresses": [pb_address("10.0.0.1", 65536)]}, "a port is out of range"),
        ({"near": [pb_address("127.0.0.1", 65536)]}, "a port is out of range"),
        ({"addresses": [pb_address("lab1")]}, "not an IP address"),
        ({"addresses": [pb_address("")]}, "not an IP address"),
        ({"addresses": [pb_address("fe80::1%eth0")]}, "not an IP address"),
        ({"addresses": [pb_address("fe80::1%\n" + "x" * 500)]}, "not an IP address"),
        ({"addresses": [pb_address("x" * 10_000)]}, "a record that is too large"),
        ({"addresses": [pb_address("0.0.0.0")]}, "no peer can be reached"),
        ({"addresses": [pb_address("::")]}, "no peer can be reached"),
        ({"addresses": [pb_address("::ffff:0.0.0.0")]}, "no peer can be reached"),
        ({"addresses": [pb_address("224.0.0.1")]}, "no peer can be reached"),
        ({"addresses": [pb_address("127.0.0.1")]}, "a loopback address for everybody"),
        ({"addresses": [pb_address("::ffff:127.0.0.1")]}, "a loopback address for everybody"),
        ({"near": [pb_address("10.0.0.1")]}, "not of loopback"),
        ({"tags": ["x" * 1_000]}, "a tag has up to 32"),
    ],
)
def test_a_record_past_its_bounds_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason) as caught:
        OPENER.decode(pb_record(**changes))
    check_line(str(caught.value))


def test_keys_and_signatures_are_bounded() -> None:
    for field in SEALED:
        message = encode_record(RECORD)
        setattr(message, field, bytes(10_000))
        with pytest.raises(MalformedMessage, match=r"size|too large"):
            OPENER.decode(message)


def test_addresses_come_in_their_normal_form_and_once() -> None:
    spellings = ["::ffff:10.0.0.1", "10.0.0.1", "2001:DB8:0::1", "2001:db8::1"]
    record = OPENER.decode(pb_record(addresses=[pb_address(host) for host in spellings]))
    assert record.addresses == (HOME, Address("2001:db8::1", 8000))


def test_a_mapped_loopback_address_is_seen_as_one() -> None:
    record = OPENER.decode(pb_record(near=[pb_address("::ffff:127.0.0.1")]))
    assert record.addresses == (NEAR, HOME)
    assert record.has_loopback


@pytest.mark.parametrize(
    ("lowest", "highest", "reason"),
    [(0, 0, "no protocol"), (2, 1, "no protocol"), (0, 1, "no protocol"), (3, 9, "speaks protocol 3 to 9")],
)
def test_other_protocol_versions_are_refused_with_the_remedy(lowest: int, highest: int, reason: str) -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.protocol.CopyFrom(pb.ProtocolRange(lowest=lowest, highest=highest))
    with pytest.raises(MalformedMessage, match=reason):
        membership.decode_ack(message, OPENER)


def test_a_newer_program_that_still_speaks_ours_is_understood() -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.protocol.highest = 12
    assert membership.decode_ack(message, OPENER) == Ack(SENDER)


@pytest.mark.parametrize("status", [Status.SUSPECT, Status.DEAD])
def test_who_speaks_is_alive_or_leaving(status: Status) -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.record.status = int(status)  # type: ignore[assignment]
    with pytest.raises(MalformedMessage, match="a peer that speaks"):
        membership.decode_ack(message, OPENER)


def test_the_model_version_is_bounded() -> None:
    message = membership.encode_ack(Ack(SENDER))
    message.sender.model_version = membership.MAX_VERSION + 1
    with pytest.raises(MalformedMessage, match="model version"):
        membership.decode_ack(message, OPENER)


def test_candidates_are_bounded() -> None:
    message = membership.encode_join(Join(SENDER, HOME))
    message.sender.candidates.extend(pb_address(f"10.0.0.{n}") for n in range(1, 10))
    with pytest.raises(MalformedMessage, match="more than 8 addresses"):
        membership.decode_join(message, OPENER)


def test_the_number_of_updates_is_bounded() -> None:
    full = Ack(SENDER, (RECORD,) * membership.MAX_UPDATES)
    assert membership.decode_ack(membership.encode_ack(full), OPENER) == full
    message = membership.encode_ack(Ack(SENDER, (RECORD,) * (membership.MAX_UPDATES + 1)))
    with pytest.raises(MalformedMessage, match="more than 128 records"):
        membership.decode_ack(message, OPENER)
    ping = membership.encode_ping(
        Ping(SENDER, RECORD.peer_id, HOME, (RECORD,) * (membership.MAX_UPDATES + 1))
    )
    with pytest.raises(MalformedMessage, match="more than 128 records"):
        membership.decode_ping(ping, OPENER)


def test_the_number_of_records_in_a_join_reply_is_bounded() -> None:
    one = encode_record(RECORD)
    message = pb.JoinReply(sender=membership.encode_ack(Ack(SENDER)).sender, observed_host="10.0.0.2")
    message.records.extend([one] * (membership.MAX_RECORDS + 1))
    with pytest.raises(MalformedMessage, match="more than 20000 records"):
        membership.decode_join_reply(message, OPENER)


def test_our_own_messages_fit_the_bounds_of_others() -> None:
    params = Params()
    assert params.max_updates + 1 <= membership.MAX_UPDATES, "the news, and what is held against the receiver"
    assert params.max_peers <= membership.MAX_RECORDS
    assert params.max_addresses <= MAX_ADDRESSES


@given(addresses)
def test_where_the_caller_dialled_may_be_any_address(dialled: Address) -> None:
    assert membership.decode_join(membership.encode_join(Join(SENDER, dialled)), OPENER).dialled == dialled


def test_who_dialled_the_wildcard_address_is_not_refused_for_it() -> None:
    """Linux takes 0.0.0.0 for this machine, and so do people."""
    wildcard = Address("0.0.0.0", 8000)
    assert membership.decode_join(membership.encode_join(Join(SENDER, wildcard)), OPENER).dialled == wildcard
