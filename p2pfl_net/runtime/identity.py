"""The peer's key on disk: an ECDSA P-256 pair made at first start. Its public half names the peer."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile

from p2pfl_net.errors import KeyUnusable
from p2pfl_net.rpc.keys import Identity

MAX_KEY_BYTES = 16 << 10


def load_or_create(path: Path) -> Identity:
    """The key at `path`, made with mode 0600 when there is none. Raises as `load`."""
    identity = load(path)
    if identity is None:
        identity = Identity.new()
        atomic.write_bytes(path, identity.key_pem(), mode=0o600)
    return identity


def load(path: Path) -> Identity | None:
    """The key at `path`, if there is one.

    Raises `KeyUnusable` for a damaged one, `DirectoryUnusable` when it cannot be read or written.
    """
    damaged = f"{path} is damaged: restore it from a backup, or delete it to be a new peer"
    try:
        data = atomic.read_bounded(path, MAX_KEY_BYTES)
    except MalformedFile:
        raise KeyUnusable(damaged) from None
    if data is None:
        return None
    try:
        return parse(data)
    except WrongKind:
        raise KeyUnusable(
            f"{path} is not an ECDSA P-256 key: restore it, or delete it to be a new peer"
        ) from None
    except ValueError:
        raise KeyUnusable(damaged) from None


class WrongKind(ValueError):
    """A key, but not of ECDSA P-256."""


class Encrypted(ValueError):
    """A key that its passphrase was not given for."""


def parse(data: bytes, passphrase: bytes | None = None) -> Identity:
    """The key in a PEM text. Raises `WrongKind`, `Encrypted`, `ValueError` for a damaged one or a wrong
    passphrase."""
    try:
        loaded = serialization.load_pem_private_key(data, password=passphrase)
    except TypeError:  # what cryptography raises for a passphrase that is missing, or too many
        if passphrase is None:
            raise Encrypted from None
        return parse(data)
    except UnsupportedAlgorithm:
        raise ValueError("an algorithm that is not known here") from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or not isinstance(loaded.curve, ec.SECP256R1):
        raise WrongKind
    return Identity.of(loaded)
