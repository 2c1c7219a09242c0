"""The peer's key: an ECDSA P-256 pair made at first start. Its public half names the peer.

The id is the SHA-256 of the public key in DER (SubjectPublicKeyInfo, RFC 5280 section 4.1.2.7).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import KeyUnusable

MAX_KEY_BYTES = 16 << 10


def load_or_create(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key at `path`, made with mode 0600 when there is none.

    Raises `KeyUnusable` for a damaged one, `DirectoryUnusable` when it cannot be read or written.
    """
    damaged = f"{path} is damaged: restore it from a backup, or delete it to be a new peer"
    try:
        data = atomic.read_bounded(path, MAX_KEY_BYTES)
    except MalformedFile:
        raise KeyUnusable(damaged) from None
    if data is None:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        atomic.write_bytes(path, pem, mode=0o600)
        return key
    try:
        loaded = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyUnusable(damaged) from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or not isinstance(loaded.curve, ec.SECP256R1):
        raise KeyUnusable(f"{path} is not an ECDSA P-256 key: restore it, or delete it to be a new peer")
    return loaded


def peer_id_of(key: ec.EllipticCurvePrivateKey) -> PeerId:
    """The id of the peer that holds `key`."""
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return PeerId(hashlib.sha256(spki).hexdigest())
