"""The addresses on which this machine can be reached, and whether they are still the same."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable

import ifaddr

from p2pfl_net.core.reachability import LOOPBACK

LOOK_S = 5.0
"""Between two looks at the interfaces, each below a millisecond of processor. A guess: a peer that moved goes
on calling others each second, and so refutes what they suspect; only who fetches from it must wait."""


def listening_hosts(host: str) -> tuple[str, ...]:
    """The addresses at which a server on `host` can be reached: of all interfaces for a wildcard."""
    wildcard = ipaddress.ip_address(host)
    if not wildcard.is_unspecified:
        return (host,)
    hosts = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])
            # Of IPv6, link-local addresses mean nothing without the name of an interface.
            zoned = address.is_link_local and address.version == 6
            if not zoned and address.version <= wildcard.version:
                hosts.append(address)
    hosts = hosts or [ipaddress.ip_address(LOOPBACK)]  # no interface is up
    return tuple(str(address) for address in sorted(dict.fromkeys(hosts), key=lambda a: a.version))


class InterfaceWatch:
    """Tells when the addresses on which a server listens are others. Looks in a thread of its own."""

    def __init__(
        self, host: str, hosts: tuple[str, ...], on_change: Callable[[tuple[str, ...]], None]
    ) -> None:
        """`hosts`: those of `host` that are known."""
        self._host = host
        self._hosts = hosts
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interfaces", daemon=True)

    def start(self) -> None:
        """A server on one address needs no watch: that address is all there is."""
        if ipaddress.ip_address(self._host).is_unspecified:
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                hosts = listening_hosts(self._host)
            except (
                OSError
            ):  # the system has no answer now, as without a free file descriptor: the next look has
                continue
            if set(hosts) != set(self._hosts):  # in another order they are the same
                self._hosts = hosts
                self._on_change(hosts)
