"""The key of a private network: a file that its members have, made by one of them and carried by hand."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from p2pfl_net.errors import UsageError

KEY_BYTES = 32
MODE = 0o600
_KIND = "p2pfl-network-key-1"
_LINE = re.compile(rf"{_KIND} ([0-9a-f]{{{2 * KEY_BYTES}}})\s*")
_MAX_FILE_BYTES = 4096


def make(path: Path) -> None:
    """Writes a new key. Raises `UsageError` when the file is there, or cannot be made."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    except FileExistsError:
        raise UsageError(f"{path} exists: a key in use is not overwritten; name another file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file that can be made") from None
    with os.fdopen(handle, "w") as file:
        file.write(f"{_KIND} {secrets.token_hex(KEY_BYTES)}\n")


def read(path: Path) -> bytes:
    """The key in a file. Raises `UsageError` when there is none, or others than its owner may read it."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"--network-key {path}: {error.strerror}; get it from whoever made it") from None
    match = _LINE.fullmatch(data.decode("ascii", "replace"))
    if match is None:
        raise UsageError(f"--network-key {path}: not a network key; p2pfl-net keygen FILE makes one")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"--network-key {path}: others may read it; say chmod 600 {path}")
    return bytes.fromhex(match[1])
