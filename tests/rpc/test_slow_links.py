"""Networks that are slower than loopback."""

from __future__ import annotations

from tests.rpc.peers import Network, wait_complete
from tests.rpc.tcp_proxy import TcpProxy

ROUND_TRIP_S = 0.4
"""Four times a link across an ocean."""
JOINS = 5


def test_a_peer_joins_over_a_link_with_much_latency(network: Network) -> None:
    """On a busy machine it is not only the link that makes an attempt to connect slow, but not each time."""
    first = network.start()

    def connections_of_a_join() -> int:
        second = network.peer()
        with TcpProxy(first.port, delay_s=ROUND_TRIP_S / 2) as link:
            second.start("--boot", link.address)
            wait_complete([first, second])
            assert second.stop() == 0
            wait_complete([first])
            return link.connections

    # one for the certificate, one for the calls: none was given up for taking too long
    assert any(connections_of_a_join() == 2 for _ in range(JOINS))
