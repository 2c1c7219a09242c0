"""From an empty or used state directory to a peer that can learn: its task, its weights, its counters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from p2pfl_state import atomic, taskfile
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest
from p2pfl_state.markers import MAX_DEADLINE_S, MAX_FAN_OUT, MIN_DEADLINE_S
from p2pfl_state.taskfile import TaskFile

from p2pfl_train import consent
from p2pfl_train.aggregate import check_models
from p2pfl_train.batches import Batches, size_of
from p2pfl_train.checkpoint import Counters, Saved
from p2pfl_train.config import RunOptions, TrainingOptions
from p2pfl_train.errors import ModelError, NetworkDown, SourceNotAccepted, TooFewModels, WeightsRefused
from p2pfl_train.exchange import Exchange, Outcome, Wish
from p2pfl_train.learner import Learner, fresh_model, make_optimiser
from p2pfl_train.liars import byzantine_among
from p2pfl_train.report import CycleRecord
from p2pfl_train.task import Task
from p2pfl_train.tasks import TaskOptions, join_task, located
from p2pfl_train.taskspec import spec_to_taskfile
from p2pfl_train.tensors import layout_of
from p2pfl_train.weights import TensorFile, copy_into, load_published

INITIAL_DEADLINE_S = 3.0
"""The network may take at least this long to offer initial weights, however short `--deadline` is; a
guess. Where no peer of the task has published, the answer comes at once."""
JOIN_PAUSE_S = 1.0
"""Between two questions for a task when nobody had one."""


@dataclass(frozen=True)
class TaskSource:
    """Where the task comes from."""

    options: TaskOptions
    join: bool = False
    """Take the task from the network although there is data."""
    accepted: frozenset[str] = frozenset()
    """SHA-256 of sources that may run."""

    @property
    def from_network(self) -> bool:
        return self.join or self.options.data is None


def receive_task(
    state: StateDir,
    source: TaskSource,
    exchange: Exchange,
    record: CycleRecord,
    *,
    timeout_s: float,
    stop: Callable[[], bool],
) -> Task | None:
    """The network's task with this peer's data, if any; None when `stop` came first.

    What an earlier life received is used again. Raises `NetworkDown` when no peer offers a task within
    `timeout_s`, and all that `join_task` raises.
    """
    known = taskfile.read_task(state.task)
    if known is not None:
        return _join(state, source, known)
    with record.timed("starting"):
        received = _wait_task(state, exchange, record, timeout_s, stop)
    return None if received is None else _join(state, source, received)


def _wait_task(
    state: StateDir, exchange: Exchange, record: CycleRecord, timeout_s: float, stop: Callable[[], bool]
) -> TaskFile | None:
    """Asks until somebody gives a task, which comes with a model, however long that takes to transfer."""
    give_up_at_s = time.monotonic() + timeout_s
    while not stop():
        left_s = give_up_at_s - time.monotonic()
        deadline_s = min(max(left_s, MIN_DEADLINE_S), MAX_DEADLINE_S)
        received = _ask_for_task(state, exchange, record, deadline_s, stop)
        if received is not None:
            return received
        if time.monotonic() >= give_up_at_s:
            why = "" if record.failure is None else f" ({record.failure})"
            raise NetworkDown(
                f"no peer offered a task within {timeout_s:g} s{why}: start a peer with data first, "
                "or wait longer with --receive-timeout"
            )
        exchange.pause(JOIN_PAUSE_S, stop)
    return None


def _join(state: StateDir, source: TaskSource, file: TaskFile) -> Task:
    """`join_task`; code that is not accepted is laid down to be read, never to be run from there, and shown
    to whoever sits at the terminal."""
    try:
        return join_task(source.options, file, source.accepted)
    except SourceNotAccepted as error:
        atomic.write_bytes(state.received_source, error.source.encode())
        if consent.is_given(error):
            return join_task(source.options, file, source.accepted | {error.digest})
        raise ModelError(f"{error}; it lies in {state.received_source}") from None


def _ask_for_task(
    state: StateDir, exchange: Exchange, record: CycleRecord, deadline_s: float, stop: Callable[[], bool]
) -> TaskFile | None:
    exchange.poll()
    if not exchange.ready:
        return None
    record.note_asked(exchange.ask(Wish(1, deadline_s, None, want_task=True)))
    outcome = exchange.wait(stop)
    if outcome is None:
        return None
    record.note_outcome(outcome)
    if outcome.answer is None or not outcome.answer.models:
        return None
    return taskfile.read_task(state.fetched_task(outcome.round))


def make_learner(state: StateDir, task: Task, saved: Saved | None, training: TrainingOptions) -> Learner:
    """A learner with the published weights, else those that the task's seed gives.

    Raises `WeightsRefused` when the published model cannot be used, `ModelError`, `StateError`.
    """
    model = fresh_model(task)
    digest = task.spec.digest
    if saved is not None and saved.counters.task != digest:
        saved = None
    learner = Learner(
        state=state,
        task=task,
        model=model,
        optimiser=None,
        batches=None,
        counters=saved.counters if saved else Counters(digest),
    )
    published = _load_own(learner)
    if published is not None:
        learner.published = published
        ahead = max(0, published.version - learner.counters.version)
        learner.counters = replace(
            learner.counters,
            version=learner.counters.version + ahead,
            cycle=learner.counters.cycle + ahead,
        )
    else:
        taskfile.write_task(state.task, spec_to_taskfile(task.spec))
    if size_of(task.train):
        learner.optimiser = make_optimiser(model, training.optimiser)
        learner.batches = Batches(
            task.train, training.batch_size, training.sampling_seed, learner.counters.batches
        )
        if saved is not None and published is not None:
            saved.restore(learner.optimiser)
    return learner


def _load_own(learner: Learner) -> Manifest | None:
    path = learner.state.model
    if not path.exists():
        return None
    remedy = f"choose another --state DIR, or delete {path.name} in {path.parent} to start anew"
    try:
        if TensorFile.open(path).manifest().task != learner.counters.task:
            raise WeightsRefused("the published model belongs to another task")
        return load_published(path, learner.model)
    except WeightsRefused as error:
        raise WeightsRefused(f"{error}: {remedy}") from None


def load_initial(
    learner: Learner, exchange: Exchange, record: CycleRecord, options: RunOptions, stop: Callable[[], bool]
) -> str:
    """Gives the learner the weights of a peer of its task, if one has any; says whose it has, and why.

    Where liars are expected, of as many as a round asks, and what the rule makes of them. Waits as long
    as a model may take.
    """
    exchange.poll()
    if not exchange.ready:
        return _from_seed("the daemon was lost")
    digest = learner.counters.task
    check = partial(check_models, learner.state, layout=layout_of(learner.tensors), task=digest)
    robust = options.aggregation.rule.withstands_liars
    fan_out = (
        min(options.exchange.fan_out + 1, MAX_FAN_OUT) if robust else 1
    )  # the own weights are no vote yet
    wish = Wish(fan_out, max(options.exchange.deadline_s, INITIAL_DEADLINE_S), digest)
    with record.timed("starting"):
        record.note_asked(exchange.ask(wish, check))
        outcome = exchange.wait(stop)
    if outcome is None:
        return _from_seed("stopped before the network answered")
    record.note_outcome(outcome)
    models = outcome.checked.contributions
    if robust and models:
        return _from_many(learner, outcome, options)
    for contribution in models:
        copy_into(contribution.file, learner.tensors)
        learner.initial = contribution.file
        version = contribution.file.manifest().version
        return f"from peer {contribution.file.path.stem[:16]}, its version {version}"
    for refusal in outcome.checked.refusals:
        return _from_seed(f"refused the model of peer {refusal.peer_id[:16]}: {refusal.reason}")
    return _from_seed(outcome.failure or "no peer of this task has published")


def _from_many(learner: Learner, outcome: Outcome, options: RunOptions) -> str:
    """One stranger's weights would be a liar's to choose."""
    rule, models = options.aggregation.rule, outcome.checked.contributions
    try:
        byzantine = byzantine_among(options.aggregation, outcome, options.exchange.fan_out)
        learner.begin_with(models, rule, byzantine)
    except TooFewModels as error:
        return _from_seed(str(error))
    return f"from {len(models)} peers by {rule}, of which {byzantine} may lie"


def _from_seed(why: str) -> str:
    return f"from the task's seed ({why})"


def data_record(options: TaskOptions) -> dict[str, Any]:
    """What `evaluate` needs to make the same evaluation data again, from any folder; JSON."""
    data = None if options.data is None else located(options.data)
    return {**asdict(options), "data": data, "data_dir": str(options.data_dir.absolute())}
