"""`p2pfl-net key`: a peer's key shown, copied to a safe place and back, and replaced."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pfl_state import atomic, home, lock, signed
from p2pfl_state.errors import DirectoryUnusable
from p2pfl_state.layout import StateDir

from p2pfl_net.errors import KeyUnusable, UsageError
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.rpc.rotations import former_ids
from p2pfl_net.runtime import identity, rotations

MODE = 0o600
MAX_PASSPHRASE_BYTES = 1023
"""What OpenSSL takes."""

Say = Callable[[str], None]


def run(options: argparse.Namespace, say: Say) -> None:
    """Carries out what the command line says. Raises `NetError` and `StateError`."""
    state = StateDir(options.state)
    match options.action:
        case "show":
            _show(rotations.load(state), as_json=options.json)
        case "export":
            own = rotations.load(state)
            export(own, options.file, _passphrase(options.passphrase_file))
            say(f"{options.file} made: whoever has it is peer {own.peer_id[:16]}: keep it in a safe place")
            if own.former:
                say(f"{state.rotations} says who this peer was before: keep a copy of it beside the key")
        case "import":
            own = import_key(state, options.file, _passphrase(options.passphrase_file))
            say(f"{state.root} is peer {own.peer_id[:16]} now: run it in one place only")
            say("its versions go on above all that this key may have signed elsewhere, so the numbers jump")
        case _:
            _rotate(state, say, as_json=options.json)


def _show(own: Identity, *, as_json: bool) -> None:
    former = former_ids(own.former, own.peer_id)
    if as_json:
        value = {"peer_id": own.peer_id, "public_key": own.public_pem(), "former_ids": list(former)}
        sys.stdout.write(json.dumps(value) + "\n")
        return
    sys.stdout.write(f"peer_id      {own.peer_id}\n")
    for peer_id in former:
        sys.stdout.write(f"former_id    {peer_id}\n")
    sys.stdout.write(own.public_pem())


def export(own: Identity, path: Path, passphrase: bytes | None) -> None:
    """Writes the secret key to a new file. Raises `UsageError` when it is there, or cannot be made."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    except FileExistsError:
        raise UsageError(f"{path} exists: a key is not overwritten; name another file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file that can be made") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(own.key_pem(passphrase))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # half a key would be taken for a copy of it
        raise UsageError(f"{path}: {error.strerror}; name a file that can be made") from None


def import_key(state: StateDir, path: Path, passphrase: bytes | None) -> Identity:
    """Makes the key in a file that of a directory which has none, or has this one.

    Raises `UsageError`, `KeyUnusable`, `StateError`.
    """
    own = _read(path, passphrase)
    home.prepare(state)
    with _stopped(state):
        try:
            there = identity.load(state.key)
        except KeyUnusable as error:
            raise KeyUnusable(f"{error}; once it is deleted, this import puts {path} in its place") from None
        if there is not None and there.peer_id != own.peer_id:
            raise DirectoryUnusable(
                f"{state.root} holds another key, of peer {there.peer_id[:16]}: choose another --state DIR"
            )
        if there is None:
            signed.leave_out_earlier(state)
            atomic.write_bytes(state.key, own.key_pem(), mode=MODE)
        home.claim(state)
    return own


def _rotate(state: StateDir, say: Say, *, as_json: bool) -> None:
    rotations.load(state)  # what is no peer's directory is left as it is
    with _stopped(state):
        old = rotations.load(state)
        new = rotations.rotate(state, old)
    if as_json:
        sys.stdout.write(json.dumps({"peer_id": new.peer_id, "former_id": old.peer_id}) + "\n")
    else:
        sys.stdout.write(f"peer_id      {new.peer_id}\nformer_id    {old.peer_id}\n")
    say(
        "the key is replaced: others learn of it when they call this peer; whoever holds a copy of the old "
        "one can still pose as the former peer to those who have not"
    )


@contextmanager
def _stopped(state: StateDir) -> Iterator[None]:
    """Holds the daemon's lock. Raises `DirectoryInUse`, `ForeignDirectory`."""
    process_lock = lock.ProcessLock(state.daemon_lock)
    process_lock.acquire()
    try:
        home.check(state)
        yield
    finally:
        process_lock.release()


def _read(path: Path, passphrase: bytes | None) -> Identity:
    """The key in a file that a person has named. Raises `UsageError`, `KeyUnusable`."""
    data = _secret(path, identity.MAX_KEY_BYTES)
    try:
        return identity.parse(data, passphrase)
    except identity.WrongKind:
        raise KeyUnusable(f"{path} is not an ECDSA P-256 key: name a file that `key export` wrote") from None
    except identity.Encrypted:
        raise KeyUnusable(f"{path} is encrypted: give its --passphrase-file") from None
    except ValueError:
        what = "holds no whole key" if passphrase is None else "is damaged, or its passphrase is another"
        raise KeyUnusable(f"{path} {what}: name a file that `key export` wrote") from None


def _passphrase(path: Path | None) -> bytes | None:
    """The first line of a file. Raises `UsageError` for an empty one."""
    if path is None:
        return None
    passphrase = _secret(path, 4096).split(b"\n", 1)[0].rstrip(b"\r")
    if not 0 < len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise UsageError(f"{path}: its first line must be a passphrase of 1 to {MAX_PASSPHRASE_BYTES} bytes")
    return passphrase


def _secret(path: Path, limit_bytes: int) -> bytes:
    """What is in a file that only its owner may read. Raises `UsageError`."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file that can be read") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{path}: others may read it; say chmod 600 {path}")
    return data[:limit_bytes]
