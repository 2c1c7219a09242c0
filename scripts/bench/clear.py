"""`p2pfl-net` without TLS and tokens, for comparison only: the product has no such mode.

Connections are in the clear, and a caller says its id where it would prove it.

Usage: BOOT_ID=<id of the boot peer> python -m scripts.bench.clear serve ...
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import grpc

from p2pfl_net.__main__ import main
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.rpc.connections import Connection, Credentials
from p2pfl_net.rpc.gate import Gate
from p2pfl_net.rpc.server import Server

ID_HEADER = "bench-id"
BOOT_ID = "BOOT_ID"
"""Environment variable: without certificates, a boot peer shows nobody who it is."""


def _certificate(
    _: Credentials, address: Address, wanted: PeerId | None, timeout_s: float
) -> tuple[PeerId, bytes]:
    return wanted or PeerId(os.environ[BOOT_ID]), b""


def _channel(target: str, credentials: object, options: Any) -> grpc.Channel:
    return grpc.insecure_channel(target, options)


def _token(connection: Connection, timeout_s: float) -> tuple[tuple[str, str], ...]:
    return ((ID_HEADER, connection._credentials.identity.peer_id),)


def _caller(_: Gate, metadata: Iterable[tuple[str, str | bytes]]) -> PeerId:
    return PeerId(str(dict(metadata)[ID_HEADER]))


def _bind(server: Server, host: str, port: int) -> int:
    return server._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def undress() -> None:
    """Replaces what makes connections secure, in this process."""
    replacements: tuple[tuple[Any, str, Any], ...] = (
        (grpc, "ssl_channel_credentials", lambda certificate: None),
        (grpc, "secure_channel", _channel),
        (Credentials, "certificate", _certificate),
        (Connection, "token", _token),
        (Gate, "caller", _caller),
        (Server, "bind", _bind),
    )
    for owner, name, replacement in replacements:
        assert hasattr(owner, name), f"{owner} has no {name} any more"
        setattr(owner, name, replacement)


if __name__ == "__main__":
    undress()
    main()
