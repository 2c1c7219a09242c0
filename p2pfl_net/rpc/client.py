"""Calls to other daemons, over connections that are kept."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId, parse_ip
from p2pfl_net.core.messages import Request, Response
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.connections import Connection, Connections, Credentials
from p2pfl_net.rpc.options import MEMBERSHIP_OPTIONS
from p2pfl_net.rpc.status import is_unproved
from p2pfl_net.wire.calls import CALLS
from p2pfl_net.wire.records import Opener

MAX_LITERALS = 4
"""Addresses of one host name that are tried."""


def resolve(address: Address) -> tuple[Address, ...]:
    """The IP literals behind a host name, IPv4 first. Raises `PeerFailed` when there is none."""
    if parse_ip(address.host) is not None:
        return (address,)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PeerFailed(
            FailureKind.UNREACHABLE, f"host name not found ({error.strerror or error})"
        ) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    literals = dict.fromkeys(parse_ip(str(entry[4][0])) for entry in found)
    addresses = tuple(Address(literal, address.port) for literal in literals if literal is not None)
    if not addresses:
        raise PeerFailed(FailureKind.UNREACHABLE, "the host name has no usable address")
    return addresses[:MAX_LITERALS]


class KnownPeers(Protocol):
    """Who lived at the addresses that a person named. Thread-safe."""

    def check(self, address: Address, peer_id: PeerId, former: Callable[[], tuple[PeerId, ...]]) -> None:
        """Raises `PeerFailed` (wrong peer) when it was another, and none of the ids that the peer had before:
        `former` asks it, and raises what a call raises."""
        ...


class MembershipClient:
    """Sends membership messages. Thread-safe."""

    def __init__(self, credentials: Credentials, known: KnownPeers, opener: Opener) -> None:
        self._connections = Connections(credentials, MEMBERSHIP_OPTIONS)
        self._opener = opener
        self._known = known

    def call(self, address: Address, message: Request, timeout_s: float) -> Response:
        """Delivers one message and returns the answer. Of a host name each address is tried in turn.

        Raises `PeerFailed` when none comes within `timeout_s`, or somebody else answers than is meant;
        `MalformedMessage` for a wrong one.
        """
        deadline = time.monotonic() + timeout_s
        *others, last = resolve(address)
        for literal in others:
            try:
                return self._call(address, literal, message, deadline)
            except PeerFailed as error:
                if not error.kind.is_unreachable:
                    raise
        return self._call(address, last, message, deadline)

    def _call(self, address: Address, literal: Address, message: Request, deadline: float) -> Response:
        dialled = Address(literal.host.partition("%")[0], literal.port)
        if message.dialled != dialled:  # a zone (fe80::1%eth0) means something on this machine only
            message = replace(message, dialled=dialled)
        timeout_s = _left(deadline)
        connection = self._connections.to(literal, message.to, timeout_s)
        try:
            if message.to is None:
                self._known.check(address, connection.peer_id, lambda: connection.former(_left(deadline)))
            answer = self._deliver(connection, message, deadline)
        except grpc.RpcError as error:
            raise self._connections.failed(literal, error, timeout_s) from None
        except ValueError as error:  # "Cannot invoke RPC on closed channel": evicted in this instant
            raise PeerFailed(FailureKind.UNREACHABLE, str(error)) from None
        if answer.sender.record.peer_id != connection.peer_id:
            raise PeerFailed(FailureKind.WRONG_PEER, "speaks for another peer")
        return answer

    def _deliver(self, connection: Connection, message: Request, deadline: float) -> Response:
        """Calls, and once more where the token has become invalid before its time."""
        call = CALLS[type(message)]
        data = call.encode_request(message)
        method = connection.unary(call.path)
        try:
            answer = method(data, timeout=_left(deadline), metadata=connection.token(_left(deadline)))
        except grpc.RpcError as error:
            if not is_unproved(error):
                raise
            connection.forget_token()
            answer = method(data, timeout=_left(deadline), metadata=connection.token(_left(deadline)))
        return call.decode_response(answer, self._opener)

    def close(self) -> None:
        self._connections.close()


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())
