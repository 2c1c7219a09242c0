"""The keys that this peer had before, on disk: `rotations.json`, a chain that ends in the present key.

A new key is put in its place only when the old one's word for it is on the disk. So a crash between the two
leaves the old key, and one link more than counts: what follows the present key is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2pfl_state import atomic
from p2pfl_state.errors import DirectoryUnusable, MalformedFile
from p2pfl_state.fields import Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

from p2pfl_net.errors import MalformedMessage
from p2pfl_net.rpc.keys import Identity, peer_id_of
from p2pfl_net.rpc.rotations import former_ids, rotated
from p2pfl_net.runtime import identity
from p2pfl_net.wire.rotation import MAX_PUBLIC_KEY_BYTES, MAX_ROTATIONS, MAX_SIGNATURE_BYTES, FormerKey

MAX_BYTES = 64 << 10


def load(state: StateDir) -> Identity:
    """The key of a state directory, with those that came before.

    Raises `DirectoryUnusable` when there is none, `KeyUnusable`, `MalformedFile`.
    """
    own = identity.load(state.key)
    if own is None:
        raise DirectoryUnusable(f"{state.root} holds no key: is it the --state of a peer that has run?")
    return with_former(own, state.rotations)


def rotate(state: StateDir, old: Identity) -> Identity:
    """Puts a new key in the place of `old`, which vouches for it; the old one is gone then.

    Raises `DirectoryUnusable`.
    """
    new = rotated(old, Identity.new())
    atomic.write_json(state.rotations, {"contract": CONTRACT_VERSION, "links": _links(new)})
    atomic.write_bytes(state.key, new.key_pem(), mode=0o600)
    return new


def with_former(own: Identity, path: Path) -> Identity:
    """`own` with the keys that came before it. Raises `MalformedFile` for a damaged file: it is never
    replaced silently, for nothing else tells others who this peer was."""
    data = atomic.read_bounded(path, MAX_BYTES)
    if data is None:
        return own
    former: tuple[FormerKey, ...] = ()
    expected: bytes | None = None
    damaged = MalformedFile(
        f"{path} is damaged: restore it from a backup, or delete it; those who know this peer by a former id "
        "must then be told the new one"
    )
    try:
        fields = Fields(parse_object(data, path.name), path.name)
        fields.contract()
        links = [_parse(item) for item in fields.items("links", limit=MAX_ROTATIONS)]
        for old, new, signature in links:
            if expected not in (None, old):
                raise ValueError("a chain that is broken")
            former_ids([FormerKey(old, signature)], peer_id_of(new))
            expected = new
    except (MalformedFile, MalformedMessage, ValueError):
        raise damaged from None
    for old, new, signature in links:
        former = (FormerKey(old, signature), *former)
        if new == own.public_key:
            return own.following(former)
    return own


def _parse(item: Any) -> tuple[bytes, bytes, bytes]:
    """(old public key, new public key, signature) of one link."""
    link = Fields(item, "a link")
    return (
        bytes.fromhex(link.text("old", limit=2 * MAX_PUBLIC_KEY_BYTES)),
        bytes.fromhex(link.text("new", limit=2 * MAX_PUBLIC_KEY_BYTES)),
        bytes.fromhex(link.text("signature", limit=2 * MAX_SIGNATURE_BYTES)),
    )


def _links(own: Identity) -> list[dict[str, str]]:
    """Oldest first."""
    links = []
    new = own.public_key
    for key in own.former:
        links.append({"old": key.public_key.hex(), "new": new.hex(), "signature": key.signature.hex()})
        new = key.public_key
    return links[::-1]
