"""Everything that comes from the network: one row for each message and each way."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message
from p2pfl_proto.v1 import identity_pb2, membership_pb2, models_pb2, versions_pb2
from p2pfl_state.manifest import Manifest, Parent
from p2pfl_state.taskfile import TaskFile

from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import (
    Accuse,
    Accused,
    Ack,
    Join,
    JoinReply,
    Ping,
    Record,
    Relay,
    RelayReply,
    Request,
    Response,
    Sender,
    Status,
)
from p2pfl_net.errors import MalformedMessage, PeerFailed
from p2pfl_net.rpc.gate import Gate
from p2pfl_net.rpc.keys import Identity, certified_peer, check_signature
from p2pfl_net.wire import identity, models, records, versions
from p2pfl_net.wire.announcement import Announcement, parse_announcement
from p2pfl_net.wire.calls import CALLS, Call
from p2pfl_net.wire.fields import parse
from p2pfl_net.wire.records import Opener
from tests.fuzz.target import Target

IDENTITY = Identity.of(ec.derive_private_key(1, ec.SECP256R1()))
"""The same in every run, so that what was found once is found again."""
ME, OTHER = PeerId("ab" * 32), PeerId("cd" * 32)
NEAR = Address("127.0.0.1", 8001)
HERE, THERE = Address("192.0.2.1", 8001), Address("2001:db8::1", 8002)
NONCE, NETWORK_KEY = bytes(32), b"k" * 32
TEXT = b"what is signed"

MANIFEST = Manifest(
    version=3,
    samples=600,
    task="5a" * 32,
    weights="6b" * 32,
    parents=(Parent(OTHER, 2, "7c" * 32),),
    metrics={"accuracy": 0.5, "loss": 1},
    extra={"later": [None, "ü"]},
)
TASK = TaskFile({"architecture": {"name": "mlp", "source_sha256": None}, "classes": ["a", "b"]}, None)

STATEMENT = versions.state(MANIFEST, IDENTITY.peer_id, IDENTITY.public_key, IDENTITY.sign)


def take_all(public_key: bytes, signature: bytes, text: bytes) -> None:
    """In place of the check of a signature, which no mutation passes."""


OPENER = Opener(take_all)
_MALFORMED = (MalformedMessage,)


def targets() -> tuple[Target, ...]:
    return (*_membership(), *_identity(), *_models(), *_keys(), _announcement())


def _protobuf(
    name: str,
    message: type[Message],
    decode: Callable[[Any], Any],
    encode: Callable[[Any], bytes],
    *values: Any,
) -> Target:
    """A target whose bytes are a message that `decode` takes when protobuf has parsed it."""
    return Target(
        name,
        lambda data: decode(parse(message, data)),
        _MALFORMED,
        tuple(map(encode, values)),
        encode,
        message,
    )


def _membership() -> list[Target]:
    record = Record(
        IDENTITY.peer_id, 7, Status.ALIVE, (HERE, THERE), TaskDigest("5a" * 32), True, ("lab", "mnist")
    )
    record = records.seal(record, IDENTITY.public_key, IDENTITY.sign, NONCE[:16])
    near = replace(record, addresses=(NEAR, HERE))
    near = records.seal(near, IDENTITY.public_key, IDENTITY.sign, NONCE[:16])
    updates = (
        replace(record, status=Status.SUSPECT, suspected_by=OTHER),
        replace(near, status=Status.DEAD),
    )
    lie = versions.equivocation(STATEMENT, replace(STATEMENT, weights="9e" * 32))
    sender = Sender(record, 3, (THERE,))
    samples: dict[type, tuple[type[Message], type[Message], Any, Any]] = {
        Join: (
            membership_pb2.JoinRequest,
            membership_pb2.JoinReply,
            Join(sender, HERE, updates, ME),
            JoinReply(sender, HERE.host, updates),
        ),
        Ping: (
            membership_pb2.PingRequest,
            membership_pb2.PingReply,
            Ping(sender, ME, HERE, updates),
            Ack(sender, updates),
        ),
        Relay: (
            membership_pb2.RelayRequest,
            membership_pb2.RelayReply,
            Relay(sender, ME, HERE, OTHER),
            RelayReply(sender, True, updates),
        ),
        Accuse: (
            membership_pb2.AccuseRequest,
            membership_pb2.AccuseReply,
            Accuse(sender, ME, HERE, lie),
            Accused(sender),
        ),
    }
    rows = []
    for kind, call in CALLS.items():
        asked, answered, request, response = samples[kind]
        rows += [
            Target(
                f"{call.name} request",
                partial(_asked, call),
                _MALFORMED,
                (call.encode_request(request),),
                call.encode_request,
                asked,
            ),
            Target(
                f"{call.name} reply",
                partial(_answered, call),
                _MALFORMED,
                (call.encode_response(response),),
                call.encode_response,
                answered,
            ),
        ]
    return rows


def _asked(call: Call, data: bytes) -> Request:
    return call.decode_request(call.parse_request(data), OPENER)


def _answered(call: Call, data: bytes) -> Response:
    return call.decode_response(data, OPENER)


def _identity() -> list[Target]:
    token = identity.Token(
        IDENTITY.public_key, NONCE, IDENTITY.sign(identity.token_text(ME, NONCE)), bytes(32)
    )
    return [
        _protobuf(
            "Hello request",
            identity_pb2.HelloRequest,
            identity.decode_hello_request,
            identity.encode_hello_request,
            NONCE,
        ),
        _protobuf(
            "Hello reply",
            identity_pb2.HelloReply,
            identity.decode_hello,
            identity.encode_hello,
            identity.Hello(NONCE, 600, b""),
            identity.Hello(NONCE, 600, bytes(32)),
        ),
        _protobuf("token", identity_pb2.Token, identity.decode_token, identity.encode_token, token),
        Target(
            "greeting",
            Gate(ME, NETWORK_KEY).hello,
            _MALFORMED,
            (identity.encode_hello_request(NONCE),),
            message=identity_pb2.HelloRequest,
        ),
        _gate("gate", None),
        _gate("gate of a private network", NETWORK_KEY),
    ]


def _gate(name: str, network_key: bytes | None) -> Target:
    """Who calls, by the metadata of a call; its nonce does not change."""
    gate = Gate(ME, network_key, clock=lambda: 0.0)
    gate._nonce = NONCE
    proof = b"" if network_key is None else identity.call_proof(network_key, IDENTITY.peer_id, ME, NONCE)
    signature = IDENTITY.sign(identity.token_text(ME, NONCE))
    token = identity.encode_token(identity.Token(IDENTITY.public_key, NONCE, signature, proof))

    def caller(data: bytes) -> PeerId:
        return gate.caller([("user-agent", data.decode("latin-1")), (identity.TOKEN_HEADER, data)])

    return Target(name, caller, (MalformedMessage, PeerFailed), (token,), message=identity_pb2.Token)


def _models() -> list[Target]:
    full = models.ModelRequest(ME, TaskDigest("5a" * 32), 10, "8d" * 32, ("6b" * 32,))
    header = models.ModelHeader(
        IDENTITY.peer_id, MANIFEST, 1000, "8d" * 32, 0, not_modified=False, statement=STATEMENT
    )

    def chunk(payload: bytes) -> bytes:
        return models.chunk_prefix(len(payload)) + payload

    return [
        _protobuf(
            "model request",
            models_pb2.FetchModelRequest,
            models.decode_request,
            lambda request: models.encode_request(request).SerializeToString(),
            full,
            models.ModelRequest(),
        ),
        Target(
            "model header",
            partial(models.decode_header, verify=take_all),
            _MALFORMED,
            (models.encode_header(header),),
            models.encode_header,
            models_pb2.ModelPart,
        ),
        Target(
            "model chunk",
            lambda data: bytes(models.chunk_payload(data)),
            _MALFORMED,
            (chunk(b"x"), chunk(bytes(200))),
            chunk,
            models_pb2.ModelPart,
        ),
        Target(
            "version question",
            versions.decode_question,
            _MALFORMED,
            (versions.encode_question(OTHER, 3),),
            lambda asked: versions.encode_question(*asked),
            versions_pb2.FetchVersionRequest,
        ),
        Target(
            "version answer",
            partial(versions.decode_answer, verify=take_all),
            _MALFORMED,
            (versions.encode_answer(STATEMENT, MANIFEST),),
            lambda answer: versions.encode_answer(*answer),
            versions_pb2.FetchVersionReply,
        ),
        _protobuf(
            "task reply",
            models_pb2.FetchTaskReply,
            lambda reply: models.decode_task(reply, TaskDigest(TASK.digest)),
            lambda task: models_pb2.FetchTaskReply(task=task.encode()).SerializeToString(),
            TASK,
        ),
    ]


def _keys() -> list[Target]:
    der = ssl.PEM_cert_to_DER_cert(IDENTITY.certificate.decode())
    signature = IDENTITY.sign(TEXT)

    def signed(data: bytes) -> tuple[bytes, bytes]:
        """The key, its size in front, and the signature."""
        key, claimed = data[1 : 1 + data[0]], data[1 + data[0] :]
        check_signature(key, claimed, TEXT)
        return key, claimed

    def joined(value: tuple[bytes, bytes]) -> bytes:
        return bytes([len(value[0])]) + value[0] + value[1]

    return [
        Target(
            "certificate",
            certified_peer,
            _MALFORMED,
            (der,),
            lambda value: ssl.PEM_cert_to_DER_cert(value[1].decode()),
        ),
        Target(
            "signature",
            lambda data: signed(data or b"\0"),
            _MALFORMED,
            (joined((IDENTITY.public_key, signature)),),
            joined,
        ),
    ]


def _announcement() -> Target:
    """A service of multicast DNS, a line a part: name, port, addresses, then the TXT record."""

    def told(data: bytes) -> Announcement:
        name, port, literals, *properties = [*data.split(b"\n"), b"", b"", b""]
        return parse_announcement(
            name.decode("utf-8", "replace"),
            {key: value or None for key, _, value in (entry.partition(b"=") for entry in properties)},
            int(port[:9]) if port.isdigit() else None,
            literals.decode("latin-1").split(" "),
            over_loopback=False,
        )

    def said(peer: Announcement) -> bytes:
        literals = " ".join(address.host for address in peer.addresses).encode()
        properties = [f"{key}={value}".encode() for key, value in peer.properties.items()]
        port = str(peer.addresses[0].port).encode()
        return b"\n".join([peer.name.encode(), port, literals, *properties])

    peer = Announcement(ME, (HERE, Address(THERE.host, HERE.port)))
    return Target("announcement", told, _MALFORMED, (said(peer),), said)
