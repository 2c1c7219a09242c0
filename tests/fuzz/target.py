"""What is fuzzed: a decoder, what it may raise, and bytes that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

MAX_LINE = 500
"""Characters of a refusal: a person reads it, or a log keeps it."""


@dataclass(frozen=True, repr=False)
class Target:
    """One decoder of bytes that somebody else wrote."""

    name: str
    decode: Callable[[bytes], Any]
    """The value in the bytes."""
    refuses: tuple[type[Exception], ...]
    """What it may raise instead, and nothing else."""
    seeds: tuple[bytes, ...]
    """Bytes that it takes."""
    encode: Callable[[Any], bytes] | None = None
    """Bytes of a value, from which the same value comes; None: nothing writes it."""
    message: type[Message] | None = None
    """Of protobuf's, if the bytes are one: then whole fields can be altered."""

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def check(self, data: bytes) -> bool:
        """Whether it takes these bytes. Raises `AssertionError`, or whatever the decoder should not."""
        try:
            value = self.decode(data)
        except self.refuses as error:
            _check_line(error)
            return False
        if self.encode is not None:
            again = self.decode(self.encode(value))
            assert again == value, f"{self.name}: {value!r} came back as {again!r}"
        return True


def _check_line(error: Exception) -> None:
    """What is wrong, in one line of bounded length."""
    text = str(error)
    assert text, "a refusal without a reason"
    assert text.isprintable(), f"a refusal that is not a line: {text!r}"
    assert len(text) <= MAX_LINE, f"a refusal of {len(text)} characters: {text[:200]!r}"
