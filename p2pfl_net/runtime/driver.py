"""Runs the core: feeds it events one by one, carries out what it decides.

Whoever brings an event of the network feeds the core with it, one at a time, and sends what it answers: a
ping needs no other thread. All else that the core decides, and its time, are the business of the thread
that calls `run`. Fetches run in a pool and come back as events. Everything is bounded: the queue by refusing
calls, the pools by their size, waits by their time-outs.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, Protocol, assert_never

from p2pfl_state.errors import StateError
from p2pfl_state.markers import AggregateAnswer, AggregateRequest, FailedFetch, FetchedModel

from p2pfl_net.core.events import (
    Answered,
    Ask,
    BootFailed,
    CallId,
    CancelFetch,
    CollectionDone,
    Event,
    Evicted,
    Failed,
    FailureKind,
    Fetch,
    FetchFailed,
    FetchFinished,
    FetchId,
    FetchProgressed,
    Joined,
    Note,
    Output,
    PeersChanged,
    Proved,
    Received,
    Refuse,
    Reply,
    Send,
    Stop,
    Stopped,
    Tick,
)
from p2pfl_net.core.ids import PeerId, TaskDigest
from p2pfl_net.core.messages import Equivocation, Request, Response
from p2pfl_net.core.node import Node, PeerList
from p2pfl_net.core.params import Params
from p2pfl_net.core.times import soonest
from p2pfl_net.errors import Lied, PeerFailed, RemoteError
from p2pfl_net.rpc.client import MembershipClient
from p2pfl_net.rpc.fetching import Cancellation
from p2pfl_net.runtime.rounds import RoundFiles
from p2pfl_net.wire.models import ModelHeader

P = ParamSpec("P")

MAX_QUEUED = 4096
CALL_THREADS = 16
FETCH_THREADS = Params.max_fetches + 1
"""One for each fetch, and one for the deletion of old rounds."""
REPLY_TIMEOUT_S = 2.0
PROGRESS_PERIOD_S = 0.25
PEERS_DELAY_S = 0.05
"""Changes of the peer list within this time are written once."""
MIN_PEERS_REFRESH_S, MAX_PEERS_REFRESH_S = 10.0, 60.0
"""How old `last_seen` and the versions in `peers.json` may be when nothing else changes: a second for each
peer, which is how often a peer is called, within guessed bounds."""


class Shell(Protocol):
    """What the driver needs of the daemon around it. Called from the driver's thread."""

    def joined(self, peers: PeerList, *, first: bool) -> None: ...

    def write_peers(self, peers: PeerList) -> None: ...

    def write_answer(self, answer: AggregateAnswer) -> None: ...

    def evict(self, proof: Equivocation, forgotten: PeerId | None) -> None: ...

    def note(self, event: str, fields: dict[str, object]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """The trainer's request, on its way to the core."""

    request: AggregateRequest


@dataclass(frozen=True, slots=True)
class _Decided:
    """What another thread's event made the core decide; with nothing in it: the core's time is earlier."""

    outputs: Sequence[Output]


@dataclass(slots=True)
class _RunningFetch:
    order: Fetch
    cancellation: Cancellation
    result: FetchedModel | None = None


class Driver:
    """The shell around one node. Thread-safe where it says so; the rest is the driver thread's own."""

    def __init__(self, node: Node, client: MembershipClient, rounds: RoundFiles, shell: Shell) -> None:
        self._node = node
        self._core = threading.Lock()
        """Guards the node."""
        self._asleep_until = -math.inf
        """Until when `run` waits, unless something comes; it falls asleep with the core in its hands."""
        self._client = client
        self._rounds = rounds
        self._shell = shell
        self._inbox: queue.SimpleQueue[Event | _Asked | _Decided | BaseException] = queue.SimpleQueue()
        self._slots: dict[CallId, queue.SimpleQueue[Response | PeerFailed]] = {}
        self._call_ids = itertools.count(1)
        self._calls = ThreadPoolExecutor(CALL_THREADS, thread_name_prefix="call")
        self._fetches = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._running: dict[FetchId, _RunningFetch] = {}
        self._request: AggregateRequest | None = None
        self._peers_dirty_at: float | None = None
        self._peers_written_at = 0.0
        self._boot_failure: str | None = None
        self._ended = False
        self._urgent: Stop | None = None
        self.peers: PeerList = node.peer_list()
        """The thread-safe peer list: an immutable snapshot, replaced whole."""

    # from any thread -------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Queues an event; also safe in a signal handler. A stop waits for nothing that came before it."""
        if isinstance(event, Stop):
            self._urgent = event
            self._inbox.put(_Decided(()))  # wakes `run`
        else:
            self._inbox.put(event)

    def post_request(self, request: AggregateRequest) -> None:
        self._inbox.put(_Asked(request))

    def post_failure(self, error: Exception) -> None:
        """Ends `run` with an error that another thread met."""
        self._inbox.put(error)

    def exchange(self, message: Request, host: str) -> Response:
        """Hands a peer's request to the core and waits for the reply. Raises `PeerFailed`."""
        if self._ended:
            raise _stopping()
        if self._inbox.qsize() > MAX_QUEUED:
            raise PeerFailed(FailureKind.BUSY, "this peer is overloaded")
        call = CallId(next(self._call_ids))
        slot: queue.SimpleQueue[Response | PeerFailed] = queue.SimpleQueue()
        self._slots[call] = slot
        self._feed(Received(call, message, host))
        try:
            outcome = slot.get(timeout=REPLY_TIMEOUT_S)
        except queue.Empty:
            self._slots.pop(call, None)
            raise PeerFailed(FailureKind.BUSY, "this peer is overloaded") from None
        if isinstance(outcome, PeerFailed):
            raise outcome
        return outcome

    def _feed(self, event: Received | Answered | Failed) -> None:
        """Hands the core an event of the network, sends and answers what it says. In no signal handler."""
        try:
            with self._core:
                if self._ended:
                    if isinstance(event, Received):
                        self._settle(event.call, _stopping())
                    return
                outputs = self._node.handle(event, time.monotonic())
                rest = [output for output in outputs if not self._send_or_reply(output)]
                due = self._node.wakeup()
                if rest or (due is not None and due < self._asleep_until):
                    self._asleep_until = -math.inf
                    self._inbox.put(_Decided(rest))
        except Exception as error:  # noqa: BLE001 - whatever it is, `run` raises it
            self.post_failure(error)

    def _send_or_reply(self, output: Output) -> bool:
        """Carries out what may be done in any thread."""
        match output:
            case Send():
                self._submit(self._calls, self._call, output)
            case Reply():
                self._settle(output.call, output.message)
            case Refuse():
                self._settle(output.call, PeerFailed(output.kind, output.reason))
            case _:
                return False
        return True

    # the driver's thread ---------------------------------------------------------------------------

    def run(self) -> str | None:
        """Runs until `Stopped` (None) or until the boot failed (the reason).

        What a worker raised that it should not have is raised here.
        """
        while not self._ended:
            event = self._next_event()
            match event:
                case None:
                    self._handle(Tick())
                case BaseException():
                    raise event
                case _Asked(request):
                    self._begin_round(request)
                case _Decided(outputs):
                    for output in outputs:
                        self._carry_out(output)
                case FetchFailed():
                    self._running.pop(event.fetch, None)
                    self._handle(event)
                case _:
                    self._handle(event)
            self._write_peers_when_due()
        return self._boot_failure

    def close(self) -> None:
        """Ends the workers; calls that still wait are refused."""
        with self._core:
            self._ended = True
        for running in self._running.values():
            running.cancellation.cancel()
        for call in list(self._slots):
            self._settle(call, _stopping())
        self._calls.shutdown(wait=False, cancel_futures=True)
        self._fetches.shutdown(wait=True, cancel_futures=True)

    def _next_event(self) -> Event | _Asked | _Decided | BaseException | None:
        """The next thing to handle; None when the core's time has come."""
        urgent, self._urgent = self._urgent, None
        if urgent is not None:
            return urgent
        peers_due = self._peers_due()
        with self._core:
            wakeup = self._node.wakeup()
            due = soonest(wakeup, peers_due)
            now = time.monotonic()
            if wakeup is not None and wakeup <= now:
                return None
            self._asleep_until = math.inf if due is None else due
        try:
            return self._inbox.get(timeout=None if due is None else max(0.0, due - now))
        except queue.Empty:
            return None
        finally:
            self._asleep_until = -math.inf

    def _handle(self, event: Event) -> None:
        with self._core:
            outputs = self._node.handle(event, time.monotonic())
        for output in outputs:
            if not self._send_or_reply(output):
                self._carry_out(output)

    def _carry_out(self, output: Output) -> None:
        match output:
            case Send() | Reply() | Refuse():
                raise AssertionError("these are carried out where they are decided")
            case Fetch():
                running = _RunningFetch(output, Cancellation())
                self._running[output.fetch] = running
                want_task = self._request is not None and self._request.want_task
                self._submit(self._fetches, self._fetch, running, want_task)
            case CancelFetch():
                cancelled = self._running.pop(output.fetch, None)
                if cancelled is not None:
                    cancelled.cancellation.cancel()
            case CollectionDone():
                self._answer(output)
            case Joined():
                self.peers = self._peer_list()
                self._shell.joined(self.peers, first=output.first)
            case BootFailed():
                self._boot_failure = output.reason
                self._ended = True
            case Evicted():
                self._shell.evict(output.equivocation, output.forgotten)
            case PeersChanged():
                if self._peers_dirty_at is None:
                    self._peers_dirty_at = time.monotonic() + PEERS_DELAY_S
            case Note():
                self._shell.note(output.event, dict(output.fields))
            case Stopped():
                self._ended = True
            case _:
                assert_never(output)

    def _settle(self, call: CallId, outcome: Response | PeerFailed) -> None:
        slot = self._slots.pop(call, None)
        if slot is not None:
            slot.put(outcome)

    def _peer_list(self) -> PeerList:
        with self._core:
            return self._node.peer_list()

    # rounds ----------------------------------------------------------------------------------------

    def _begin_round(self, request: AggregateRequest) -> None:
        self._rounds.begin(request)
        self._request = request
        ask = Ask(
            round=request.round,
            fan_out=request.fan_out,
            deadline_s=request.deadline_s,
            task=None if request.task is None else TaskDigest(request.task),
            refused=tuple((PeerId(r.peer_id), r.reason) for r in request.refused),
        )
        self._handle(ask)
        # What an abandoned round had finished is nobody's any more.
        self._running = {
            fetch: running for fetch, running in self._running.items() if running.order.round == request.round
        }

    def _answer(self, done: CollectionDone) -> None:
        request = self._request
        assert request is not None
        assert request.round == done.round
        fetched = [self._running.pop(fetch).result for fetch in done.fetched]
        answer = AggregateAnswer(
            instance=request.instance,
            round=done.round,
            models=tuple(model for model in fetched if model is not None),
            failed=tuple(FailedFetch(peer_id, reason) for peer_id, reason in done.failed),
            candidates=done.candidates,
            peers=done.peers,
            seconds=done.seconds,
            drawn=done.drawn,
            drawable=done.drawable,
            undecided=done.undecided,
        )
        self._shell.write_answer(answer)
        self._submit(self._fetches, self._rounds.clean, request)
        self._shell.note(
            "round_answered",
            {
                "round": done.round,
                "models": [model.peer_id for model in answer.models],
                "versions": [model.manifest.version for model in answer.models],
                "failed": len(answer.failed),
                "candidates": done.candidates,
                "peers": done.peers,
                "bytes": sum(model.size_bytes for model in answer.models if not model.reused),
                "seconds": round(done.seconds, 4),
            },
        )

    # workers ---------------------------------------------------------------------------------------

    def _submit(
        self, pool: ThreadPoolExecutor, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        pool.submit(work, *args, **kwargs).add_done_callback(self._report_crash)

    def _report_crash(self, future: Future[None]) -> None:
        if not future.cancelled():
            error = future.exception()
            if error is not None:
                self._inbox.put(error)

    def _call(self, send: Send) -> None:
        try:
            response = self._client.call(send.address, send.message, send.timeout_s)
        except RemoteError as error:
            self._feed(Failed(send.request, error.kind, str(error)))
        else:
            self._feed(Answered(send.request, response))

    def _fetch(self, running: _RunningFetch, want_task: bool) -> None:
        fetch = running.order.fetch
        told_at = 0.0

        def progress(received_bytes: int, header: ModelHeader) -> None:
            nonlocal told_at
            now = time.monotonic()
            if now - told_at >= PROGRESS_PERIOD_S:
                told_at = now
                self.post(FetchProgressed(fetch, received_bytes, header.size_bytes))

        try:
            running.result = self._rounds.fetch(
                running.order, want_task=want_task, cancellation=running.cancellation, progress=progress
            )
        except Lied as error:
            self.post(FetchFailed(fetch, error.kind, str(error)))
            self.post(Proved(error.proof))
        except RemoteError as error:
            self.post(FetchFailed(fetch, error.kind, str(error)))
        except StateError as error:
            self.post(FetchFailed(fetch, FailureKind.LOCAL, str(error)))
        else:
            self.post(FetchFinished(fetch))
            proof = self._rounds.compare(running.order, running.result)
            if proof is not None:
                self.post(Proved(proof))

    # the peer list on disk -------------------------------------------------------------------------

    def _peers_due(self) -> float | None:
        if self._peers_dirty_at is not None:
            return self._peers_dirty_at
        if not self.peers.peers:
            return None
        refresh_s = min(max(MIN_PEERS_REFRESH_S, float(len(self.peers.peers))), MAX_PEERS_REFRESH_S)
        return self._peers_written_at + refresh_s

    def _write_peers_when_due(self) -> None:
        due = self._peers_due()
        if due is not None and time.monotonic() >= due:
            self._peers_dirty_at = None
            self._peers_written_at = time.monotonic()
            self.peers = self._peer_list()
            self._shell.write_peers(self.peers)


def _stopping() -> PeerFailed:
    return PeerFailed(FailureKind.UNREACHABLE, "this peer is stopping")
