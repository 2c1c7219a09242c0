"""Who lives at an address now, for a caller that knows a peer by an id from before its key was replaced."""

from __future__ import annotations

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.client import resolve
from p2pfl_net.rpc.connections import Connections, Credentials
from p2pfl_net.rpc.options import MEMBERSHIP_OPTIONS
from p2pfl_net.rpc.status import OTHER_KEY


def current_id(credentials: Credentials, address: Address, named: PeerId, timeout_s: float) -> PeerId:
    """The id of the peer at `address`: `named`, or the one that follows it by its former keys' word. Whoever
    knows that `named` was replaced names the one that followed it, for the old key counts no more.

    Raises `PeerFailed`, wrong peer where somebody else answers; `MalformedMessage`.
    """
    connections = Connections(credentials, MEMBERSHIP_OPTIONS)
    failure: PeerFailed | None = None
    try:
        for literal in resolve(address):
            try:
                connection = connections.to(literal, None, timeout_s)
                if connection.peer_id == named or named in connection.former(timeout_s):
                    return connection.peer_id
                failure = PeerFailed(FailureKind.WRONG_PEER, OTHER_KEY)
            except PeerFailed as error:
                failure = failure or error
            except grpc.RpcError as error:
                failure = failure or connections.failed(literal, error, timeout_s)
    finally:
        connections.close()
    assert failure is not None, "a name has an address"
    raise failure
