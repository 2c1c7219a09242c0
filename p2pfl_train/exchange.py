"""The trainer's side of the state directory: waits for the daemon, asks for models, takes answers.

One request is outstanding at a time. `poll` is what the training loop calls between two steps; it
costs a `stat`. When the answer is there, a thread verifies the models while training goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from p2pfl_state.atomic import read_bounded
from p2pfl_state.errors import MalformedFile, StateError, UnknownContract
from p2pfl_state.fields import parse_object
from p2pfl_state.layout import StateDir
from p2pfl_state.lock import is_held
from p2pfl_state.markers import (
    MAX_FAN_OUT,
    AggregateAnswer,
    AggregateRequest,
    BootDone,
    Refusal,
    new_instance,
    read_answer,
    read_boot_done,
    read_request,
    write_request,
)
from p2pfl_state.wait import FolderWatch

from p2pfl_train.aggregate import Checked
from p2pfl_train.errors import NetworkDown

BOOT_PATIENCE_S = 15.0
"""How long the trainer waits for a daemon to take its lock; from then on the daemon decides."""
LATE_S = 1.0
"""A round has failed when it is unanswered this long after its deadline."""
LIVENESS_S = 0.25
"""How often a poll looks whether the daemon lives; a guess, the look costs some microseconds."""

MAX_PEERS_BYTES = 64 << 20

Check = Callable[[AggregateAnswer], Checked]
Marker = TypeVar("Marker")


@dataclass(frozen=True)
class Wish:
    """What a request asks for, see `p2pfl_state.markers.AggregateRequest`."""

    fan_out: int
    deadline_s: float
    task: str | None
    want_task: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a round ended."""

    round: int
    answer: AggregateAnswer | None
    """None when none came in time, or the daemon was lost."""
    checked: Checked
    failure: str | None
    """Why the round counts as failed, in one line; None for a good one."""
    seconds: float | None = None
    """From the request to models that may be averaged; None when none came."""


@dataclass
class _Outstanding:
    round: int
    wish: Wish
    asked_at_s: float
    check: Check | None
    answer: AggregateAnswer | None = None
    checking: Future[Checked] | None = None
    checked_at_s: float | None = None


def peers_that_differ(state: StateDir, task: str) -> tuple[int, int]:
    """How many live peers publish a model of another task, and how many one of `task` without all tags of
    this peer, by `peers.json`; 0 where it cannot be read."""
    try:
        data = read_bounded(state.peers, MAX_PEERS_BYTES)
        value = {} if data is None else parse_object(data, "peers.json")
    except StateError:
        return 0, 0
    listed, me = value.get("peers"), value.get("self")
    serving = [
        entry
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, dict) and entry.get("published") is True and entry.get("state") == "alive"
    ]
    of_task = [entry for entry in serving if entry.get("task") == task]
    wanted = _tags(me) if isinstance(me, dict) else set()
    return len(serving) - len(of_task), sum(not wanted <= _tags(entry) for entry in of_task)


