"""What a decoder may do with what it does not like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError

from p2pfl_net.errors import MalformedMessage


@contextmanager
def taken_or_malformed() -> Iterator[None]:
    """Lets the errors of a well-behaved decoder pass, one printable and short line each."""
    try:
        yield
    except DecodeError:  # protobuf's own, raised by gRPC before our decoders see anything
        return
    except MalformedMessage as error:
        check_line(str(error))


def check_line(text: str) -> None:
    assert text.isprintable()
    assert 0 < len(text) < 300
