"""What `p2pfl-net serve` was asked to do: checked once, frozen, passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from p2pfl_net import networkkey
from p2pfl_net.core import ids
from p2pfl_net.core.ids import Address, PeerId, is_peer_id, is_unicast, parse_address, parse_ip
from p2pfl_net.core.params import Params
from p2pfl_net.errors import UsageError
from p2pfl_net.rpc.limits import Limits

AUTO = "auto"
"""In place of a boot address: whoever is found on the LAN."""


@dataclass(frozen=True)
class ServeConfig:
    """All that a daemon needs to know at its start."""

    state: Path
    host: str
    """IP literal to listen on; `::` is every interface, IPv4 and IPv6."""
    port: int
    """0: any free one."""
    boot: Mapping[Address, PeerId | None] = field(default_factory=dict)
    """Whom to join through, and who must live there; None: whoever did at the first time."""
    discover: bool = False
    """Find more boot peers on the LAN."""
    boot_timeout_s: float = 60.0
    advertise: Address | None = None
    tags: tuple[str, ...] = ()
    """What this peer trains for, in its operator's words."""
    network_key: bytes | None = field(default=None, repr=False)
    """Of a private network; None: it is open."""
    approved_only: bool = False
    """Models and tasks go only to peers that a person approved, and come only from them."""
    max_model_bytes: int = 1 << 40
    drain_s: float = 5.0
    limits: Limits = field(default_factory=Limits)
    """What it bears of others."""
    params: Params = field(default_factory=Params)


def serve_config(
    *,
    state: Path | None,
    port: str,
    host: str,
    boot: list[str],
    boot_timeout_s: float,
    advertise: str | None,
    tags: list[str],
    network_key: Path | None,
    trust: str,
    max_model_bytes: int,
    drain_s: float,
    limits: Limits,
) -> ServeConfig:
    """Checks what the command line says. Raises `UsageError`."""
    number = parse_port(port)
    if state is None and number == 0:
        raise UsageError("--port 0 needs --state DIR: the directory cannot be named after the port")
    return ServeConfig(
        state=state or Path("state") / str(number),
        host=parse_host(host),
        port=number,
        boot=parse_boot(boot),
        discover=asks_for_discovery(boot),
        boot_timeout_s=boot_timeout_s,
        advertise=parse_advertise(advertise),
        tags=parse_tags("--tags", tags),
        network_key=None if network_key is None else networkkey.read(network_key),
        approved_only=trust == "approve",
        max_model_bytes=max_model_bytes,
        drain_s=drain_s,
        limits=limits,
    )


def parse_port(text: str) -> int:
    """A port, 0 for any. Raises `UsageError`."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise UsageError(f"--port {text!r}: a port is a whole number from 0 (choose one) to 65535")
    return int(text)


def parse_host(text: str) -> str:
    """The interface to listen on: an IP literal or `localhost`. Raises `UsageError`."""
    if text == "localhost":
        return "127.0.0.1"
    literal = parse_ip(text.strip("[]"))
    if literal is None:
        raise UsageError(f"--host {text!r}: give an interface's IP address, such as 127.0.0.1, or :: for all")
    return literal


def parse_boot(texts: list[str]) -> dict[Address, PeerId | None]:
    """Boot peers, each `[PEER-ID@]HOST:PORT`, several also separated by commas; `auto` is passed over.
    Raises `UsageError`."""
    named = (text for text in _words(texts) if text not in ("", AUTO))
    return dict(_peer("--boot ", text) for text in named)


def asks_for_discovery(texts: list[str]) -> bool:
    """Whether `auto` is among the boot addresses."""
    return AUTO in _words(texts)


def _words(texts: list[str]) -> list[str]:
    return [text.strip() for text in ",".join(texts).split(",")]


def parse_advertise(text: str | None) -> Address | None:
    """The address to announce instead of a learned one. Raises `UsageError`."""
    if text is None:
        return None
    address = _address("--advertise", text)
    literal = parse_ip(address.host)
    if literal is not None and not is_unicast(literal):
        raise UsageError(f"--advertise {text!r}: give an address at which other peers reach this one")
    return address


def parse_tags(option: str, texts: list[str]) -> tuple[str, ...]:
    """Tags, several also separated by commas. Raises `UsageError`."""
    try:
        return ids.parse_tags(word for word in _words(texts) if word)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _address(option: str, text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from None


def parse_target(text: str) -> tuple[Address, PeerId | None]:
    """A peer to fetch from, `[PEER-ID@]HOST:PORT`. Raises `UsageError`."""
    return _peer("", text)


def _peer(option: str, text: str) -> tuple[Address, PeerId | None]:
    peer_id, at, address = text.rpartition("@")
    if at and not is_peer_id(peer_id):
        raise UsageError(
            f"{option}{text!r}: before the @ stands a peer id, 64 lower-case hex digits, as `p2pfl-net "
            "status` shows it"
        )
    try:
        return parse_address(address), PeerId(peer_id) if at else None
    except ValueError as error:
        raise UsageError(f"{option}{error}") from None
