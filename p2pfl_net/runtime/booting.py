"""Through whom a daemon joins: the peers that are named, and with `--boot auto` those found on its LAN.

A peer that is named must answer; one that is found need not. Anybody can announce a peer that is not there,
and a proxy announces machines that sleep: neither may keep others from starting a network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pfl_state.errors import StateError

from p2pfl_net.config import ServeConfig
from p2pfl_net.core.events import Discovered, Start
from p2pfl_net.core.ids import Address, PeerId, is_loopback
from p2pfl_net.errors import DiscoveryFailed
from p2pfl_net.runtime.driver import Driver
from p2pfl_net.wire.announcement import (
    MAX_ADDRESSES,
    MAX_BOOT_ADDRESSES,
    Announcement,
    boot_order,
    can_be_told,
)

if TYPE_CHECKING:
    from p2pfl_net.runtime.discovery import Discovery


ADDRESSES_TO_TRY = 2
"""Of a peer found later, which the core goes on trying: the nearest, IPv4 and IPv6 where it has both."""


class Booting:
    """Posts the `Start` of one life, and the peers that are found later."""

    def __init__(
        self,
        config: ServeConfig,
        remembered: tuple[Address, ...],
        driver: Driver,
        note: Callable[[str, dict[str, object]], None],
    ) -> None:
        """`remembered`: peers that an earlier life knew; `note` writes an event, from any thread."""
        self._config = config
        self._remembered = remembered
        self._driver = driver
        self._note = note
        self._discovery: Discovery | None = None
        self._failure: DiscoveryFailed | None = None
        self._has_booted = False
        self.found: tuple[Address, ...] = ()
        """On the LAN, before this peer booted."""

    def open(self, me: PeerId, hosts: tuple[str, ...], port: int, advertise: Address | None) -> None:
        """Prepares what `--boot auto` needs. Raises `DiscoveryFailed` where no boot peer is named besides."""
        self._me = me
        self._port = port
        self._advertise = advertise
        if not self._config.discover:
            return
        try:
            self._discovery = self._discover(hosts)
        except DiscoveryFailed as error:
            if not self._config.boot:
                raise
            self._failure = error

    def start(self) -> None:
        """This peer listens: boots through the peers named, or begins to look for others."""
        if self._failure is not None:
            self._note("discovery_failed", {"reason": str(self._failure)})
        if self._discovery is None:
            self.gathered(())
        else:
            self._discovery.start(self)

    def move(self, hosts: tuple[str, ...]) -> None:
        """This peer is reached at `hosts` now: looks, and is found, on the interfaces that are there now."""
        if not self._config.discover:
            return
        self.close()
        try:
            self._discovery = self._discover(hosts)
        except DiscoveryFailed as error:
            self._try_note("discovery_failed", {"reason": str(error)})
            self.gathered(())
        else:
            self._discovery.start(self)

    def _discover(self, hosts: tuple[str, ...]) -> Discovery:
        from p2pfl_net.runtime.discovery import Discovery

        told = hosts_to_tell(self._config.host, hosts)
        addresses = tuple(Address(host, self._port) for host in told[:MAX_ADDRESSES])
        me = Announcement(self._me, (self._advertise,) if self._advertise else addresses)
        return Discovery(me, told)

    def close(self) -> None:
        discovery, self._discovery = self._discovery, None
        if discovery is not None:
            discovery.close()

    # what the discovery tells ----------------------------------------------------------------------

    def gathered(self, peers: tuple[Announcement, ...]) -> None:
        if self._has_booted:  # before a move
            return
        self._has_booted = True
        for peer in peers[:MAX_BOOT_ADDRESSES]:
            addresses = [str(address) for address in peer.addresses]
            self._try_note("discovered", {"peer": peer.peer_id, "addresses": addresses})
        self.found = boot_order(peers)
        others = dict.fromkeys((*self.found, *self._remembered))
        optional = tuple(address for address in others if address not in self._config.boot)
        self._driver.post(Start(tuple(self._config.boot), self._config.boot_timeout_s, optional))

    def discovered(self, peer: Announcement) -> None:
        """No event: that such a peer has been reached is one."""
        if all(view.record.peer_id != peer.peer_id for view in self._driver.peers.peers):
            self._driver.post(Discovered(peer.addresses[:ADDRESSES_TO_TRY]))

    def refused(self, reason: str) -> None:
        self._try_note("discovery_refused", {"reason": reason})

    def discovery_crashed(self, error: Exception) -> None:
        self._driver.post_failure(error)

    def _try_note(self, event: str, fields: dict[str, object]) -> None:
        """A full disk ends the daemon in the driver's thread, as everywhere."""
        try:
            self._note(event, fields)
        except StateError as error:
            self._driver.post_failure(error)


def hosts_to_tell(host: str, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Of `hosts`, on which a server on `host` listens, those at which the peers that we look for reach us: of
    this machine when it listens on loopback, else of the network. Raises `DiscoveryFailed`."""
    if is_loopback(host):
        return hosts
    told = tuple(literal for literal in hosts if not is_loopback(literal) and can_be_told(literal))
    if not told:
        raise DiscoveryFailed(
            "--boot auto: this machine has no address on a network: connect it, name a peer, as --boot "
            "HOST:PORT, or say --host 127.0.0.1 to find peers of this machine only"
        )
    return told
