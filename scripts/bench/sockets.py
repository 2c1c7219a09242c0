"""The yardsticks of a transfer: plain sockets that copy a file, as simply as Python can."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from p2pfl_net.rpc.keys import Identity

PIECE_BYTES = 1 << 20
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ends:
    """The TLS settings of both ends, 1.3 and a peer's kind of key: what the daemons negotiate too."""

    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def new(cls) -> Ends:
        identity = Identity.new()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(identity.key_pem() + identity.certificate)
            file.flush()
            server.load_cert_chain(file.name)
        client.load_verify_locations(cadata=identity.certificate.decode())
        client.check_hostname = False
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        return cls(server, client)


def copy_s(source: Path, target: Path, *, ends: Ends | None = None, hashed: bool = False) -> float:
    """Seconds for a socket from one process to another to copy a file, over TLS with `ends`.

    Counted from before the connection to the last byte written. The copy is removed.
    """
    listener = socket.create_server((LOOPBACK, 0))
    child = os.fork()
    if child == 0:
        _serve(listener, source, ends)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(PIECE_BYTES))
    started = time.perf_counter()
    with _connected(listener, ends) as connection, open(target, "wb") as file:
        while received := connection.recv_into(buffer):
            file.write(buffer[:received])
            if hashed:
                digest.update(buffer[:received])
    seconds = time.perf_counter() - started
    os.waitpid(child, 0)
    listener.close()
    assert target.stat().st_size == source.stat().st_size, "the socket lost bytes"
    target.unlink()
    return seconds


def _serve(listener: socket.socket, source: Path, ends: Ends | None) -> None:
    """The child's whole life."""
    code = 1
    try:
        plain, _ = listener.accept()
        connection = plain if ends is None else ends.server.wrap_socket(plain, server_side=True)
        with connection, open(source, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                connection.sendall(piece)
        code = 0
    finally:
        os._exit(code)


def _connected(listener: socket.socket, ends: Ends | None) -> socket.socket:
    plain = socket.create_connection(listener.getsockname())
    if ends is None:
        return plain
    return ends.client.wrap_socket(plain)
