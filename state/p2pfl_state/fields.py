"""Reads validated fields out of a JSON object that somebody else wrote.

Every field has a type and a bound; what is wrong becomes one `MalformedFile` line that names the
file and the field. Fields that nobody asked for are kept in `extra`, so that a newer program's
additions survive a rewrite by an older one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from p2pfl_state.errors import MalformedFile, UnknownContract
from p2pfl_state.layout import CONTRACT_VERSION

T = TypeVar("T")

DIGEST = re.compile(r"[0-9a-f]{64}")
"""A SHA-256 in lower-case hex: peer ids, task, weights and file digests."""
INSTANCE = re.compile(r"[0-9a-f]{32}")
"""A random 128-bit id of one life of a process."""

MAX_COUNT = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""
MAX_NESTING = 64
"""How deep a value may be nested: far above any that we write, far below what exhausts a stack."""


def parse_object(data: bytes, what: str, *, nesting: int = MAX_NESTING) -> dict[str, Any]:
    """The JSON object in `data`, which must be UTF-8. Raises `MalformedFile` for anything else.

    What Python reads but cannot write again is refused too (NaN, infinity, half a surrogate pair,
    nesting bombs), so that a value from the network can always be passed on, digested and printed.
    """
    try:
        text = data.decode()
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if not isinstance(value, dict):
            raise MalformedFile(f"{what} is not a JSON object")
        if "\\u" in text or text.count("[") + text.count("{") > nesting:
            _check_writable(value, nesting)
    except (ValueError, RecursionError):
        raise MalformedFile(f"{what} is not JSON") from None
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that no float can hold")
    return number


def _check_writable(value: Any, nesting: int) -> None:
    """Raises `ValueError` for values nested deeper than `nesting` and for texts that are not Unicode."""
    level = [value]
    for _ in range(nesting):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                item.encode()
        if not below:
            return
        level = below
    raise ValueError("nested too deep")


class Fields:
    """The fields of one JSON object, taken one by one; what is left over is `extra`."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise MalformedFile(f"{what} is not a JSON object")
        self._left: dict[str, Any] = dict(value)
        self._what = what

    def _wrong(self, name: str, wanted: str) -> MalformedFile:
        return MalformedFile(f"{self._what}: field {name!r} must be {wanted}")

    def contract(self) -> None:
        """Checks the contract version. Raises `UnknownContract` for one that we do not speak."""
        version = self.integer("contract", low=0)
        if version != CONTRACT_VERSION:
            raise UnknownContract(
                f"{self._what} has contract version {version}, this program speaks {CONTRACT_VERSION}: "
                "use the same version of p2pfl on both sides"
            )

    def text(self, name: str, *, limit: int = 1024, pattern: re.Pattern[str] | None = None) -> str:
        value = self._left.pop(name, None)
        if not isinstance(value, str) or len(value) > limit:
            raise self._wrong(name, f"a text of at most {limit} characters")
        if pattern is not None and not pattern.fullmatch(value):
            raise self._wrong(name, f"a text like {pattern.pattern}")
        return value

    def digest(self, name: str) -> str:
        return self.text(name, limit=64, pattern=DIGEST)

    def digest_or_none(self, name: str) -> str | None:
        if self._left.get(name) is None:
            self._left.pop(name, None)
            return None
        return self.digest(name)

    def optional(self, name: str, read: Callable[[Any], T]) -> T | None:
        """What `read` makes of a field that may be missing, or null."""
        value = self._left.pop(name, None)
        return None if value is None else read(value)

    def integer(self, name: str, *, low: int = 0, high: int = MAX_COUNT) -> int:
        value = self._left.pop(name, None)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}")
        return value

    def integer_or_none(self, name: str) -> int | None:
        """A count that may be missing, or null."""
        if self._left.get(name) is None:
            self._left.pop(name, None)
            return None
        return self.integer(name)

    def number(self, name: str, *, low: float = 0.0, high: float = 1e15) -> float:
        value = self._left.pop(name, None)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, "a number")
        if not low <= value <= high:  # false for NaN too, and true only for what fits a float
            raise self._wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._left.pop(name, None)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def items(self, name: str, *, limit: int) -> list[Any]:
        value = self._left.pop(name, None)
        if not isinstance(value, list) or len(value) > limit:
            raise self._wrong(name, f"a list of at most {limit}")
        return value

    def mapping(self, name: str, *, limit: int = 256) -> dict[str, Any]:
        value = self._left.pop(name, None)
        if not isinstance(value, dict) or len(value) > limit:
            raise self._wrong(name, f"an object of at most {limit} fields")
        return value

    @property
    def extra(self) -> Mapping[str, Any]:
        """The fields that were not asked for."""
        return self._left
