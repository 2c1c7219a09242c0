"""What all messages are made of: digests, ids and addresses. Decoders raise `MalformedMessage`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.ids import Address, PeerId, is_unicast, parse_ip
from p2pfl_net.errors import MalformedMessage

M = TypeVar("M", bound=Message)

DIGEST_BYTES = 32


def parse(kind: type[M], data: bytes) -> M:
    """The protobuf message in `data`. Raises `MalformedMessage`."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise MalformedMessage("not a message of this protocol") from None


def decode_peer_id(data: bytes) -> PeerId:
    return PeerId(decode_digest(data, "peer id"))


def decode_digest(data: bytes, what: str) -> str:
    """A SHA-256 as hex."""
    if len(data) != DIGEST_BYTES:
        raise MalformedMessage(f"{what} has {len(data)} bytes, not {DIGEST_BYTES}")
    return data.hex()


def encode_address(address: Address) -> pb.Address:
    return pb.Address(host=address.host, port=address.port)


def decode_address(message: pb.Address) -> Address:
    host = decode_host(message.host, "an address")
    if not 1 <= message.port <= 65535:
        raise MalformedMessage("a port is out of range")
    return Address(host, message.port)


def decode_host(host: str, what: str) -> str:
    """An IP literal in its normal form. A zone (`fe80::1%eth0`) means nothing on another machine."""
    literal = None if "%" in host else parse_ip(host)
    if literal is None:
        raise MalformedMessage(f"{what} is not an IP address")
    return literal


def decode_addresses(messages: Iterable[pb.Address], limit: int) -> tuple[Address, ...]:
    """Addresses at which a peer may be reached, each once."""
    listed = list(messages)
    if len(listed) > limit:
        raise MalformedMessage(f"more than {limit} addresses of one peer")
    addresses = tuple(dict.fromkeys(decode_address(message) for message in listed))
    for address in addresses:
        if not is_unicast(address.host):
            raise MalformedMessage("an address at which no peer can be reached")
    return addresses
