"""The calls of the Membership service: what travels in each, as bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.messages import Ack, Join, JoinReply, Ping, Relay, RelayReply, Request, Response
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire import membership as wire

M = TypeVar("M", bound=Message)

MEMBERSHIP_SERVICE = "p2pfl.v1.Membership"


@dataclass(frozen=True, slots=True)
class Call:
    """One method: both messages, between the core's types and bytes. Decoders raise `MalformedMessage`."""

    name: str
    encode_request: Callable[[Any], bytes]
    decode_request: Callable[[bytes], Request]
    response: type[Response]
    encode_response: Callable[[Any], bytes]
    decode_response: Callable[[bytes], Response]

    @property
    def path(self) -> str:
        return f"/{MEMBERSHIP_SERVICE}/{self.name}"


def parse(kind: type[M], data: bytes) -> M:
    """The protobuf message in `data`. Raises `MalformedMessage`."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise MalformedMessage("not a message of this protocol") from None


CALLS: dict[type[Request], Call] = {
    Join: Call(
        "Join",
        lambda message: wire.encode_join(message).SerializeToString(),
        lambda data: wire.decode_join(parse(pb.JoinRequest, data)),
        JoinReply,
        lambda message: wire.encode_join_reply(message).SerializeToString(),
        lambda data: wire.decode_join_reply(parse(pb.JoinReply, data)),
    ),
    Ping: Call(
        "Ping",
        lambda message: wire.encode_ping(message).SerializeToString(),
        lambda data: wire.decode_ping(parse(pb.PingRequest, data)),
        Ack,
        lambda message: wire.encode_ack(message).SerializeToString(),
        lambda data: wire.decode_ack(parse(pb.PingReply, data)),
    ),
    Relay: Call(
        "Relay",
        lambda message: wire.encode_relay(message).SerializeToString(),
        lambda data: wire.decode_relay(parse(pb.RelayRequest, data)),
        RelayReply,
        lambda message: wire.encode_relay_reply(message).SerializeToString(),
        lambda data: wire.decode_relay_reply(parse(pb.RelayReply, data)),
    ),
}
