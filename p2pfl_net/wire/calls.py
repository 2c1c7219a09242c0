"""The calls of the Membership service: what travels in each, as bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.messages import (
    Accuse,
    Accused,
    Ack,
    Join,
    JoinReply,
    Ping,
    Relay,
    RelayReply,
    Request,
    Response,
)
from p2pfl_net.wire import membership as wire
from p2pfl_net.wire.fields import parse
from p2pfl_net.wire.records import Opener

MEMBERSHIP_SERVICE = "p2pfl.v1.Membership"


@dataclass(frozen=True, slots=True)
class Call:
    """One method: both messages, between the core's types and bytes. Decoders raise `MalformedMessage`."""

    name: str
    encode_request: Callable[[Any], bytes]
    parse_request: Callable[[bytes], Message]
    """What is left of it is checked by `decode_request`, which costs as much as it has records."""
    count_records: Callable[[Any], int]
    decode_request: Callable[[Any, Opener], Request]
    response: type[Response]
    encode_response: Callable[[Any], bytes]
    decode_response: Callable[[bytes, Opener], Response]

    @property
    def path(self) -> str:
        return f"/{MEMBERSHIP_SERVICE}/{self.name}"


def _count_records(message: Message) -> int:
    """How many records of peers a parsed request brings."""
    match message:
        case pb.JoinRequest():
            return len(message.records)
        case pb.PingRequest():
            return len(message.updates)
        case _:
            return 0


def _call(
    name: str,
    request: tuple[type[Message], Callable[[Any], Message], Callable[[Any, Opener], Request]],
    response: tuple[type[Message], Callable[[Any], Message], Callable[[Any, Opener], Response]],
    answer: type[Response],
) -> Call:
    """Of each message: its protobuf type, and how the core's is encoded into it and decoded from it."""
    request_type, encode_request, decode_request = request
    response_type, encode_response, decode_response = response
    return Call(
        name,
        lambda message: encode_request(message).SerializeToString(),
        lambda data: parse(request_type, data),
        _count_records,
        decode_request,
        answer,
        lambda message: encode_response(message).SerializeToString(),
        lambda data, opener: decode_response(parse(response_type, data), opener),
    )


CALLS: dict[type[Request], Call] = {
    Join: _call(
        "Join",
        (pb.JoinRequest, wire.encode_join, wire.decode_join),
        (pb.JoinReply, wire.encode_join_reply, wire.decode_join_reply),
        JoinReply,
    ),
    Ping: _call(
        "Ping",
        (pb.PingRequest, wire.encode_ping, wire.decode_ping),
        (pb.PingReply, wire.encode_ack, wire.decode_ack),
        Ack,
    ),
    Relay: _call(
        "Relay",
        (pb.RelayRequest, wire.encode_relay, wire.decode_relay),
        (pb.RelayReply, wire.encode_relay_reply, wire.decode_relay_reply),
        RelayReply,
    ),
    Accuse: _call(
        "Accuse",
        (pb.AccuseRequest, wire.encode_accuse, wire.decode_accuse),
        (pb.AccuseReply, wire.encode_accused, wire.decode_accused),
        Accused,
    ),
}
