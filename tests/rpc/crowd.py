"""Hundreds of peers that do not exist, as a hostile caller would register them."""

from __future__ import annotations

import hashlib
from functools import partial

import grpc
from p2pfl_proto.v1 import membership_pb2 as pb

from tests.processes import wait_for
from tests.rpc.peers import Peer
from tests.rpc.scripted_peer import CALL_TIMEOUT_S, JOIN, fake_sender, loopback, unless_busy

NOBODY_PORT = 1
"""A port on which nothing listens: connections are refused at once."""


def join_crowd(daemon: Peer, count: int) -> list[str]:
    """Registers `count` fake peers over one connection; their ids."""
    ids = [hashlib.sha256(f"fake {number}".encode()).digest() for number in range(count)]
    with grpc.insecure_channel(daemon.address) as channel:
        join = channel.unary_unary(JOIN, pb.JoinRequest.SerializeToString, None)
        for peer_id in ids:
            request = pb.JoinRequest(sender=fake_sender(peer_id, NOBODY_PORT), dialled=loopback(daemon.port))
            called = partial(join, request, timeout=CALL_TIMEOUT_S)
            wait_for(partial(unless_busy, called), what="a place in the daemon's queue")
    return [peer_id.hex() for peer_id in ids]
