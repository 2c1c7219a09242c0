"""A daemon of the state contract without a network: what it "fetches" are files that a test gives it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from p2pfl_state import atomic, lock, markers, taskfile, wait
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import read_header
from p2pfl_state.markers import AggregateAnswer, AggregateRequest, BootDone, FailedFetch, FetchedModel

Offer = tuple[str, Path]
"""A peer id and the model file that this peer publishes."""


def peer_id(number: int) -> str:
    """A valid peer id."""
    return hashlib.sha256(f"peer {number}".encode()).hexdigest()


class FakeDaemon:
    """Holds `daemon.lock`, announces itself, and answers each request by the contract.

    `offers` is asked anew for every request; `task` is given to whoever wants it. A silent one lives
    and never answers.
    """

    def __init__(
        self,
        state: StateDir,
        offers: Callable[[AggregateRequest], Sequence[Offer]] = lambda request: [],
        *,
        task: Path | None = None,
        candidates: int | None = None,
        silent: bool = False,
    ) -> None:
        self.state = state
        self.offers = offers
        self.task = task
        self.candidates = candidates
        self.silent = silent
        self.instance = markers.new_instance()
        self.requests: list[AggregateRequest] = []
        self._lock = lock.ProcessLock(state.daemon_lock)
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        state.aggregation.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._lock.acquire()
        self._watch = wait.FolderWatch(self.state.root)
        markers.write_boot_done(self.state, BootDone(self.instance, peer_id(0), "127.0.0.1:1", 0))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, *, leave_marker: bool = False) -> None:
        """Ends like a clean daemon, or, with `leave_marker`, like a killed one."""
        if self._stopping:
            return
        self._stopping = True
        self._watch.wake()
        self._thread.join()
        self._watch.close()
        if not leave_marker:
            atomic.remove(self.state.boot_done)
        self._lock.release()

    def _serve(self) -> None:
        while not self._stopping:
            request = markers.read_request(self.state)
            seen = [(old.instance, old.round) for old in self.requests]
            if request is not None and (request.instance, request.round) not in seen:
                self.requests.append(request)
                if not self.silent:
                    self.answer(request)
            self._watch.wait_changed(0.05)

    def answer(self, request: AggregateRequest) -> None:
        """Answers one request now."""
        offers = list(self.offers(request))
        models = [self._fetch(request.round, *offer) for offer in offers]
        task = None if self.task is None else taskfile.read_task(self.task)
        if request.want_task and task is not None and models:
            taskfile.write_task(self.state.fetched_task(request.round), task)
        candidates = len(models) if self.candidates is None else self.candidates
        missing = [FailedFetch(peer_id(99), "refused the connection")] if candidates > len(models) else []
        answer = AggregateAnswer(
            instance=request.instance,
            round=request.round,
            models=tuple(models),
            failed=tuple(missing),
            candidates=candidates,
            peers=candidates,
            seconds=0.01,
        )
        markers.write_answer(self.state, answer)

    def _fetch(self, number: int, peer: str, source: Path) -> FetchedModel:
        target = self.state.fetched_model(number, peer)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = source.read_bytes()
        target.write_bytes(data)
        manifest = read_header(source).manifest()
        digest = hashlib.sha256(data).hexdigest()
        return FetchedModel(peer, manifest, digest, len(data), 0.001, reused=False)


def network_of(states: Sequence[StateDir], own: int) -> Callable[[AggregateRequest], list[Offer]]:
    """Offers of the other directories' published models, as many as wanted, in a turning order."""

    def offers(request: AggregateRequest) -> list[Offer]:
        others = [number for number in range(len(states)) if number != own]
        turn = request.round % max(1, len(others))
        ready = [n for n in others[turn:] + others[:turn] if os.path.exists(states[n].model)]  # noqa: PTH110
        return [(peer_id(number), states[number].model) for number in ready[: request.fan_out]]

    return offers
