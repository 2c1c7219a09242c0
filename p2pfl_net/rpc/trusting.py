"""The Trust service at both ends: a peer asks to be approved, another keeps that for its operator."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from p2pfl_proto.v1 import trust_pb2 as pb

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.client import resolve
from p2pfl_net.rpc.connections import Connections, Credentials
from p2pfl_net.rpc.following import current_id
from p2pfl_net.rpc.ledger import Admission
from p2pfl_net.rpc.options import MEMBERSHIP_OPTIONS
from p2pfl_net.wire import trust as wire
from p2pfl_net.wire.fields import parse

REQUEST_TIMEOUT_S = 10.0


def answer_request(me: PeerId, caller: PeerId, admission: Admission, data: bytes, host: str) -> bytes:
    """Answers one request. Raises `RemoteError`."""
    asking = wire.decode_asking(parse(pb.TrustRequest, data))
    if asking.to != me:
        raise PeerFailed(FailureKind.WRONG_PEER, "another peer lives here")
    return wire.encode_standing(admission.request(caller, host, asking.reason))


def ask_for_trust(
    credentials: Credentials, addresses: Sequence[Address], peer_id: PeerId | None, reason: str
) -> tuple[PeerId, wire.Standing]:
    """Asks the peer at the first of the addresses that answers, or the one that has followed it: who that is,
    and what it says.

    Raises `RemoteError`.
    """
    connections = Connections(credentials, MEMBERSHIP_OPTIONS)
    try:
        *others, last = [literal for address in addresses for literal in resolve(address)]
        for literal in others:
            try:
                return _ask(connections, literal, _now(credentials, literal, peer_id), reason)
            except PeerFailed as error:
                if error.kind is FailureKind.FORBIDDEN:
                    raise
        return _ask(connections, last, _now(credentials, last, peer_id), reason)
    finally:
        connections.close()


def _now(credentials: Credentials, address: Address, peer_id: PeerId | None) -> PeerId | None:
    return None if peer_id is None else current_id(credentials, address, peer_id, REQUEST_TIMEOUT_S)


def _ask(
    connections: Connections, address: Address, peer_id: PeerId | None, reason: str
) -> tuple[PeerId, wire.Standing]:
    connection = connections.to(address, peer_id, REQUEST_TIMEOUT_S)
    asked = wire.encode_asking(wire.Asking(connection.peer_id, reason))
    try:
        token = connection.token(REQUEST_TIMEOUT_S)
        method = connection.unary(wire.REQUEST_METHOD)
        answer = method(asked, timeout=REQUEST_TIMEOUT_S, metadata=token)
    except grpc.RpcError as error:
        raise connections.failed(address, error, REQUEST_TIMEOUT_S) from None
    return connection.peer_id, wire.decode_standing(parse(pb.TrustReply, answer))
