"""Membership messages to and from protobuf. Decoders raise `MalformedMessage`.

Those of messages with records in them take an `Opener`, which checks whose word each record is.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.messages import (
    Accuse,
    Accused,
    Ack,
    Join,
    JoinReply,
    Ping,
    Record,
    Relay,
    RelayReply,
    Sender,
    Status,
)
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.fields import (
    decode_address,
    decode_addresses,
    decode_host,
    decode_peer_id,
    encode_address,
)
from p2pfl_net.wire.records import MAX_ADDRESSES, Opener, encode_record
from p2pfl_net.wire.versions import decode_equivocation, encode_equivocation

PROTOCOL_LOWEST = 2
PROTOCOL_HIGHEST = 2
"""The protocol versions that this program speaks."""

MAX_RECORDS = 20_000
MAX_UPDATES = 128
MAX_VERSION = 2**53


def encode_join(message: Join) -> pb.JoinRequest:
    return pb.JoinRequest(
        sender=_encode_sender(message.sender),
        dialled=encode_address(message.dialled),
        records=[encode_record(record) for record in message.records],
        to=bytes.fromhex(message.to or ""),
    )


def decode_join(message: pb.JoinRequest, opener: Opener) -> Join:
    records = _decode_records(message.records, MAX_RECORDS, opener)
    to = decode_peer_id(message.to) if message.to else None
    return Join(_decode_sender(message.sender, opener), decode_address(message.dialled), records, to)


def encode_join_reply(message: JoinReply) -> pb.JoinReply:
    return pb.JoinReply(
        sender=_encode_sender(message.sender),
        observed_host=message.observed_host,
        records=[encode_record(record) for record in message.records],
    )


def decode_join_reply(message: pb.JoinReply, opener: Opener) -> JoinReply:
    host = decode_host(message.observed_host, "observed_host")
    records = _decode_records(message.records, MAX_RECORDS, opener)
    return JoinReply(_decode_sender(message.sender, opener), host, records)


def encode_ping(message: Ping) -> pb.PingRequest:
    return pb.PingRequest(
        sender=_encode_sender(message.sender),
        to=bytes.fromhex(message.to),
        dialled=encode_address(message.dialled),
        updates=[encode_record(record) for record in message.updates],
    )


def decode_ping(message: pb.PingRequest, opener: Opener) -> Ping:
    return Ping(
        _decode_sender(message.sender, opener),
        decode_peer_id(message.to),
        decode_address(message.dialled),
        _decode_records(message.updates, MAX_UPDATES, opener),
    )


def encode_ack(message: Ack) -> pb.PingReply:
    return pb.PingReply(
        sender=_encode_sender(message.sender),
        updates=[encode_record(record) for record in message.updates],
    )


def decode_ack(message: pb.PingReply, opener: Opener) -> Ack:
    return Ack(_decode_sender(message.sender, opener), _decode_records(message.updates, MAX_UPDATES, opener))


def encode_relay(message: Relay) -> pb.RelayRequest:
    return pb.RelayRequest(
        sender=_encode_sender(message.sender),
        to=bytes.fromhex(message.to),
        dialled=encode_address(message.dialled),
        target=bytes.fromhex(message.target),
    )


def decode_relay(message: pb.RelayRequest, opener: Opener) -> Relay:
    return Relay(
        _decode_sender(message.sender, opener),
        decode_peer_id(message.to),
        decode_address(message.dialled),
        decode_peer_id(message.target),
    )


def encode_relay_reply(message: RelayReply) -> pb.RelayReply:
    return pb.RelayReply(
        sender=_encode_sender(message.sender),
        reached=message.reached,
        updates=[encode_record(record) for record in message.updates],
    )


def decode_relay_reply(message: pb.RelayReply, opener: Opener) -> RelayReply:
    updates = _decode_records(message.updates, MAX_UPDATES, opener)
    return RelayReply(_decode_sender(message.sender, opener), message.reached, updates)


def encode_accuse(message: Accuse) -> pb.AccuseRequest:
    return pb.AccuseRequest(
        sender=_encode_sender(message.sender),
        to=bytes.fromhex(message.to),
        dialled=encode_address(message.dialled),
        proof=encode_equivocation(message.equivocation),
    )


def decode_accuse(message: pb.AccuseRequest, opener: Opener) -> Accuse:
    return Accuse(
        _decode_sender(message.sender, opener),
        decode_peer_id(message.to),
        decode_address(message.dialled),
        decode_equivocation(message.proof, opener.verify),
    )


def encode_accused(message: Accused) -> pb.AccuseReply:
    return pb.AccuseReply(sender=_encode_sender(message.sender))


def decode_accused(message: pb.AccuseReply, opener: Opener) -> Accused:
    return Accused(_decode_sender(message.sender, opener))


def _encode_sender(sender: Sender) -> pb.Sender:
    return pb.Sender(
        protocol=pb.ProtocolRange(lowest=PROTOCOL_LOWEST, highest=PROTOCOL_HIGHEST),
        record=encode_record(sender.record),
        model_version=sender.model_version,
        candidates=[encode_address(address) for address in sender.candidates],
    )


def check_protocol(spoken: pb.ProtocolRange) -> None:
    """Raises `MalformedMessage` where the other end speaks no version that this one does."""
    lowest, highest = spoken.lowest, spoken.highest
    if not 1 <= lowest <= highest:
        raise MalformedMessage("no protocol version given")
    if lowest > PROTOCOL_HIGHEST or highest < PROTOCOL_LOWEST:
        raise MalformedMessage(
            f"the peer speaks protocol {lowest} to {highest}, this one {PROTOCOL_LOWEST} to "
            f"{PROTOCOL_HIGHEST}: install the same version of p2pfl on both"
        )


def _decode_sender(message: pb.Sender, opener: Opener) -> Sender:
    check_protocol(message.protocol)
    if message.model_version > MAX_VERSION:
        raise MalformedMessage("model version out of range")
    record = opener.decode(message.record)
    if record.status not in (Status.ALIVE, Status.LEFT):
        raise MalformedMessage("a peer that speaks is alive or leaving")
    return Sender(record, message.model_version, decode_addresses(message.candidates, MAX_ADDRESSES))


def _decode_records(messages: Iterable[pb.PeerRecord], limit: int, opener: Opener) -> tuple[Record, ...]:
    listed = list(messages)
    if len(listed) > limit:
        raise MalformedMessage(f"more than {limit} records in one message")
    return tuple(opener.decode(message) for message in listed)
