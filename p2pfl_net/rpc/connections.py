"""The calling end: TLS connections to peers whose key is known, and the token that shows them who calls.

gRPC for Python has no hook to check a certificate. So a peer's is fetched in a handshake of its own that
trusts nobody, its key is compared with the peer's id, and then it is the only root that the channel accepts:
whoever answers there later without the key fails the handshake.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any

import grpc
from p2pfl_proto.v1 import identity_pb2 as pb

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.errors import MalformedMessage, PeerFailed
from p2pfl_net.rpc.keys import CERTIFICATE_NAME, Identity, certified_peer
from p2pfl_net.rpc.options import Option
from p2pfl_net.rpc.rotations import FormerIds, former_ids
from p2pfl_net.rpc.status import NOT_A_PEER, OTHER_KEY, REFUSED, SILENT, failure_of, is_unconnected
from p2pfl_net.wire import identity as wire
from p2pfl_net.wire.fields import parse

MAX_CERTIFICATES = 4096
"""Of peers that were called; each is half a kilobyte."""
HANDSHAKE_S = 1.5
"""How long a connection may take to come about, and then a peer to show its certificate: as long as gRPC's
own attempt (`options`)."""
RENEW_SHARE = 0.8
"""A token is renewed before its time is over, so that no call is refused for its age."""

OTHER_NETWORK = "that peer is not of this private network, or has another --network-key"


class Credentials:
    """What this end shows and accepts: its own key, a private network's, and whose certificate is which.
    Thread-safe."""

    def __init__(self, identity: Identity, network_key: bytes | None = None) -> None:
        self.identity = identity
        self.network_key = network_key
        self._lock = threading.Lock()
        self._certificates: OrderedDict[PeerId, bytes] = OrderedDict()
        self.former_ids = FormerIds()
        """Of peers that were called."""

    def certificate(self, address: Address, wanted: PeerId | None, timeout_s: float) -> tuple[PeerId, bytes]:
        """Who is called at an address, and its certificate (PEM). Raises `PeerFailed`."""
        with self._lock:
            known = None if wanted is None else self._certificates.get(wanted)
        if known is not None and wanted is not None:
            return wanted, known
        try:
            peer_id, certificate = certified_peer(_presented_certificate(address, timeout_s))
        except MalformedMessage as error:
            raise PeerFailed(FailureKind.INCOMPATIBLE, f"{NOT_A_PEER} ({error})") from None
        if wanted not in (None, peer_id):
            raise PeerFailed(FailureKind.WRONG_PEER, OTHER_KEY)
        with self._lock:
            self._certificates[peer_id] = certificate
            if len(self._certificates) > MAX_CERTIFICATES:
                self._certificates.popitem(last=False)
        return peer_id, certificate

    def doubt(self, peer_id: PeerId) -> None:
        """The peer's certificate was not accepted: it is looked at anew."""
        with self._lock:
            self._certificates.pop(peer_id, None)


class Connection:
    """A channel to one peer that has shown its key. Thread-safe."""

    def __init__(self, channel: grpc.Channel, peer_id: PeerId, credentials: Credentials) -> None:
        self.channel = channel
        self.peer_id = peer_id
        self._credentials = credentials
        self._lock = threading.Lock()
        self._metadata: tuple[tuple[str, bytes], ...] = ()
        self._good_until = 0.0
        self._former: tuple[PeerId, ...] = ()
        self._methods: dict[str, Any] = {}

    def unary(self, path: str) -> Any:
        """A method that takes and brings bytes; kept, for to make one costs as much as to encode a ping."""
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = self.channel.unary_unary(path, None, None)
        return method

    def token(self, timeout_s: float) -> tuple[tuple[str, bytes], ...]:
        """The metadata of a call, after a greeting where one is due. Raises `PeerFailed`, `grpc.RpcError`,
        `MalformedMessage`."""
        deadline = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):  # another call's greeting is not answered
            raise PeerFailed(FailureKind.UNREACHABLE, SILENT)
        try:
            if time.monotonic() >= self._good_until:
                self._greet(max(0.01, deadline - time.monotonic()))
            return self._metadata
        finally:
            self._lock.release()

    def former(self, timeout_s: float) -> tuple[PeerId, ...]:
        """The ids that the peer had before, newest first, as its former keys say. Raises as `token`."""
        self.token(timeout_s)
        return self._former

    def forget_token(self) -> None:
        """The peer does not accept it any more, as after its restart."""
        with self._lock:
            self._good_until = 0.0

    def _greet(self, timeout_s: float) -> None:
        identity, key = self._credentials.identity, self._credentials.network_key
        asked = secrets.token_bytes(wire.NONCE_BYTES)
        answer = self.unary(wire.HELLO_METHOD)(wire.encode_hello_request(asked), timeout=timeout_s)
        hello = wire.decode_hello(parse(pb.HelloReply, answer))
        proof = b""
        if key is not None:
            expected = wire.hello_proof(key, self.peer_id, asked, hello.nonce)
            if not hmac.compare_digest(expected, hello.proof):
                raise PeerFailed(FailureKind.INCOMPATIBLE, OTHER_NETWORK)
            proof = wire.call_proof(key, identity.peer_id, self.peer_id, hello.nonce)
        self._former = former_ids(hello.former, self.peer_id)
        self._credentials.former_ids.note(self.peer_id, self._former)
        signature = identity.sign(wire.token_text(self.peer_id, hello.nonce))
        token = wire.Token(identity.public_key, hello.nonce, signature, proof, identity.former)
        self._metadata = ((wire.TOKEN_HEADER, wire.encode_token(token)),)
        self._good_until = time.monotonic() + RENEW_SHARE * hello.valid_s


