"""What a person decided about other peers, and who asks to be approved, as a running daemon holds it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from p2pfl_state import trust as files
from p2pfl_state.errors import StateError
from p2pfl_state.layout import StateDir
from p2pfl_state.trust import TrustFile, TrustRequest

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId, source_of
from p2pfl_net.core.membership import EVICTED
from p2pfl_net.core.trust import Trust
from p2pfl_net.errors import PeerFailed
from p2pfl_net.runtime.heirs import Heirs
from p2pfl_net.runtime.published import FileStamp, stamp_of
from p2pfl_net.wire.trust import Standing

REQUEST_EVENT = "trust_requested"
MAX_CHANGES_TOLD = 64
"""In one line of the log: a person decides on one at a time, a program perhaps on many."""
REVOKED = "this peer's operator has revoked you, and is the only one who can approve you again"


class TrustShell(Protocol):
    """What the daemon does about it. Called from any thread."""

    def trust_changed(self, trust: Trust) -> None:
        """Others are allowed now than before."""
        ...

    def tell(self, event: str, fields: dict[str, object]) -> None:
        """A line for the event log."""
        ...


class TrustKeeper:
    """Holds `trust.json` as it is now and writes `trust_requests.json`. Thread-safe.

    The file is looked at before every decision, which costs a `stat`, and by the watch of the directory: a
    decision counts from the moment in which the command that wrote it ends.
    """

    def __init__(
        self,
        state: StateDir,
        me: PeerId,
        *,
        approved_only: bool,
        evicted: frozenset[PeerId] = frozenset(),
        shown: Callable[[], Iterable[tuple[PeerId, tuple[PeerId, ...]]]] = tuple,
    ) -> None:
        """`evicted`: who gets nothing, whatever a person says. `shown`: the former ids that peers have shown
        in this life, for decisions that come after. Raises `StateError` for damaged files."""
        self._shown = shown
        self._evicted = evicted
        self._state = state
        self._me = me
        self._approved_only = approved_only
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._requests = {request.peer_id: request for request in files.read_requests(state)}
        self._shell: TrustShell | None = None
        self._decided = files.read_trust(state)
        self._heirs = Heirs(self._decided_ids())
        self._kept_links = files.read_links(state)
        self._heirs.restore(self._kept_links)
        self.trust = self._trust_of(self._decided)
        """An immutable snapshot, replaced whole."""

    def open(self, shell: TrustShell) -> None:
        """Names who hears of changes; it is told at once what holds now."""
        with self._lock:
            self._shell = shell
            shell.trust_changed(self.trust)

    def look(self) -> None:
        """Takes a change of the file in. A damaged one changes nothing, and is told of once."""
        with self._lock:
            self._look()

    def check(self, caller: PeerId) -> None:
        """Raises `PeerFailed` (forbidden) for whoever may not have what this peer has published."""
        self.look()
        if self.trust.allows(caller):
            return
        if caller in self._evicted:
            raise PeerFailed(FailureKind.FORBIDDEN, EVICTED)
        if caller in self.trust.revoked:
            raise PeerFailed(FailureKind.FORBIDDEN, REVOKED)
        remedy = f"p2pfl-net trust request {self._me} --state DIR --reason TEXT"
        raise PeerFailed(FailureKind.FORBIDDEN, f"this peer serves approved peers only, say: {remedy}")

    def request(self, caller: PeerId, host: str, reason: str) -> Standing:
        """Keeps a request, the newest of each caller. Raises `PeerFailed`."""
        with self._lock:
            self._look()
            if caller in self.trust.revoked:
                raise PeerFailed(FailureKind.FORBIDDEN, REVOKED)
            if caller in self.trust.approved:
                return Standing.APPROVED
            known = self._requests.get(caller)
            if known is not None and (known.address, known.reason) == (host, reason):
                return Standing.NOTED  # said twice: not worth a write, nor a line
            kept = {peer: request for peer, request in self._requests.items() if peer != caller}
            kept[caller] = TrustRequest(caller, round(time.time(), 3), host, reason)
            if len(kept) > files.MAX_REQUESTS:
                del kept[_of_the_loudest(kept)]
            if not self._keep(kept):
                raise PeerFailed(FailureKind.LOCAL, "this peer cannot keep the request: its disk fails")
            self._tell(REQUEST_EVENT, {"peer": caller, "address": host, "reason": reason})
        return Standing.NOTED

    def evict(self, peer_ids: frozenset[PeerId]) -> None:
        """These peers have lied: they get nothing, and nothing comes from them."""
        with self._lock:
            self._evicted = peer_ids
            self._change()

    def follow(self, peer_id: PeerId, former: tuple[PeerId, ...]) -> None:
        """This peer had these ids before, newest first, as its former keys have signed."""
        with self._lock:
            if not self._heirs.add(peer_id, former):
                return
            before = self.trust.said_of(peer_id)
            self._change()
            self._keep_links()
            if self.trust.said_of(peer_id) != before:
                fields = {"peer": peer_id, "former": former[0], "trust": self.trust.said_of(peer_id)}
                self._tell("trust_followed", {**fields})

    # with the lock held ----------------------------------------------------------------------------

    def _look(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        before = self._decided
        try:
            self._decided = files.read_trust(self._state)
        except StateError as error:
            self._tell("error", {"reason": f"{error}; until then the decisions before it hold"})
            return
        self._heirs.decide(self._decided_ids())
        for peer_id, former in self._shown():
            self._heirs.add(peer_id, former)
        self._change()
        self._keep_links()
        counts = {"approved": len(self.trust.approved), "revoked": len(self.trust.revoked)}
        self._tell("trust_changed", {**counts, "decisions": _changes(before, self._decided)})
        open_ = {peer: r for peer, r in self._requests.items() if self.trust.said_of(PeerId(peer)) is None}
        if len(open_) < len(self._requests):
            self._keep(open_)

    def _change(self) -> None:
        """Makes what holds now the decisions of a person, those on heirs and on liars."""
        trust = self._trust_of(self._decided)
        if trust != self.trust:
            self.trust = trust
            if self._shell is not None:
                self._shell.trust_changed(trust)

    def _decided_ids(self) -> frozenset[PeerId]:
        return frozenset(map(PeerId, (*self._decided.approved, *self._decided.revoked)))

    def _keep_links(self) -> None:
        """So that after a restart no old key counts whose peer has another: it may be a thief's."""
        links = self._heirs.links
        if links == self._kept_links:
            return
        self._kept_links = links
        try:
            files.write_links(self._state, links)
        except StateError as error:
            self._tell("error", {"reason": str(error)})

    def _keep(self, requests: dict[str, TrustRequest]) -> bool:
        """Replaces the requests, in the file first; whether that succeeded."""
        try:
            files.write_requests(self._state, requests.values())
        except StateError as error:
            self._tell("error", {"reason": str(error)})
            return False
        self._requests = requests
        return True

    def _tell(self, event: str, fields: dict[str, object]) -> None:
        if self._shell is not None:
            self._shell.tell(event, fields)

    def _stamp(self) -> FileStamp | None:
        try:
            return stamp_of(self._state.trust.stat())
        except OSError:
            return None

    def _trust_of(self, decided: TrustFile) -> Trust:
        approved = frozenset(map(PeerId, decided.approved)) - self._evicted
        revoked = frozenset(map(PeerId, decided.revoked)) | self._evicted
        return self._heirs.applied(Trust(approved, revoked, self._approved_only))


def _of_the_loudest(requests: Mapping[str, TrustRequest]) -> str:
    """Whose request makes room: the oldest from the address that has most."""
    addresses = {peer: source_of(request.address) for peer, request in requests.items()}
    loudest, _ = Counter(addresses.values()).most_common(1)[0]
    return next(peer for peer, address in addresses.items() if address == loudest)


def _changes(before: TrustFile, after: TrustFile) -> list[dict[str, object]]:
    """What a person has decided between two readings, for whoever reads the log later; of many the first."""
    told: list[dict[str, object]] = []
    for name, old, new in (
        ("approved", before.approved, after.approved),
        ("revoked", before.revoked, after.revoked),
    ):
        told += [
            {"peer": peer, "decision": name, "note": made.note}
            for peer, made in new.items()
            if old.get(peer) != made
        ]
    return told[:MAX_CHANGES_TOLD]
