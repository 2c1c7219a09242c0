"""The standard gRPC services: health and reflection."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from p2pfl_net.errors import PeerFailed
from tests.processes import wait_for
from tests.rpc.callers import tls_channel
from tests.rpc.peers import Network

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", "p2pfl.v1.Membership", "p2pfl.v1.Models")


def health(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20, wait_for_ready=True)
    return int(reply.status)


def test_a_peer_serves_once_it_has_joined(network: Network) -> None:
    peer = network.peer()
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:
        peer.launch("--boot", f"127.0.0.1:{silent.getsockname()[1]}")

        def channel_once_it_listens() -> grpc.Channel | None:
            try:
                return stack.enter_context(tls_channel(peer.port))[0]
            except PeerFailed:
                return None

        channel = wait_for(channel_once_it_listens, what="a daemon that listens")
        assert [health(channel, service) for service in SERVICES] == [NOT_SERVING] * 3
        assert peer.stop() == 0
    peer.start()
    with tls_channel(peer.port) as (channel, _):
        wait_for(lambda: [health(channel, service) for service in SERVICES] == [SERVING] * 3, what="SERVING")


def test_the_protocol_can_be_explored(network: Network) -> None:
    peer = network.start()
    with tls_channel(peer.port) as (channel, _):
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert {
            "p2pfl.v1.Membership",
            "p2pfl.v1.Models",
            "p2pfl.v1.Trust",
            "grpc.health.v1.Health",
        } <= services
        described = database.FindFileContainingSymbol("p2pfl.v1.Models")
        assert [method.name for method in described.service[0].method] == ["FetchModel", "FetchTask"]