class Connections:
    """Open connections by address, the least recently used closed first. Thread-safe."""

    def __init__(self, credentials: Credentials, options: Sequence[Option], limit: int = 256) -> None:
        self._credentials = credentials
        self._options = (*options, ("grpc.ssl_target_name_override", CERTIFICATE_NAME))
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Address, Connection] = OrderedDict()

    def to(self, address: Address, wanted: PeerId | None, timeout_s: float) -> Connection:
        """The connection to an IP literal and port, where `wanted` lives (None: whoever does).

        Raises `PeerFailed` when nobody answers there, or another peer.
        """
        with self._lock:
            connection = self._open.get(address)
            if connection is not None and wanted in (None, connection.peer_id):
                self._open.move_to_end(address)
                return connection
        peer_id, certificate = self._credentials.certificate(address, wanted, timeout_s)
        channel = grpc.secure_channel(
            _target(address), grpc.ssl_channel_credentials(certificate), options=list(self._options)
        )
        connection = Connection(channel, peer_id, self._credentials)
        with self._lock:
            replaced = self._open.pop(address, None)
            self._open[address] = connection
            oldest = self._open.popitem(last=False)[1] if len(self._open) > self._limit else None
        for closed in (replaced, oldest):
            if closed is not None:
                closed.channel.close()
        return connection

    def failed(self, address: Address, error: grpc.RpcError, timeout_s: float) -> PeerFailed:
        """What a failed call means. Where there is no connection any more it is closed: gRPC would go on
        dialling for half an hour."""
        failure = failure_of(error, timeout_s)
        if is_unconnected(error):
            with self._lock:
                connection = self._open.pop(address, None)
            if connection is not None:
                if failure.kind is FailureKind.WRONG_PEER:
                    self._credentials.doubt(connection.peer_id)
                connection.channel.close()
        return failure

    def close(self) -> None:
        with self._lock:
            connections = list(self._open.values())
            self._open.clear()
        for connection in connections:
            connection.channel.close()


def _target(address: Address) -> str:
    family = "ipv6" if ":" in address.host else "ipv4"
    return f"{family}:{address}"


@cache
def _any_certificate() -> ssl.SSLContext:
    """Accepts every certificate: its key is compared with the peer's id."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def _presented_certificate(address: Address, timeout_s: float) -> bytes:
    """The certificate (DER) that is shown at an IP literal and port. Raises `PeerFailed`."""
    context = _any_certificate()
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        plain.settimeout(min(timeout_s, HANDSHAKE_S))
        try:
            plain.connect((address.host, address.port))
        except ConnectionRefusedError:
            raise PeerFailed(FailureKind.REFUSED, REFUSED) from None
        except TimeoutError:
            raise PeerFailed(FailureKind.UNREACHABLE, "no answer in time") from None
        except OSError as error:
            raise PeerFailed(FailureKind.UNREACHABLE, error.strerror or "no connection") from None
        try:
            with context.wrap_socket(plain) as wrapped:
                certificate = wrapped.getpeercert(binary_form=True)
        except TimeoutError:
            raise PeerFailed(FailureKind.UNREACHABLE, SILENT) from None
        except ssl.SSLError:
            raise PeerFailed(FailureKind.UNREACHABLE, NOT_A_PEER) from None
        except OSError as error:
            raise PeerFailed(FailureKind.UNREACHABLE, error.strerror or "the connection broke") from None
    assert certificate is not None, "a TLS server shows one"
    return certificate
