"""Names of peers and where they are reached."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

PeerId = NewType("PeerId", str)
"""SHA-256 of a peer's public key (SPKI), 64 lower-case hex digits."""

TaskDigest = NewType("TaskDigest", str)
"""SHA-256 of a task's descriptor, 64 lower-case hex digits."""

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?"
)

_MAX_LITERAL = 64
"""No IP literal is longer, a zone included."""
_CACHED_HOSTS = 4096
"""Each message names the same few hosts again; parsing them was a third of the core's time."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A host (IP literal, or a name where an operator gave one) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host` means this machine only."""
    if host == "localhost":
        return True
    literal = parse_ip(host)
    return literal is not None and (literal == "::1" or literal.startswith("127."))


def parse_ip(host: str) -> str | None:
    """The normal form of an IP literal, IPv4 in IPv6 unwrapped; None for anything else."""
    return _parse_ip(host) if len(host) <= _MAX_LITERAL else None


@lru_cache(maxsize=_CACHED_HOSTS)
def _parse_ip(host: str) -> str | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def is_unicast(literal: str) -> bool:
    """Whether an IP literal names one machine: dialling 0.0.0.0 reaches the dialling machine itself."""
    address = ipaddress.ip_address(literal)
    return not (address.is_unspecified or address.is_multicast)


def parse_address(text: str) -> Address:
    """`host:port` or `[ipv6]:port`. Raises `ValueError` with one line that says what is wrong."""
    host, separator, port_text = text.rpartition(":")
    if not separator or not port_text.isascii() or not port_text.isdigit():
        raise ValueError(f"{text!r} is not HOST:PORT, such as lab1:8000")
    port = int(port_text)
    if not 1 <= port <= 65535:
        raise ValueError(f"{text!r}: the port must be from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if parse_ip(host) is None:
            raise ValueError(f"{text!r}: {host!r} is not an IPv6 address")
    literal = parse_ip(host)
    if literal is not None:
        return Address(literal, port)
    if not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{text!r}: {host!r} is not a host name")
    return Address(host.lower(), port)
