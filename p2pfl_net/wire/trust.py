"""A peer asks another one's operator to be approved, in wire form. Decoders raise `MalformedMessage`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from p2pfl_proto.v1 import trust_pb2 as pb
from p2pfl_state.trust import MAX_TEXT, is_line

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.fields import decode_peer_id

TRUST_SERVICE = "p2pfl.v1.Trust"
REQUEST_METHOD = f"/{TRUST_SERVICE}/Request"


class Standing(IntEnum):
    """What became of a request."""

    NOTED = pb.TRUST_STATUS_NOTED
    """A person has to decide."""
    APPROVED = pb.TRUST_STATUS_APPROVED
    """That is decided already."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A request to be approved."""

    to: PeerId
    reason: str


def encode_asking(asking: Asking) -> bytes:
    return pb.TrustRequest(to=bytes.fromhex(asking.to), reason=asking.reason).SerializeToString()


def decode_asking(message: pb.TrustRequest) -> Asking:
    if not is_line(message.reason):
        raise MalformedMessage(f"a reason that is not one printable line of at most {MAX_TEXT} characters")
    return Asking(decode_peer_id(message.to), message.reason)


def encode_standing(standing: Standing) -> bytes:
    return pb.TrustReply(status=pb.TrustStatus.Name(standing)).SerializeToString()


def decode_standing(message: pb.TrustReply) -> Standing:
    try:
        return Standing(message.status)
    except ValueError:
        raise MalformedMessage("an answer to a trust request that is not known here") from None
