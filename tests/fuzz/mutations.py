"""Valid bytes, damaged: bytes of them, whole fields of a protobuf message, values of a JSON text.

With a `random.Random` and not as strategies of Hypothesis, so that both fuzzers use the same.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz.target import Target

DAMAGES = (1, 1, 2, 4)
"""How many: with each there is less hope that the rest is reached."""

_NUMBERS = (-1, 0, 1, 2, 255, 65_535, 65_536, 2**31 - 1, 2**53, 2**63, 2**64 - 1)
_SIZES = (0, 1, 31, 32, 33, 200)
_TEXTS = ("", "::", "0.0.0.0", "fe80::1%eth0", "ü\n\x1b[2J", "5a" * 32, "lab", "a" * 2000)
_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    10**400,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "\ud800",
    [],
    {},
    [[]],
)


def damaged(target: Target, data: bytes, random: Random) -> bytes:
    """Something near `data`, in a way that suits the target."""
    ways: list[Callable[[bytes, Random], bytes]] = [_damage_bytes]
    kind = target.message
    if kind is not None:
        ways.append(lambda data, random: _damage_message(kind, data, random))
    found = _json_in(data)
    if found is not None:
        ways.append(lambda _, random: _damage_json(found, random))
    return random.choice(ways)(data, random)


def _damage_bytes(data: bytes, random: Random) -> bytes:
    """Some bytes replaced, removed or put in, or the end cut off."""
    left = bytearray(data)
    for _ in range(random.choice(DAMAGES)):
        start = random.randint(0, len(left))
        if start < len(left) and random.random() < 0.5:  # the lengths in a binary format stay right
            left[start] = random.choice((random.randrange(256), left[start] ^ 1 << random.randrange(8)))
            continue
        end = random.choice((start, start + 1, start + 1, start + 4, len(left)))
        left[start:end] = random.randbytes(random.randint(0, 4))
    return bytes(left)


# protobuf ------------------------------------------------------------------------------------------

_FIELD_VALUES: dict[int, Callable[[Random], Any]] = {
    FieldDescriptor.TYPE_BOOL: lambda random: random.random() < 0.5,
    FieldDescriptor.TYPE_ENUM: lambda random: random.randint(-1, 6),
    FieldDescriptor.TYPE_UINT32: lambda random: random.choice(_NUMBERS) % 2**32,
    FieldDescriptor.TYPE_UINT64: lambda random: random.choice(_NUMBERS) % 2**64,
    FieldDescriptor.TYPE_STRING: lambda random: random.choice(_TEXTS),
    FieldDescriptor.TYPE_BYTES: lambda random: random.randbytes(random.choice(_SIZES)),
}
"""By protobuf's types, as many as the protocol uses."""


def _damage_message(kind: type[Message], data: bytes, random: Random) -> bytes:
    """Some fields with other values, gone, or there many times."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return _damage_bytes(data, random)
    for _ in range(random.choice(DAMAGES)):
        _damage_field(message, random)
    return message.SerializeToString()


def _damage_field(message: Message, random: Random) -> None:
    field: Any = random.choice(list(message.DESCRIPTOR.fields))
    present = getattr(message, field.name)
    if field.is_repeated and field.message_type is None:
        present.append(_FIELD_VALUES[field.type](random))
    elif field.is_repeated:
        if present and random.random() < 0.5:
            _damage_field(random.choice(present), random)
        else:
            one = present[0] if present else present.add()
            present.extend([one] * random.choice((1, 8, 130)))
    elif random.random() < 0.25:
        message.ClearField(field.name)
    elif field.message_type is not None:
        _damage_field(present, random)
    else:
        setattr(message, field.name, _FIELD_VALUES[field.type](random))


# JSON ----------------------------------------------------------------------------------------------

_Text = tuple[Callable[[bytes], bytes], Any, bytes]
"""What stands before a JSON text (of those bytes), its value, what stands behind it."""


def _json_in(data: bytes) -> _Text | None:
    """The JSON in these bytes: all of them, or a safetensors file's header."""
    length = int.from_bytes(data[:8], "little")
    for before, text, after in (
        (lambda _: b"", data, b""),
        (_length_of, data[8 : 8 + length], data[8 + length :]),
    ):
        try:
            return before, json.loads(text), after
        except (ValueError, RecursionError):
            continue
    return None


def _length_of(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little")


def _damage_json(found: _Text, random: Random) -> bytes:
    """Some values replaced, gone or new, also such as Python reads though they are no JSON."""
    before, value, after = found
    for _ in range(random.choice(DAMAGES)):
        value = _damage_value(value, random)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    return before(text) + text + after


def _damage_value(value: Any, random: Random) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        action = random.random()
        if action < 0.1:
            del value[key]
        elif action < 0.2:
            value[random.choice(_TEXTS)] = _any_value(random)
        else:
            value[key] = _damage_value(value[key], random)
        return value
    if isinstance(value, list) and value and random.random() < 0.75:
        at = random.randrange(len(value))
        value[at] = _damage_value(value[at], random)
        return value
    if isinstance(value, list | dict) and value and random.random() < 0.5:
        return [copy.deepcopy(value) for _ in range(random.choice((1, 2, 5)))]
    return _any_value(random)


def _any_value(random: Random) -> Any:
    value = copy.deepcopy(random.choice((*_ODD_VALUES, *_TEXTS, *_NUMBERS)))  # those are not to be damaged
    depth = random.choice((0, 0, 0, 0, 1, 2, 70, 200))
    for _ in range(depth):
        value = [value]
    return value
