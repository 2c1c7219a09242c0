"""What a decoder may do with what it does not like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import DecodeError, Message

from p2pfl_net.errors import MalformedMessage

Decoder = tuple[Callable[[Any], object], type[Message]]
"""A decoder, and the message that it takes."""


def check_message(decoders: Sequence[Decoder], message: Message) -> None:
    """The one decoder of this message takes it, whatever its fields hold, or says that it is malformed."""
    (decode,) = (decode for decode, kind in decoders if isinstance(message, kind))
    with taken_or_malformed():
        decode(message)


def check_bytes(decoder: Decoder, data: bytes) -> None:
    """The same of bytes from anywhere."""
    decode, kind = decoder
    with taken_or_malformed():
        decode(kind.FromString(data))


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
