"""What a peer says of itself on its LAN, as a DNS-SD service (RFC 6763), and the check of what others say."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

from p2pfl_net.core.ids import Address, PeerId, is_loopback, is_unicast, parse_ip
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.membership import PROTOCOL_HIGHEST, PROTOCOL_LOWEST

SERVICE = "_p2pfl._tcp.local."
MAX_ADDRESSES = 8
"""Of one peer, as in its record."""
MAX_BOOT_ADDRESSES = 16
"""That a peer boots through: one answer is enough."""
_MAX_LITERALS = 64
"""That are looked at: no machine has so many, and a liar may name any number."""
_LABEL_DIGITS = 16
"""Of the peer id in the name of a service, which is too short for all 64; the rest is checked with it."""

_NAME = re.compile(rf"[0-9a-f]{{{_LABEL_DIGITS}}}\.{re.escape(SERVICE)}")
_PEER_ID = re.compile(r"[0-9a-f]{64}")
_PROTOCOL = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Announcement:
    """A peer and where it listens."""

    peer_id: PeerId
    addresses: tuple[Address, ...]
    """IP literals, all with the same port; IPv4 first, which more networks carry."""

    @property
    def label(self) -> str:
        return self.peer_id[:_LABEL_DIGITS]

    @property
    def name(self) -> str:
        """Of the service. Nobody else has it, so it is never asked for whether it is taken."""
        return f"{self.label}.{SERVICE}"

    @property
    def properties(self) -> dict[str, str]:
        """The content of the TXT record."""
        return {"id": self.peer_id, "protocol": f"{PROTOCOL_LOWEST}-{PROTOCOL_HIGHEST}"}


def is_name(name: str) -> bool:
    """Whether a peer's service may have this name: anything else of this type is not looked up."""
    return _NAME.fullmatch(name) is not None


def parse_announcement(
    name: str,
    properties: Mapping[bytes, bytes | None],
    port: int | None,
    literals: Iterable[str],
    *,
    over_loopback: bool,
) -> Announcement:
    """What a service says. Raises `MalformedMessage`.

    `over_loopback`: whether we look for peers of this machine only. A loopback address that came over a
    network would be one of ours, and an address with a zone is nothing that others can be told.
    """
    peer_id = _text(properties, b"id")
    if not _PEER_ID.fullmatch(peer_id) or not name.startswith(peer_id[:_LABEL_DIGITS]):
        raise MalformedMessage("no peer id, or not that of the name")
    spoken = _PROTOCOL.fullmatch(_text(properties, b"protocol"))
    if spoken is None:
        raise MalformedMessage(f"peer {peer_id[:_LABEL_DIGITS]} gives no protocol version")
    lowest, highest = (int(number) for number in spoken.groups())
    if lowest > PROTOCOL_HIGHEST or highest < PROTOCOL_LOWEST:
        raise MalformedMessage(
            f"peer {peer_id[:_LABEL_DIGITS]} speaks protocol {lowest} to {highest}, this one "
            f"{PROTOCOL_LOWEST} to {PROTOCOL_HIGHEST}: install the same version of p2pfl on both"
        )
    if port is None or not 1 <= port <= 65535:
        raise MalformedMessage(f"peer {peer_id[:_LABEL_DIGITS]} gives no port")
    hosts = {
        literal
        for text in islice(literals, _MAX_LITERALS)
        if (literal := parse_ip(text)) and can_be_told(literal)
    }
    usable = sorted((":" in host, host) for host in hosts if is_loopback(host) == over_loopback)
    if not usable:
        raise MalformedMessage(f"peer {peer_id[:_LABEL_DIGITS]} gives no address that can be dialled")
    return Announcement(PeerId(peer_id), tuple(Address(host, port) for _, host in usable))


def _text(properties: Mapping[bytes, bytes | None], key: bytes) -> str:
    return (properties.get(key) or b"").decode("ascii", errors="replace")


def can_be_told(literal: str) -> bool:
    """Whether an address means the same machine to another one."""
    address = ipaddress.ip_address(literal)
    needs_zone = address.version == 6 and (address.is_link_local or "%" in literal)
    return is_unicast(literal) and not needs_zone


def nearest_first(peer: Announcement, networks: Sequence[Network]) -> Announcement:
    """With the addresses on our own networks first, and no more than `MAX_ADDRESSES`.

    A machine also announces its addresses in VPNs and container networks; who hears it is on its LAN.
    """

    def is_far(address: Address) -> bool:
        literal = ipaddress.ip_address(address.host)
        return not any(literal.version == network.version and literal in network for network in networks)

    return Announcement(peer.peer_id, tuple(sorted(peer.addresses, key=is_far))[:MAX_ADDRESSES])


def boot_order(peers: Iterable[Announcement]) -> tuple[Address, ...]:
    """Whom to ask in turn: the best address of each, then the second of each."""
    turns = zip_longest(*(peer.addresses for peer in peers))
    mixed = dict.fromkeys(address for turn in turns for address in turn if address is not None)
    return tuple(mixed)[:MAX_BOOT_ADDRESSES]
