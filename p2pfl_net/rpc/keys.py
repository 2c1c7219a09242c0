"""A peer's key as what it is used for: a name, a certificate, signatures.

The id is the SHA-256 of the public key in DER (SubjectPublicKeyInfo, RFC 5280, section 4.1.2.7). The
certificate is a pure function of the key (RFC 6979 signatures, a fixed serial number and validity), so that
whoever has pinned it once accepts the peer again after any restart, and there is no file of it to lose.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.rotation import FormerKey

CERTIFICATE_NAME = "p2pfl"
"""Of every peer: who it is, the key in the certificate says."""
_VALID_FROM = datetime(2000, 1, 1, tzinfo=UTC)
"""Long before now, and below long after: nobody's clock decides who belongs."""
_VALID_TO = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
MAX_CERTIFICATE_BYTES = 1024
"""A peer's has about 316; they are kept."""
_UNCOMPRESSED_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""How each public key begins: SubjectPublicKeyInfo of an uncompressed point (RFC 5480, section 2)."""
_ALGORITHM = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class Identity:
    """A peer's own key."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    peer_id: PeerId
    public_key: bytes
    """SubjectPublicKeyInfo in DER."""
    certificate: bytes
    """Self-signed, in PEM."""
    former: tuple[FormerKey, ...] = ()
    """Keys that the peer had before, newest first."""

    @classmethod
    def of(cls, key: ec.EllipticCurvePrivateKey) -> Identity:
        public_key = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(key, peer_id_of(public_key), public_key, _certificate(key))

    @classmethod
    def new(cls) -> Identity:
        return cls.of(ec.generate_private_key(ec.SECP256R1()))

    def following(self, former: tuple[FormerKey, ...]) -> Identity:
        """The same key as one that others came before."""
        return replace(self, former=former)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        """The secret key, PKCS 8 in PEM; encrypted with a passphrase where there is one."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
        )

    def public_pem(self) -> str:
        """The public key, SubjectPublicKeyInfo in PEM."""
        return (
            self.key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode("ascii")
        )

    def sign(self, text: bytes) -> bytes:
        return self.key.sign(text, _ALGORITHM)


def peer_id_of(public_key: bytes) -> PeerId:
    """The id of the peer with this key."""
    return PeerId(hashlib.sha256(public_key).hexdigest())


def check_signature(public_key: bytes, signature: bytes, text: bytes) -> None:
    """Raises `MalformedMessage` when the key is none of ours, or has not signed this."""
    if not public_key.startswith(_UNCOMPRESSED_P256):  # or one key would have several ids
        raise MalformedMessage("not an ECDSA P-256 key in the one form that is used here")
    try:
        key = serialization.load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedMessage("not a public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedMessage("not an ECDSA P-256 key")
    try:
        key.verify(signature, text, _ALGORITHM)
    except InvalidSignature:
        raise MalformedMessage("a signature that is not of this key") from None


def certified_peer(certificate: bytes) -> tuple[PeerId, bytes]:
    """Whose certificate (DER) this is, and the same in PEM. Raises `MalformedMessage`.

    That the peer holds the key, the handshake shows that is made with it.
    """
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise MalformedMessage(f"not a peer's certificate: {len(certificate)} bytes")
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        key = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):  # the last is none of the others
        raise MalformedMessage("not a peer's certificate") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedMessage("not a peer's certificate: no ECDSA P-256 key")
    public_key = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return peer_id_of(public_key), parsed.public_bytes(serialization.Encoding.PEM)


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CERTIFICATE_NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_TO)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(CERTIFICATE_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return made.public_bytes(serialization.Encoding.PEM)
