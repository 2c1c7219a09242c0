"""Membership messages to and from protobuf. Decoders raise `MalformedMessage`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.ids import Address, PeerId, TaskDigest, is_unicast, parse_ip, parse_tags
from p2pfl_net.core.messages import (
    MAX_INCARNATION,
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

PROTOCOL_LOWEST = 1
PROTOCOL_HIGHEST = 1
"""The protocol versions that this program speaks."""

DIGEST_BYTES = 32
MAX_ADDRESSES = 8
MAX_RECORDS = 20_000
MAX_UPDATES = 128
MAX_VERSION = 2**53


def encode_join(message: Join) -> pb.JoinRequest:
    return pb.JoinRequest(
        sender=_encode_sender(message.sender),
        dialled=_encode_address(message.dialled),
        records=[encode_record(record) for record in message.records],
        to=bytes.fromhex(message.to or ""),
    )


def decode_join(message: pb.JoinRequest) -> Join:
    records = _decode_records(message.records, MAX_RECORDS)
    to = decode_peer_id(message.to) if message.to else None
    return Join(_decode_sender(message.sender), _decode_address(message.dialled), records, to)


def encode_join_reply(message: JoinReply) -> pb.JoinReply:
    return pb.JoinReply(
        sender=_encode_sender(message.sender),
        observed_host=message.observed_host,
        records=[encode_record(record) for record in message.records],
    )


def decode_join_reply(message: pb.JoinReply) -> JoinReply:
    host = _decode_host(message.observed_host, "observed_host")
    return JoinReply(_decode_sender(message.sender), host, _decode_records(message.records, MAX_RECORDS))


def encode_ping(message: Ping) -> pb.PingRequest:
    return pb.PingRequest(
        sender=_encode_sender(message.sender),
        to=bytes.fromhex(message.to),
        dialled=_encode_address(message.dialled),
        updates=[encode_record(record) for record in message.updates],
    )


def decode_ping(message: pb.PingRequest) -> Ping:
    return Ping(
        _decode_sender(message.sender),
        decode_peer_id(message.to),
        _decode_address(message.dialled),
        _decode_records(message.updates, MAX_UPDATES),
    )


def encode_ack(message: Ack) -> pb.PingReply:
    return pb.PingReply(
        sender=_encode_sender(message.sender),
        updates=[encode_record(record) for record in message.updates],
    )


def decode_ack(message: pb.PingReply) -> Ack:
    return Ack(_decode_sender(message.sender), _decode_records(message.updates, MAX_UPDATES))


def encode_relay(message: Relay) -> pb.RelayRequest:
    return pb.RelayRequest(
        sender=_encode_sender(message.sender),
        to=bytes.fromhex(message.to),
        dialled=_encode_address(message.dialled),
        target=bytes.fromhex(message.target),
    )


def decode_relay(message: pb.RelayRequest) -> Relay:
    return Relay(
        _decode_sender(message.sender),
        decode_peer_id(message.to),
        _decode_address(message.dialled),
        decode_peer_id(message.target),
    )


def encode_relay_reply(message: RelayReply) -> pb.RelayReply:
    return pb.RelayReply(
        sender=_encode_sender(message.sender),
        reached=message.reached,
        updates=[encode_record(record) for record in message.updates],
    )


def decode_relay_reply(message: pb.RelayReply) -> RelayReply:
    updates = _decode_records(message.updates, MAX_UPDATES)
    return RelayReply(_decode_sender(message.sender), message.reached, updates)


def encode_record(record: Record) -> pb.PeerRecord:
    return pb.PeerRecord(
        peer_id=bytes.fromhex(record.peer_id),
        incarnation=record.incarnation,
        status=f"PEER_STATUS_{record.status.name}",
        addresses=[_encode_address(address) for address in record.addresses],
        task=bytes.fromhex(record.task) if record.task else b"",
        published=record.published,
        tags=record.tags,
        suspected_by=bytes.fromhex(record.suspected_by) if record.suspected_by else b"",
    )


def decode_record(message: pb.PeerRecord) -> Record:
    try:
        status = Status(message.status)
    except ValueError:
        raise MalformedMessage(f"unknown peer status {message.status}") from None
    if message.incarnation > MAX_INCARNATION:
        raise MalformedMessage("incarnation out of range")
    if message.published and not message.task:
        raise MalformedMessage("a published model without a task")
    return Record(
        peer_id=decode_peer_id(message.peer_id),
        incarnation=message.incarnation,
        status=status,
        addresses=_decode_addresses(message.addresses),
        task=TaskDigest(decode_digest(message.task, "task")) if message.task else None,
        published=message.published,
        tags=_decode_tags(message.tags),
        suspected_by=decode_peer_id(message.suspected_by) if message.suspected_by else None,
    )


def _decode_tags(tags: Sequence[str]) -> tuple[str, ...]:
    try:
        return parse_tags(tags)
    except ValueError as error:
        raise MalformedMessage(str(error)) from None


def decode_peer_id(data: bytes) -> PeerId:
    return PeerId(decode_digest(data, "peer id"))


def decode_digest(data: bytes, what: str) -> str:
    """A SHA-256 as hex."""
    if len(data) != DIGEST_BYTES:
        raise MalformedMessage(f"{what} has {len(data)} bytes, not {DIGEST_BYTES}")
    return data.hex()


def _encode_sender(sender: Sender) -> pb.Sender:
    return pb.Sender(
        protocol=pb.ProtocolRange(lowest=PROTOCOL_LOWEST, highest=PROTOCOL_HIGHEST),
        record=encode_record(sender.record),
        model_version=sender.model_version,
        candidates=[_encode_address(address) for address in sender.candidates],
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


def _decode_sender(message: pb.Sender) -> Sender:
    check_protocol(message.protocol)
    if message.model_version > MAX_VERSION:
        raise MalformedMessage("model version out of range")
    record = decode_record(message.record)
    if record.status not in (Status.ALIVE, Status.LEFT):
        raise MalformedMessage("a peer that speaks is alive or leaving")
    return Sender(record, message.model_version, _decode_addresses(message.candidates))


def _decode_records(messages: Iterable[pb.PeerRecord], limit: int) -> tuple[Record, ...]:
    listed = list(messages)
    if len(listed) > limit:
        raise MalformedMessage(f"more than {limit} records in one message")
    return tuple(decode_record(message) for message in listed)


def _encode_address(address: Address) -> pb.Address:
    return pb.Address(host=address.host, port=address.port)


def _decode_address(message: pb.Address) -> Address:
    host = _decode_host(message.host, "an address")
    if not 1 <= message.port <= 65535:
        raise MalformedMessage("a port is out of range")
    return Address(host, message.port)


def _decode_host(host: str, what: str) -> str:
    """An IP literal in its normal form. A zone (`fe80::1%eth0`) means nothing on another machine."""
    literal = None if "%" in host else parse_ip(host)
    if literal is None:
        raise MalformedMessage(f"{what} is not an IP address")
    return literal


def _decode_addresses(messages: Iterable[pb.Address]) -> tuple[Address, ...]:
    listed = list(messages)
    if len(listed) > MAX_ADDRESSES:
        raise MalformedMessage(f"more than {MAX_ADDRESSES} addresses of one peer")
    addresses = tuple(dict.fromkeys(_decode_address(message) for message in listed))
    for address in addresses:
        if not is_unicast(address.host):
            raise MalformedMessage("an address at which no peer can be reached")
    return addresses
