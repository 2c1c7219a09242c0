"""Calls as strangers make them. Everybody that a test plays has a key of its own, as each peer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc

from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.rpc.client import MembershipClient
from p2pfl_net.rpc.connections import Connection, Credentials
from p2pfl_net.rpc.fetching import ModelClient
from p2pfl_net.rpc.keys import CERTIFICATE_NAME, Identity, check_signature
from p2pfl_net.wire.records import Opener

CALL_TIMEOUT_S = 20.0

_PLAYED: dict[bytes, Identity] = {}


def new_identity() -> Identity:
    """A peer that a test plays."""
    identity = Identity.new()
    _PLAYED[identity.public_key] = identity
    _PLAYED[bytes.fromhex(identity.peer_id)] = identity
    return identity


ANYBODY = new_identity()


def played_by(name: bytes) -> Identity:
    """Who speaks as the peer with this key or id: itself, where a test plays it."""
    return _PLAYED.get(name, ANYBODY)


class TrustsAll:
    """Has no address of anybody."""

    def check(self, address: Address, peer_id: PeerId, former: Callable[[], tuple[PeerId, ...]]) -> None:
        pass


def membership_client() -> MembershipClient:
    return MembershipClient(Credentials(new_identity()), TrustsAll(), Opener(check_signature))


def model_client() -> ModelClient:
    return ModelClient(Credentials(new_identity()))


@contextmanager
def tls_channel(port: int, *options: tuple[str, Any]) -> Iterator[tuple[grpc.Channel, PeerId]]:
    """A channel to whoever listens on a port of this machine, and who that is; without a token."""
    address = Address("127.0.0.1", port)
    peer_id, certificate = Credentials(ANYBODY).certificate(address, None, CALL_TIMEOUT_S)
    all_options = [("grpc.ssl_target_name_override", CERTIFICATE_NAME), *options]
    credentials = grpc.ssl_channel_credentials(certificate)
    with grpc.secure_channel(f"ipv4:{address}", credentials, options=all_options) as channel:
        yield channel, peer_id


@contextmanager
def calling(
    port: int, identity: Identity = ANYBODY, *options: tuple[str, Any], network_key: bytes | None = None
) -> Iterator[grpc.Channel]:
    """A channel whose every call shows that `identity` makes it."""
    with tls_channel(port, *options) as (channel, peer_id):
        connection = Connection(channel, peer_id, Credentials(identity, network_key))
        yield grpc.intercept_channel(channel, _Showing(connection))


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Showing(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds the token to every call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._shown(client_call_details), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._shown(client_call_details), request)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return continuation(self._shown(client_call_details), request_iterator)

    def _shown(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), *self._connection.token(CALL_TIMEOUT_S)),
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
