"""Whom a person trusts, who asks for it, and who has another key now: `trust.json`, `trust_requests.json` and
`trust_heirs.json`.

The first is written by the command `p2pfl-net trust` only, one at a time under `trust.lock`, the others by
the daemon only. All are read whole, bounded and checked, and hold nothing that a terminal would obey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from p2pfl_state import atomic
from p2pfl_state.errors import DirectoryInUse, MalformedFile
from p2pfl_state.fields import DIGEST, Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

T = TypeVar("T")

MAX_DECISIONS = 20_000
"""Approved and revoked peers together: as many as a daemon knows."""
MAX_REQUESTS = 256
MAX_TEXT = 500
"""Characters of a note, and of the reason of a request."""
MAX_ADDRESS = 64
MAX_LINKS = 4096
"""Replaced keys that are remembered, besides one of each peer that was decided on."""
MAX_TRUST_BYTES = 16 << 20
MAX_HEIRS_BYTES = 8 << 20
MAX_REQUESTS_BYTES = 4 << 20
LOCK_PATIENCE_S = 10.0
"""How long a command waits for another one, which holds the lock for milliseconds."""


@dataclass(frozen=True)
class Decision:
    """When a person approved or revoked a peer, and why in their own words."""

    time: float
    """Unix seconds."""
    note: str | None = None


@dataclass(frozen=True)
class TrustFile:
    """`trust.json`: a peer is in one of the two at most."""

    approved: Mapping[str, Decision] = field(default_factory=dict)
    revoked: Mapping[str, Decision] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def approve(self, peer_id: str, decision: Decision) -> TrustFile:
        """The same with one peer approved, and no longer revoked."""
        return TrustFile({**self.approved, peer_id: decision}, _without(self.revoked, peer_id), self.extra)

    def revoke(self, peer_id: str, decision: Decision) -> TrustFile:
        """The same with one peer revoked, and no longer approved."""
        return TrustFile(_without(self.approved, peer_id), {**self.revoked, peer_id: decision}, self.extra)

    def undecided(self, requests: Iterable[TrustRequest]) -> list[TrustRequest]:
        """The requests that wait for a decision."""
        return [r for r in requests if r.peer_id not in self.approved and r.peer_id not in self.revoked]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.extra,
            "contract": CONTRACT_VERSION,
            "approved": _decisions_value(self.approved),
            "revoked": _decisions_value(self.revoked),
        }

    @classmethod
    def parse(cls, data: bytes) -> TrustFile:
        """Raises `MalformedFile`."""
        fields = Fields(parse_object(data, "trust.json"), "trust.json")
        fields.contract()
        approved = _read_decisions(fields, "approved")
        revoked = _read_decisions(fields, "revoked")
        if len(approved) + len(revoked) > MAX_DECISIONS:
            raise MalformedFile(f"trust.json decides on more than {MAX_DECISIONS} peers")
        both = approved.keys() & revoked.keys()
        if both:
            raise MalformedFile(f"trust.json both approves and revokes peer {min(both)[:16]}")
        return cls(approved, revoked, fields.extra)


@dataclass(frozen=True)
class TrustRequest:
    """A peer that asks to be approved."""

    peer_id: str
    time: float
    """Unix seconds of its newest request."""
    address: str
    """IP literal that the request came from."""
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"peer_id": self.peer_id, "time": self.time, "address": self.address, "reason": self.reason}

    @classmethod
    def read(cls, value: Any) -> TrustRequest:
        what = "trust_requests.json requests"
        fields = Fields(value, what)
        return cls(
            fields.digest("peer_id"),
            fields.number("time"),
            _line(fields.text("address", limit=MAX_ADDRESS), f"{what}: field 'address'"),
            _line(fields.text("reason", limit=MAX_TEXT), f"{what}: field 'reason'"),
        )


@dataclass(frozen=True)
class Link:
    """One key has vouched for another that replaced it."""

    old: str
    """The former peer id, and the one that followed it."""
    new: str

    @classmethod
    def read(cls, value: Any) -> Link:
        fields = Fields(value, "trust_heirs.json links")
        return cls(fields.digest("old"), fields.digest("new"))


def is_line(text: str) -> bool:
    """Whether a text may be a note or a reason: one printable line that says something."""
    return 0 < len(text) <= MAX_TEXT and text.isprintable() and not text.isspace()


def read_trust(state: StateDir) -> TrustFile:
    """What was decided; nothing when there is no file. Raises `StateError` for a damaged one."""
    remedy = "correct it, or remove it to decide on every peer anew"
    return _read(state.trust, MAX_TRUST_BYTES, TrustFile.parse, remedy) or TrustFile()


def read_requests(state: StateDir) -> tuple[TrustRequest, ...]:
    """Who asks, oldest first. Raises `StateError` for a damaged file."""
    return _read(state.trust_requests, MAX_REQUESTS_BYTES, _parse_requests, "remove it") or ()


def read_links(state: StateDir) -> tuple[Link, ...]:
    """Who follows whom, as it was learned. Raises `StateError` for a damaged file."""
    remedy = "remove it to learn it anew from the peers themselves"
    return _read(state.trust_heirs, MAX_HEIRS_BYTES, _parse_links, remedy) or ()


def write_links(state: StateDir, links: Iterable[Link]) -> None:
    """Not synced: the peers tell it again. Raises `StateError`."""
    value = {"contract": CONTRACT_VERSION, "links": [asdict(link) for link in links]}
    _parse_links(atomic.encode_json(value))
    atomic.write_json(state.trust_heirs, value, durable=False)


def write_requests(state: StateDir, requests: Iterable[TrustRequest]) -> None:
    """Not synced: who asked can ask again, and a stranger's call must not make a disk sync.

    Raises `StateError`.
    """
    value = {"contract": CONTRACT_VERSION, "requests": [request.to_json() for request in requests]}
    _parse_requests(atomic.encode_json(value))
    atomic.write_json(state.trust_requests, value, durable=False)


def change_trust(state: StateDir, change: Callable[[TrustFile], TrustFile]) -> None:
    """Replaces `trust.json` by what `change` makes of it; no change of another command is lost.

    Raises `StateError`: for a damaged file too, which is left as it is.
    """
    from filelock import FileLock, Timeout  # the daemon reads only

    lock = FileLock(state.trust_lock)
    try:
        lock.acquire(timeout=LOCK_PATIENCE_S, poll_interval=0.02)
    except Timeout:
        raise DirectoryInUse(f"another p2pfl-net trust changes {state.trust}: try again") from None
    except OSError as error:
        raise atomic.unusable(state.trust_lock, error) from error
    try:
        data = atomic.encode_json(change(read_trust(state)).to_json())
        TrustFile.parse(data)
        if len(data) > MAX_TRUST_BYTES:
            raise MalformedFile(f"{state.trust} would be too large: leave some notes out")
        atomic.write_bytes(state.trust, data)
    finally:
        lock.release()


def _read(path: Path, limit_bytes: int, parse: Callable[[bytes], T], remedy: str) -> T | None:
    data = atomic.read_bounded(path, limit_bytes)
    try:
        return None if data is None else parse(data)
    except MalformedFile as error:
        raise MalformedFile(f"{path} is damaged ({error}): {remedy}") from None


def _parse_requests(data: bytes) -> tuple[TrustRequest, ...]:
    fields = Fields(parse_object(data, "trust_requests.json"), "trust_requests.json")
    fields.contract()
    return tuple(TrustRequest.read(value) for value in fields.items("requests", limit=MAX_REQUESTS))


def _parse_links(data: bytes) -> tuple[Link, ...]:
    fields = Fields(parse_object(data, "trust_heirs.json"), "trust_heirs.json")
    fields.contract()
    return tuple(Link.read(value) for value in fields.items("links", limit=MAX_LINKS + MAX_DECISIONS))


def _read_decisions(fields: Fields, name: str) -> dict[str, Decision]:
    decisions = {}
    for peer_id, value in fields.mapping(name, limit=MAX_DECISIONS).items():
        what = f"trust.json {name}"
        if not DIGEST.fullmatch(peer_id):
            raise MalformedFile(f"{what} names what is no peer id")
        decision = Fields(value, what)
        note = decision.text("note", limit=MAX_TEXT) if decision.extra.get("note") is not None else None
        time = decision.number("time")
        decisions[peer_id] = Decision(time, note and _line(note, f"{what}: field 'note'"))
    return decisions


def _decisions_value(decisions: Mapping[str, Decision]) -> dict[str, Any]:
    return {peer_id: {"time": made.time, "note": made.note} for peer_id, made in decisions.items()}


def _without(decisions: Mapping[str, Decision], peer_id: str) -> dict[str, Decision]:
    return {other: made for other, made in decisions.items() if other != peer_id}


def _line(text: str, what: str) -> str:
    if not is_line(text):
        raise MalformedFile(f"{what} must be one printable line of at most {MAX_TEXT} characters")
    return text
