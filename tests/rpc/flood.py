"""An attacker: as many calls as it can make, in as many names as it likes, from an address of its own."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from p2pfl_proto.v1 import identity_pb2

from p2pfl_net.core.ids import PeerId
from p2pfl_net.rpc.keys import Identity, peer_id_of
from p2pfl_net.rpc.uploads import MAX_UPLOADS_OF_PEER
from p2pfl_net.wire import identity as wire
from p2pfl_net.wire.fields import parse
from tests.rpc.callers import CALL_TIMEOUT_S, tls_channel
from tests.rpc.peers import Peer
from tests.rpc.tcp_proxy import TcpProxy

ATTACKER = "127.0.0.2"
"""Whence attacks come: to a daemon another address than that of the honest peers."""
AT_ONCE = 32
"""Calls under way."""

Metadata = tuple[tuple[str, bytes], ...]


def cheap_identity() -> Identity:
    """A key without a certificate, for who only calls: a fifth of the work."""
    key = ec.generate_private_key(ec.SECP256R1())
    public_key = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Identity(key, peer_id_of(public_key), public_key, b"")


class Flood:
    """Calls over one connection."""

    def __init__(self, channel: grpc.Channel, called: PeerId) -> None:
        self.channel = channel
        self._called = called
        self._nonce: bytes | None = None

    @staticmethod
    def hello() -> bytes:
        return wire.encode_hello_request(secrets.token_bytes(wire.NONCE_BYTES))

    def token(self, identity: Identity) -> Metadata:
        """What shows that `identity` calls. One greeting is enough for all of an attacker's peers."""
        if self._nonce is None:
            answer = self.channel.unary_unary(wire.HELLO_METHOD, None, None)(
                self.hello(), timeout=CALL_TIMEOUT_S
            )
            self._nonce = wire.decode_hello(parse(identity_pb2.HelloReply, answer)).nonce
        signature = identity.sign(wire.token_text(self._called, self._nonce))
        token = wire.encode_token(wire.Token(identity.public_key, self._nonce, signature, b""))
        return ((wire.TOKEN_HEADER, token),)

    def unary(self, path: str, calls: Iterable[tuple[bytes, Metadata]]) -> Outcomes:
        """Makes these calls, many at once."""
        method = self.channel.unary_unary(path, None, None)
        return _count(
            lambda message, metadata: method.future(message, timeout=CALL_TIMEOUT_S, metadata=metadata), calls
        )

    def streams(self, path: str, calls: Iterable[tuple[bytes, Metadata]]) -> Outcomes:
        """Begins these streams, some at once, and reads each to its end."""
        method = self.channel.unary_stream(path, None, None)

        def read(call: tuple[bytes, Metadata]) -> grpc.RpcError | None:
            try:
                for _ in method(call[0], timeout=CALL_TIMEOUT_S, metadata=call[1]):
                    pass
            except grpc.RpcError as error:
                return error
            return None

        outcomes = Outcomes()
        with ThreadPoolExecutor(MAX_UPLOADS_OF_PEER) as pool:
            for error in pool.map(read, calls):
                outcomes.add(error)
        return outcomes


class Outcomes:
    """What became of many calls."""

    def __init__(self) -> None:
        self.answered = 0
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.words: Counter[str] = Counter()

    def add(self, error: BaseException | None) -> None:
        if error is None:
            self.answered += 1
            return
        assert isinstance(error, grpc.Call)
        self.codes[error.code()] += 1
        self.words[error.details() or ""] += 1

    @property
    def busy(self) -> int:
        return self.codes[grpc.StatusCode.RESOURCE_EXHAUSTED]


def _count(begin: Callable[[bytes, Metadata], Any], calls: Iterable[tuple[bytes, Metadata]]) -> Outcomes:
    outcomes, running = Outcomes(), deque[Any]()
    for message, metadata in calls:
        running.append(begin(message, metadata))
        if len(running) >= AT_ONCE:
            outcomes.add(running.popleft().exception())
    while running:
        outcomes.add(running.popleft().exception())
    return outcomes


@contextmanager
def flooding(daemon: Peer, source_host: str = ATTACKER) -> Iterator[Flood]:
    """An attacker's connection to a daemon."""
    with TcpProxy(daemon.port, source_host=source_host) as link, tls_channel(link.port) as (channel, called):
        yield Flood(channel, called)
