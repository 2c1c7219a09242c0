"""Hundreds of peers that do not exist, as a hostile caller would register them."""

from __future__ import annotations

from functools import partial

from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.rpc.connections import Connection, Credentials
from p2pfl_net.rpc.keys import Identity
from tests.processes import wait_for
from tests.rpc.callers import CALL_TIMEOUT_S, tls_channel
from tests.rpc.peers import Peer
from tests.rpc.scripted_peer import JOIN, fake_sender, loopback, unless_busy

NOBODY_PORT = 1
"""A port on which nothing listens: connections are refused at once."""


def join_crowd(daemon: Peer, count: int) -> list[str]:
    """Registers `count` fake peers over one connection; their ids."""
    ids: list[str] = []
    with tls_channel(daemon.port) as (channel, peer_id):
        join = channel.unary_unary(JOIN, pb.JoinRequest.SerializeToString, None)
        for _ in range(count):
            fake = Identity.new()
            ids.append(fake.peer_id)
            token = Connection(channel, peer_id, Credentials(fake)).token(CALL_TIMEOUT_S)
            sender = fake_sender(fake, NOBODY_PORT)
            request = pb.JoinRequest(sender=sender, dialled=loopback(daemon.port))
            called = partial(join, request, timeout=CALL_TIMEOUT_S, metadata=token)
            wait_for(partial(unless_busy, called), what="a place in the daemon's queue")
    return ids
