"""Networks that are slower than loopback."""

from __future__ import annotations

from tests.rpc.peers import Network, wait_complete
from tests.rpc.tcp_proxy import TcpProxy

ROUND_TRIP_S = 0.4
"""Four times a link across an ocean."""


def test_a_peer_joins_over_a_link_with_much_latency(network: Network) -> None:
    first = network.start()
    second = network.peer()
    with TcpProxy(first.port, delay_s=ROUND_TRIP_S / 2) as link:
        second.start("--boot", link.address)
        wait_complete([first, second])
        assert link.connections == 1  # none was given up for taking too long
