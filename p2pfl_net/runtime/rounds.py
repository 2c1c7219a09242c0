"""The files of the rounds: where fetched models go, and which bytes are here already."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile
from p2pfl_state.layout import StateDir, temporary
from p2pfl_state.manifest import MAX_HEADER_BYTES, file_weights_digest
from p2pfl_state.markers import AggregateRequest, FetchedModel
from p2pfl_state.taskfile import TaskFile, write_task

from p2pfl_net.core.events import FailureKind, Fetch
from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import Equivocation
from p2pfl_net.errors import Lied, PeerFailed, RemoteError
from p2pfl_net.rpc.download import Progress
from p2pfl_net.rpc.fetching import TASK_TIMEOUT_S, Cancellation, ModelClient, Wanted
from p2pfl_net.runtime.claims import AlreadyComing, Claim, Claims
from p2pfl_net.runtime.versions import VersionLog
from p2pfl_net.wire.models import MAX_HAVE_WEIGHTS, ModelHeader

CLAIM_WAIT_SHARE = 0.25
"""A fetch waits so large a part of its time for another of the same weights. A guess."""
CLAIM_LOOK_S = 0.02
MAX_QUESTIONS = 4
QUESTIONS_S = 5.0
"""Questions to a publisher on what it got from others, and the time for all of them. Guesses."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A fetched model on disk. What its sender said of the weights is not verified here."""

    path: Path
    model: FetchedModel