def _tags(entry: dict[str, object]) -> set[str]:
    tags = entry.get("tags")
    return {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()


def sound(read: Callable[[StateDir], Marker | None], state: StateDir) -> Marker | None:
    """The marker that `read` finds; None also for a damaged one.

    Markers are not synced, so a power failure can leave one empty or cut short: it speaks to nobody.
    Raises `StateError`, for a marker of an unknown contract too.
    """
    try:
        return read(state)
    except UnknownContract:
        raise
    except MalformedFile:
        return None


def next_round(state: StateDir, remembered: int) -> int:
    """The first round that no life of this trainer has asked for. Raises `StateError`."""
    request, answer = sound(read_request, state), sound(read_answer, state)
    return 1 + max(remembered, request.round if request else 0, answer.round if answer else 0)


def judge(answer: AggregateAnswer) -> str | None:
    """Why an answered round has failed, or None."""
    if not answer.models and answer.candidates > 0:
        reasons = sorted({failure.reason for failure in answer.failed})
        return f"none of {answer.candidates} peers gave its model" + (f" ({reasons[0]})" if reasons else "")
    return None


class Exchange:
    """Requests and answers of one life of the trainer. A context manager; used by one thread."""

    def __init__(
        self, state: StateDir, first_round: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives seconds and never goes back."""
        self._state = state
        self._clock = clock
        self._instance = new_instance()
        self._next_round = first_round
        self._accepted: BootDone | None = None
        self._looked_at_s = float("-inf")
        self._outstanding: _Outstanding | None = None
        self._answer_seen: tuple[int, int, int] | None = None
        self._refused: list[Refusal] = []
        self.waited_s = 0.0
        """Seconds so far in which the caller stood still for an answer or the end of a verification."""
        self._checker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify")
        self._watch = FolderWatch(state.root)

    @property
    def ready(self) -> bool:
        """Whether a request can be made: the daemon is there and none is outstanding."""
        return self._accepted is not None and self._outstanding is None

    @property
    def last_round(self) -> int:
        return self._next_round - 1

    def wait_for_boot(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Waits until the network is up, or `stop` says so.

        15 s while no daemon holds its lock; while one does, its own verdict rules. Raises
        `NetworkDown`, `StateError`.
        """
        unheld_since_s: float | None = None
        while not stop():
            self._look_for_daemon()
            if self._accepted is not None:
                return
            now_s = self._clock()
            if is_held(self._state.daemon_lock):
                unheld_since_s = None
            elif unheld_since_s is None:
                unheld_since_s = now_s
            elif now_s - unheld_since_s >= BOOT_PATIENCE_S:
                raise NetworkDown(
                    f"no daemon runs on {self._state.root}: start one with "
                    f"'p2pfl-net serve --port PORT --state {self._state.root}', or both with make run, or "
                    "look into its daemon.log"
                )
            self._watch.wait_changed(0.2)

    def ask(self, wish: Wish, check: Check | None = None) -> int:
        """Writes a request and returns its round; `ready` must be true.

        `check` verifies the models of the answer, in a thread of its own. Raises `StateError`.
        """
        assert self.ready
        number = self._next_round
        self._next_round += 1
        request = AggregateRequest(
            instance=self._instance,
            round=number,
            fan_out=wish.fan_out,
            deadline_s=wish.deadline_s,
            task=wish.task,
            want_task=wish.want_task,
            delete_below=number,
            refused=tuple(self._refused[:MAX_FAN_OUT]),
        )
        write_request(self._state, request)
        self._refused.clear()
        self._outstanding = _Outstanding(number, wish, self._clock(), check)
        return number

    def poll(self) -> None:
        """Looks for the answer and starts its verification; cheap, to be called between two steps."""
        now_s = self._clock()
        if self._outstanding is not None and self._outstanding.answer is None:
            self._look_for_answer(self._outstanding)
        if now_s - self._looked_at_s >= LIVENESS_S:
            self._looked_at_s = now_s
            self._look_for_daemon()

    def take(self) -> Outcome | None:
        """The end of the outstanding round if it has ended, which makes room for the next.

        Waits for a verification that runs, never for the daemon. Raises `StateError`.
        """
        self.poll()
        current = self._outstanding
        if current is None:
            return None
        if current.answer is not None:
            checked = self._checked(current)
            self._refused.extend(checked.refusals)
            seconds = None
            if checked.contributions and current.checked_at_s is not None:
                seconds = current.checked_at_s - current.asked_at_s
            outcome = Outcome(current.round, current.answer, checked, judge(current.answer), seconds)
        elif self._accepted is None:
            outcome = Outcome(current.round, None, Checked(), "the daemon was lost")
        elif self._clock() - current.asked_at_s > current.wish.deadline_s + LATE_S:
            outcome = Outcome(current.round, None, Checked(), "unanswered a second after its deadline")
        else:
            return None
        self._outstanding = None
        return outcome

    def wait(self, give_up: Callable[[], bool] = lambda: False) -> Outcome | None:
        """Waits for the end of the outstanding round, which its deadline bounds.

        None without one, or when `give_up` said so first; then it stays outstanding.
        """
        while self._outstanding is not None and not give_up():
            outcome = self.take()
            if outcome is not None:
                return outcome
            with self._waiting():
                self._watch.wait_changed(0.1)
        return None

    def pause(self, seconds: float, stop: Callable[[], bool]) -> None:
        """Lets `seconds` pass, or less when `stop` says so; changes in the directory do not end it."""
        until_s = self._clock() + seconds
        while not stop() and (left_s := until_s - self._clock()) > 0:
            self._watch.wait_changed(min(left_s, 0.2))

    def _look_for_answer(self, current: _Outstanding) -> None:
        try:
            found = self._state.aggregate_done.stat()
        except FileNotFoundError:
            return
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._answer_seen:
            return
        answer = sound(read_answer, self._state)
        self._answer_seen = seen
        if answer is None or answer.instance != self._instance or answer.round != current.round:
            return
        current.answer = answer
        if current.check is not None:
            current.checking = self._checker.submit(self._run_check, current, current.check)

    def _checked(self, current: _Outstanding) -> Checked:
        if current.checking is None:
            return Checked()
        if not current.checking.done():
            with self._waiting():
                return current.checking.result()
        return current.checking.result()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        started_s = self._clock()
        try:
            yield
        finally:
            self.waited_s += self._clock() - started_s

    def _run_check(self, current: _Outstanding, check: Check) -> Checked:
        assert current.answer is not None
        try:
            return check(current.answer)
        finally:
            current.checked_at_s = self._clock()

    def _look_for_daemon(self) -> None:
        boot = sound(read_boot_done, self._state) if is_held(self._state.daemon_lock) else None
        if boot is None or self._accepted is None or boot.instance != self._accepted.instance:
            # The loss of the daemon that saw the request is told by `take` before a new life counts.
            self._accepted = boot if self._outstanding is None else None

    def close(self) -> None:
        """Ends the threads."""
        self._checker.shutdown(cancel_futures=True)
        self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
