"""Names of peers and where they are reached."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

PeerId = NewType("PeerId", str)
"""SHA-256 of a peer's public key (SPKI), 64 lower-case hex digits."""

TaskDigest = NewType("TaskDigest", str)
"""SHA-256 of a task's descriptor, 64 lower-case hex digits."""

_PEER_ID = re.compile(r"[0-9a-f]{64}")

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?"
)

_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
MAX_TAGS = 8

_MAX_LITERAL = 64
"""No IP literal is longer, a zone included."""
_CACHED_HOSTS = 32768
"""Each message names the same hosts again; parsing them was a third of the core's time. Above `max_peers`."""


def is_peer_id(value: object) -> bool:
    """Whether this is the id of a peer."""
    return isinstance(value, str) and _PEER_ID.fullmatch(value) is not None


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


@lru_cache(maxsize=_CACHED_HOSTS)
def is_loopback(host: str) -> bool:
    """Whether `host` means this machine only."""
    if host.startswith("127.") or host in ("localhost", "::1"):
        return host in ("localhost", "::1") or parse_ip(host) is not None
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


@lru_cache(maxsize=_CACHED_HOSTS)
def source_of(host: str) -> str:
    """What one party easily has many of counts as one: an IPv4 address, or a network of 2^64 IPv6 ones."""
    literal = parse_ip(host)
    if literal is None or ":" not in literal or is_loopback(literal):
        return literal or host
    return str(ipaddress.ip_network((literal.partition("%")[0], 64), strict=False))


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


def parse_tags(texts: Iterable[str]) -> tuple[str, ...]:
    """Tags in their normal order. Raises `ValueError` with one line that says what is wrong."""
    tags = tuple(sorted(set(texts)))
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise ValueError(
                f"tag {tag[:40]!r}: a tag has up to 32 lower-case letters, digits, '.', '_' or '-', such as "
                "mnist"
            )
    if len(tags) > MAX_TAGS:
        raise ValueError(f"{len(tags)} tags: a peer has at most {MAX_TAGS}")
    return tags
