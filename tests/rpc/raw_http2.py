"""HTTP/2 as an attacker writes it: a caller that lets nobody answer (RFC 9113)."""

from __future__ import annotations

import socket
import ssl
from types import TracebackType
from typing import Self

from tests.processes import PATIENCE_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4
CANCEL = 8


def any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


class Unreading:
    """A connection whose calls are made in full, and whose answers find no room. A context manager."""

    def __init__(self, port: int, source_host: str) -> None:
        plain = socket.create_connection(("127.0.0.1", port), source_address=(source_host, 0))
        self._socket = any_certificate().wrap_socket(plain)
        self._last_stream = -1
        settings = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, path: str, message: bytes, *, reset: bool = False) -> None:
        """Begins a call, and says all that belongs to it. `reset`: and gives it up in the same breath."""
        self._last_stream += 2
        headers = _literals(
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "p2pfl"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        body = b"\0" + len(message).to_bytes(4, "big") + message
        frames = _frame(HEADERS, END_HEADERS, self._last_stream, headers)
        frames += _frame(DATA, END_STREAM, self._last_stream, body)
        if reset:
            frames += _frame(RST_STREAM, 0, self._last_stream, CANCEL.to_bytes(4, "big"))
        self._socket.sendall(frames)

    def wait_ended(self) -> int:
        """Waits until the other end has given up one of the calls; its number. Raises `TimeoutError`."""
        self._socket.settimeout(PATIENCE_S)
        while True:
            head = self._read(9)
            self._read(int.from_bytes(head[:3], "big"))
            if head[3] == RST_STREAM:
                return int.from_bytes(head[5:], "big")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ConnectionResetError("closed by the other end")
            data += piece
        return data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literals(*fields: tuple[str, str]) -> bytes:
    """Header fields without compression (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()