class RoundFiles:
    """Fetches models into `aggregation/<round>/` and deletes old rounds. Thread-safe."""

    def __init__(
        self, state: StateDir, client: ModelClient, max_model_bytes: int, versions: VersionLog
    ) -> None:
        self._state = state
        self._versions = versions
        self._comparing = threading.BoundedSemaphore(1)
        self._client = client
        self._max_model_bytes = max_model_bytes
        self._lock = threading.Lock()
        self._held: dict[PeerId, _Held] = {}
        self._claims = Claims(holds=self._holds)
        self._verified: dict[Path, str] = {}

    def begin(self, request: AggregateRequest) -> None:
        """Makes the folder of a round, empty.

        Raises `DirectoryUnusable`.
        """
        folder = self._state.round_dir(request.round)
        try:
            self._delete(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise atomic.unusable(folder, error) from error

    def clean(self, request: AggregateRequest) -> None:
        """Deletes what nobody reads any more.

        After the answer and not before the round: freeing large files takes time, and until then their
        bytes may save a download.
        """
        try:
            folders = list(self._state.aggregation.iterdir())
        except OSError:  # somebody removed it; the next round makes it anew
            return
        for old in folders:
            if not old.name.isdecimal() or int(old.name) < min(request.delete_below, request.round):
                self._delete(old)

    def _delete(self, folder: Path) -> None:
        with self._lock:
            self._held = {peer: held for peer, held in self._held.items() if held.path.parent != folder}
            self._verified = {path: d for path, d in self._verified.items() if path.parent != folder}
        shutil.rmtree(folder, ignore_errors=True)

    def fetch(
        self,
        order: Fetch,
        *,
        want_task: bool,
        cancellation: Cancellation,
        progress: Progress,
    ) -> FetchedModel:
        """Brings one model under its final name. Raises `RemoteError`, `DirectoryUnusable`, and `Lied` when
        its publisher has signed another under the same version."""
        started = time.monotonic()
        path = self._state.fetched_model(order.round, order.peer_id)
        draft = temporary(path)
        claim = Claim(self._claims)
        try:
            header, source = self._obtain(order, draft, cancellation, progress, claim)
            lie = self._versions.add(header.statement, header.manifest)
            if lie is not None:
                raise Lied(lie)
            if want_task:
                self._fetch_task(order, started + order.timeout_s, cancellation)
            if source is not None:
                _link(source.path, draft)
            atomic.settle_cached(draft, path)
            fetched = FetchedModel(
                peer_id=order.peer_id,
                manifest=header.manifest,
                file_digest=header.file_digest if source is None else source.model.file_digest,
                size_bytes=path.stat().st_size,
                seconds=time.monotonic() - started,
                reused=source is not None,
            )
            with self._lock:
                self._held[order.peer_id] = _Held(path, fetched)
        except OSError as error:
            raise PeerFailed(FailureKind.LOCAL, f"{path}: {error.strerror or error}") from error
        finally:
            claim.release()
            draft.unlink(missing_ok=True)
        return fetched

    def compare(self, order: Fetch, fetched: FetchedModel) -> Equivocation | None:
        """Whether the publisher of a model got from others what we got: the proof against one who tells
        different things. One at a time, the others are let go: a liar may make us doubt every model and never
        answer. Who does not answer proves nothing. Raises `DirectoryUnusable`."""
        doubtful = self._versions.doubtful(fetched.manifest)[:MAX_QUESTIONS]
        if not doubtful or not self._comparing.acquire(blocking=False):
            return None
        try:
            deadline = time.monotonic() + QUESTIONS_S
            for parent in doubtful:
                statement, manifest = self._client.fetch_version(
                    order.addresses[0],
                    order.peer_id,
                    PeerId(parent.peer_id),
                    parent.version,
                    timeout_s=max(0.01, deadline - time.monotonic()),
                )
                lie = self._versions.add(statement, manifest)
                if lie is not None:
                    return lie
        except RemoteError:
            return None
        finally:
            self._comparing.release()
        return None

    def _obtain(
        self, order: Fetch, draft: Path, cancellation: Cancellation, progress: Progress, claim: Claim
    ) -> tuple[ModelHeader, _Held | None]:
        """The header, and what already has its weights, or None when `draft` was downloaded."""
        deadline = time.monotonic() + order.timeout_s
        have = self._have_weights(order.peer_id)
        while True:
            left_s = max(0.01, deadline - time.monotonic())
            wanted = Wanted(
                addresses=order.addresses,
                timeout_s=left_s,
                to=order.peer_id,
                task=order.task,
                have_weights=have,
                max_bytes=self._most_bytes(),
            )
            claim.named = have
            try:
                header = self._client.fetch(wanted, draft, cancellation, claim.checked(progress))
            except AlreadyComing as coming:
                # Not for long: its sender may lie about it, and then this one is downloaded all the same.
                claim.waits = False
                give_up_at = time.monotonic() + CLAIM_WAIT_SHARE * left_s
                while not coming.over.is_set() and time.monotonic() < give_up_at:
                    if cancellation.wait(CLAIM_LOOK_S):
                        raise PeerFailed(FailureKind.UNREACHABLE, "cancelled") from None
                have = self._have_weights(order.peer_id)
                continue
            if not header.not_modified:
                return header, None
            source = self._find(order.peer_id, header.manifest.weights)
            if source is not None:
                return header, source
            have = ()  # what we hold was deleted meanwhile, or its first sender lied about it

    def _most_bytes(self) -> int:
        """How large a model may be: all of one task have the same tensors, and this peer may have one."""
        try:
            own_bytes = self._state.model.stat().st_size
        except OSError:
            return self._max_model_bytes
        return min(self._max_model_bytes, own_bytes + MAX_HEADER_BYTES)

    def _have_weights(self, peer_id: PeerId) -> tuple[str, ...]:
        """Digests to name to `peer_id`: that of its own last model first."""
        with self._lock:
            own = self._held.get(peer_id)
            digests = [held.model.manifest.weights for held in self._held.values()]
        first = [own.model.manifest.weights] if own is not None else []
        return tuple(dict.fromkeys(first + digests))[:MAX_HAVE_WEIGHTS]

    def _holds(self, weights: str) -> bool:
        with self._lock:
            return any(held.model.manifest.weights == weights for held in self._held.values())

    def _find(self, peer_id: PeerId, weights: str) -> _Held | None:
        """A held file with these weights.

        A peer's word about its own last file is enough, for it could send anything in its own name;
        a file from another peer must really have the digest, or one liar could speak for others.
        """
        with self._lock:
            held = list(self._held.items())
        for holder, entry in held:
            if entry.model.manifest.weights != weights or not entry.path.exists():
                continue
            if holder == peer_id or self._digest_of(entry.path) == weights:
                return entry
        return None

    def _digest_of(self, path: Path) -> str | None:
        with self._lock:
            known = self._verified.get(path)
        if known is None:
            try:
                known = file_weights_digest(path)
            except (MalformedFile, FileNotFoundError):
                return None
            with self._lock:
                self._verified[path] = known
        return known

    def _fetch_task(self, order: Fetch, deadline: float, cancellation: Cancellation) -> None:
        task: TaskFile | None = None
        failure: PeerFailed | None = None
        for address in order.addresses:
            try:
                timeout_s = min(TASK_TIMEOUT_S, max(0.01, deadline - time.monotonic()))
                task = self._client.fetch_task(
                    address, order.peer_id, order.task, timeout_s=timeout_s, cancellation=cancellation
                )
                break
            except PeerFailed as error:
                failure = error
                if cancellation.wait(0.0):
                    break
        if task is None:
            assert failure is not None
            raise failure
        with self._lock:  # the fetches of a round share this one file
            write_task(self._state.fetched_task(order.round), task)


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
