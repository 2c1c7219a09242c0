"""Peers that answer nonsense: members of the network that break every call in one way."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc
from p2pfl_proto.v1 import membership_pb2 as pb
from p2pfl_proto.v1 import models_pb2

from p2pfl_net.rpc.options import MAX_MESSAGE_BYTES
from tests.rpc.callers import ANYBODY, new_identity
from tests.rpc.peers import Peer
from tests.rpc.scripted_peer import Gone, RpcServer, call_join, fake_sender, loopback, stall

SERVICES = {"Membership": ("Join", "Ping", "Relay"), "Models": ("FetchModel", "FetchTask")}
ERRORS = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]

Answer = Callable[[random.Random, grpc.ServicerContext], bytes]
"""What any call gets."""


def random_bytes(source: random.Random, context: grpc.ServicerContext) -> bytes:
    return source.randbytes(source.randrange(2000))


def wrong_message(source: random.Random, context: grpc.ServicerContext) -> bytes:
    """Protobuf that belongs elsewhere, or is of somebody else."""
    stranger = fake_sender(ANYBODY, 1)
    return source.choice(
        [
            b"",
            models_pb2.ModelPart(chunk=source.randbytes(100)).SerializeToString(),
            models_pb2.FetchTaskReply(task=b"{}").SerializeToString(),
            pb.PingReply(sender=stranger).SerializeToString(),
            pb.PingReply(
                sender=pb.Sender(protocol=pb.ProtocolRange(lowest=9, highest=9))
            ).SerializeToString(),
        ]
    )


def too_large(source: random.Random, context: grpc.ServicerContext) -> bytes:
    return bytes(MAX_MESSAGE_BYTES + 1)


def nothing(source: random.Random, context: grpc.ServicerContext) -> bytes:
    """Never answers."""
    stall(context)
    raise AssertionError


def unknown_error(source: random.Random, context: grpc.ServicerContext) -> bytes:
    context.abort(source.choice(ERRORS), "no\nreason\x1b[31m")


class GarbagePeer(RpcServer):
    """A server on loopback that answers each call with `answer`. A context manager."""

    def __init__(self, answer: Answer, seed: int) -> None:
        self.calls = 0
        self._answer = answer
        self._random = random.Random(seed)
        # of a stream, the one answer is the first message and the last
        reply = grpc.unary_unary_rpc_method_handler(self._reply, None, None)
        handlers = [
            grpc.method_handlers_generic_handler(f"p2pfl.v1.{service}", dict.fromkeys(methods, reply))
            for service, methods in SERVICES.items()
        ]
        super().__init__(new_identity(), *handlers)

    def _reply(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        try:
            return self._answer(self._random, context)
        except Gone:
            return b""


class RawPeer:
    """A listener on loopback that speaks another protocol. A context manager."""

    def __init__(self, seed: int) -> None:
        self.identity = new_identity()
        self.peer_id = self.identity.peer_id
        self.calls = 0
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            with caller:
                self.calls += 1
                try:
                    caller.sendall(self._random.randbytes(1000))
                except OSError:  # gone already
                    continue


def register(peer: GarbagePeer | RawPeer, daemon: Peer) -> None:
    """Makes a daemon believe in it: it says a sound sentence once."""
    sender = fake_sender(peer.identity, peer.port)
    call_join(daemon.port, pb.JoinRequest(sender=sender, dialled=loopback(daemon.port)))
