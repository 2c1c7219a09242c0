"""Hundreds of peers that do not exist, as a hostile caller would register them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import grpc
from p2pfl_proto.v1 import membership_pb2 as pb

from tests.processes import wait_for
from tests.rpc.peers import Peer
from tests.rpc.scripted_peer import CALL_TIMEOUT_S, fake_sender, is_busy, loopback

NOBODY_PORT = 1
"""A port on which nothing listens: connections are refused at once."""


def _joins(join: Callable[..., bytes], request: pb.JoinRequest) -> bool:
    try:
        join(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        if not is_busy(error):
            raise
        return False
    return True


def join_crowd(daemon: Peer, count: int) -> list[str]:
    """Registers `count` fake peers over one connection; their ids."""
    ids = [hashlib.sha256(f"fake {number}".encode()).digest() for number in range(count)]
    with grpc.insecure_channel(daemon.address) as channel:
        join = channel.unary_unary("/p2pfl.v1.Membership/Join", pb.JoinRequest.SerializeToString, None)
        for peer_id in ids:
            request = pb.JoinRequest(sender=fake_sender(peer_id, NOBODY_PORT), dialled=loopback(daemon.port))
            wait_for(partial(_joins, join, request), what="a place in the daemon's queue")
    return [peer_id.hex() for peer_id in ids]
