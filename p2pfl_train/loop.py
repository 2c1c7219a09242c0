"""The training loop of a peer, from top to bottom.

A cycle trains, publishes, and averages with what has come. The request is made while the cycle trains,
just so early that the answer is there at its end: nothing here waits for the network, unless it is
asked to (`--blocking`) and once at the end, and what is averaged is as fresh as it can be. (A model
that is d cycles old when it is averaged in slows the common progress to about 1/(1 + d).)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from p2pfl_state import home
from p2pfl_state.layout import StateDir
from p2pfl_state.lock import ProcessLock
from rich.console import Console

from p2pfl_train import checkpoint
from p2pfl_train.aggregate import check_models
from p2pfl_train.batches import fixed_part, size_of
from p2pfl_train.config import RunOptions
from p2pfl_train.errors import WeightsRefused
from p2pfl_train.evaluate import Evaluation, Schedule, evaluate
from p2pfl_train.exchange import LATE_S, Exchange, Outcome, Wish, next_round, peers_that_differ
from p2pfl_train.learner import MAX_DIVERGED, Learner
from p2pfl_train.liars import Jury
from p2pfl_train.pace import Lead, Pace
from p2pfl_train.report import CycleRecord, Report
from p2pfl_train.startup import TaskSource, data_record, load_initial, make_learner, receive_task
from p2pfl_train.tasks import build_task, describe
from p2pfl_train.tensors import layout_of
from p2pfl_train.weights import TensorFile, copy_into

FINAL_DEADLINE_S = 5.0
"""The last request may take this long at most: whoever stops us does not want to wait."""
RECEIVE_PAUSE_S = 1.0
"""Between two requests of a peer that has nothing to train on, unless a period is given."""
FINAL_EVALUATION_S = 5.0
"""Who stops us by a signal waits at most about this long for the last measurement, unless asked for."""


def run(
    options: RunOptions,
    source: TaskSource,
    console: Console,
    stop: Callable[[], bool],
    training_begins: Callable[[], None] = lambda: None,
) -> None:
    """Trains until an option or `stop` ends it. Raises `TrainError`, `StateError`.

    `training_begins` is called once everything is loaded: from there on an end has something to save.
    """
    options.check()
    torch.set_num_threads(options.threads)
    state = StateDir(options.state)
    home.prepare(state)
    home.check(state)
    lock = ProcessLock(state.trainer_lock)
    lock.acquire()
    try:
        task = None if source.from_network else build_task(source.options)
        saved = checkpoint.load(state.trainer_state)
        first_round = next_round(state, saved.counters.round if saved else 0)
        name = state.root.name
        with Exchange(state, first_round) as exchange, Report(state.metrics, console, name) as report:
            record = CycleRecord()
            with record.timed("starting"):
                exchange.wait_for_boot(stop)
            if task is None:
                timeout_s = options.exchange.receive_timeout_s
                task = receive_task(state, source, exchange, record, timeout_s=timeout_s, stop=stop)
            if task is None or stop():
                return
            console.print(describe(task))
            learner = make_learner(state, task, saved, options.training)
            learner.counters = replace(learner.counters, data=data_record(source.options))
            if learner.published is not None:
                report.say(f"goes on from cycle {learner.counters.cycle}, version {learner.counters.version}")
            else:
                origin = load_initial(learner, exchange, record, options, stop)
                report.say(f"initial weights: {origin}")
            training_begins()
            Loop(options, learner, exchange, report, stop).run(record)
    finally:
        lock.release()


class Loop:
    """The cycles of one life."""

    def __init__(
        self,
        options: RunOptions,
        learner: Learner,
        exchange: Exchange,
        report: Report,
        stop: Callable[[], bool],
    ) -> None:
        self._options = options
        self._learner = learner
        self._exchange = exchange
        self._report = report
        self._stop = stop
        self._started_at_s = time.monotonic()
        self._schedule = Schedule(options.evaluation.every_cycles, self._started_at_s)
        self._part = fixed_part(learner.task.evaluation, options.evaluation.examples)
        self._check = partial(
            check_models, learner.state, layout=layout_of(learner.tensors), task=learner.counters.task
        )
        self._cycles_done = 0
        self._diverged = 0
        parents = () if learner.published is None else learner.published.parents
        self._has_averaged = learner.initial is not None or bool(parents)
        """Whether others' weights may be in ours: then they can be why we diverge, no reason to give up."""
        self._asked_at_s = float("-inf")
        self._lead = Lead()
        self._reached_target = False
        self._told_of_others = False
        self._jury = Jury(options.aggregation, options.exchange.fan_out, report.say)
        self._example_s: float | None = None
        self._waited_s = exchange.waited_s

    def run(self, record: CycleRecord) -> None:
        """Cycles until the end, then one last average. `record` is what the start brought."""
        while not self._ended():
            self._cycle(record)
            self._cycles_done += 1
            record = CycleRecord(peers=record.peers)
        if self._cycles_done:
            if self._stop():
                self._report.say("stopping: one last average (a second interrupt stops at once)")
            self._finish(record)

    def _cycle(self, record: CycleRecord) -> None:
        learner = self._learner
        learner.counters = replace(learner.counters, cycle=learner.counters.cycle + 1)
        trained = self._train(record)
        recovered = self._trains and not trained
        evaluating = size_of(self._part) > 0 and self._schedule.due(learner.counters.cycle, time.monotonic())
        if evaluating and trained:
            record.note_trained(self._evaluate(record))
        if trained:
            recovered = not self._publish(record)
        # Nobody waits for the network here, at most for the end of a verification.
        self._take_answer(record, self._exchange.take, wanted=not recovered)
        if self._waits and not recovered and self._due():
            with record.timed("publishing"):
                self._ask(record, self._options.exchange.deadline_s)
            self._take_answer(record, partial(self._exchange.wait, self._stop))
        if evaluating and record.models:
            record.note_averaged(self._evaluate(record))
        if record.models and not self._trains:
            self._publish(record)
        self._write(record)
        if not self._trains and not self._ended():
            self._exchange.pause(self._options.exchange.every.seconds or RECEIVE_PAUSE_S, self._stop)

    @property
    def _trains(self) -> bool:
        return self._learner.batches is not None

    @property
    def _waits(self) -> bool:
        """Whether to ask after a cycle and wait, instead of asking while it trains."""
        return self._options.exchange.blocking or not self._trains

    def _train(self, record: CycleRecord) -> bool:
        """Local steps; whether there is something new and sound to publish."""
        if not self._trains:
            return False
        steps = self._learner.steps_of(self._options.training)
        pace = Pace(steps, time.monotonic())
        with record.timed("training"):
            loss = self._learner.train(steps, partial(self._between_steps, record, pace))
        if math.isfinite(loss):
            record.loss = loss
            return True
        self._recover("the loss is not a number")
        return False

    def _between_steps(self, record: CycleRecord, pace: Pace) -> bool:
        """Looks for the answer, asks when it is time; whether to end the cycle early."""
        self._exchange.poll()
        left_s = pace.step_done(time.monotonic())
        if not self._waits and left_s <= self._lead.seconds and self._due():
            self._ask(record, self._options.exchange.deadline_s)
        return self._stop() or self._out_of_time()

    def _recover(self, reason: str) -> None:
        self._diverged += 1
        if self._diverged >= MAX_DIVERGED and self._has_averaged:
            self._report.say(
                f"{reason}: what was averaged in may be why, or --lr; beginning anew from the seed"
            )
            self._learner.begin_anew()
            self._diverged, self._has_averaged = 0, False
            return
        if self._diverged >= MAX_DIVERGED:
            rate = self._options.training.optimiser.learning_rate
            raise WeightsRefused(
                f"{reason} in {MAX_DIVERGED} cycles in a row: lower --lr (it is {rate:g}) or look into the "
                "data; the last good model stays published"
            )
        self._report.say(f"{reason}: going back to the last good model, without momentum")
        self._learner.recover()

    def _publish(self, record: CycleRecord) -> bool:
        """Publishes the current weights; false when they were not sound and we went back."""
        metrics = {
            "loss": record.loss,
            "accuracy_trained": record.accuracy_trained,
            "accuracy_averaged": record.accuracy_averaged,
        }
        learner = self._learner
        learner.counters = replace(learner.counters, round=self._exchange.last_round)
        with record.timed("publishing"):
            try:
                learner.publish({name: value for name, value in metrics.items() if value is not None})
                self._diverged = 0
            except WeightsRefused as error:
                self._recover(str(error))
                return False
        return True

    def _due(self) -> bool:
        """Whether to ask now. At the end of a run the last request takes the place of this one."""
        if not self._exchange.ready or (self._trains and self._ended()):
            return False
        every = self._options.exchange.every
        if every.cycles is not None:
            return self._learner.counters.cycle % every.cycles == 0
        return time.monotonic() - self._asked_at_s >= (every.seconds or 0.0)

    def _ask(self, record: CycleRecord, deadline_s: float) -> None:
        fan_out = self._jury.ask(own_vote=self._learner.samples > 0)
        wish = Wish(fan_out, deadline_s, self._learner.counters.task)
        self._asked_at_s = time.monotonic()
        record.note_asked(self._exchange.ask(wish, self._check))

    def _take_answer(
        self, record: CycleRecord, get: Callable[[], Outcome | None], *, wanted: bool = True
    ) -> None:
        """Averages what came, if a round has ended.

        Not `wanted` after a recovery: it may be what made the recovery necessary, and the restored
        weights must get a cycle without it.
        """
        outcome = get()
        if outcome is None:
            return
        record.note_outcome(outcome)
        if outcome.failure is not None:
            self._report.say(f"round {outcome.round} failed: {outcome.failure}")
        self._tell_of_other_tasks(outcome)
        if outcome.seconds is not None:
            self._lead.round_took(outcome.seconds)
        for refusal in outcome.checked.refusals:
            self._report.say(f"refused a model of peer {refusal.peer_id[:16]}: {refusal.reason}")
        if wanted and outcome.checked.contributions:
            with record.timed("averaging"):
                told = self._jury.aggregate(self._learner, outcome)
            record.note_aggregated(told)
            self._has_averaged |= told.models > 0

    def _tell_of_other_tasks(self, outcome: Outcome) -> None:
        """Once: peers are here, and none of them can be averaged with."""
        answer = outcome.answer
        if self._told_of_others or answer is None or answer.candidates or not answer.peers:
            return
        others, untagged = peers_that_differ(self._learner.state, self._learner.counters.task)
        self._told_of_others = bool(others or untagged)
        if untagged:
            self._report.say(
                f"nothing to average: {untagged} peers train this task, but none has all tags of this one: "
                "give the daemons that belong together the same --tags"
            )
        elif others:
            self._report.say(
                f"nothing to average: {others} peers are here and train another task: their model, classes, "
                "order of classes, input size, channels or scaling differ from what stands above; use the "
                "same --classes, --image-size, --channels, --mean, --std and --model everywhere, or take "
                "theirs with --join"
            )

    def _evaluate(self, record: CycleRecord) -> Evaluation:
        """Measures the current weights on the fixed part of the evaluation data."""
        before_s = record.seconds.get("evaluating", 0.0)
        with record.timed("evaluating"):
            measured = evaluate(self._learner.model, self._learner.task, self._part)
        spent_s = record.seconds["evaluating"] - before_s
        self._schedule.spent(spent_s)
        self._example_s = spent_s / size_of(self._part)
        return measured

    def _measures_at_the_end(self) -> bool:
        examples = size_of(self._learner.task.evaluation)
        wanted = self._options.evaluation.final
        if wanted is None and self._stop():
            # Both models, on everything, in a process that others may share the processor with.
            wanted = self._example_s is not None and 2 * examples * self._example_s <= FINAL_EVALUATION_S
        return examples > 0 and wanted is not False

    def _write(self, record: CycleRecord, *, final: bool = False) -> None:
        record.aggregate = str(self._options.aggregation.rule)
        record.cycle, record.version = self._learner.counters.cycle, self._learner.counters.version
        record.seconds["waiting"] = self._exchange.waited_s - self._waited_s
        self._waited_s = self._exchange.waited_s
        self._report.write(record, final=final)
        accuracy = record.accuracy_averaged if record.models else record.accuracy_trained
        target = self._options.stop.target_accuracy
        if target is not None and accuracy is not None and accuracy >= target:
            self._reached_target = True

    def _out_of_time(self) -> bool:
        minutes = self._options.stop.minutes
        return minutes is not None and time.monotonic() - self._started_at_s >= 60 * minutes

    def _ended(self) -> bool:
        cycles = self._options.stop.cycles
        done = cycles is not None and self._cycles_done >= cycles
        return self._stop() or done or self._out_of_time() or self._reached_target

    def _finish(self, record: CycleRecord) -> None:
        """One last average, published before it is measured; then both models on all evaluation data."""
        learner = self._learner
        # The map keeps the trained weights readable after the averaged ones take their name.
        trained = TensorFile.open(learner.state.model) if learner.published and self._trains else None
        averaged = False
        if self._trains:
            self._exchange.poll()
            if self._exchange.ready:
                self._ask(record, min(FINAL_DEADLINE_S, self._options.exchange.deadline_s))
            give_up_at_s = time.monotonic() + FINAL_DEADLINE_S + LATE_S
            wait = partial(self._exchange.wait, lambda: time.monotonic() >= give_up_at_s)
            self._take_answer(record, wait)
            # The last cycle's average counts too: it has not been published yet.
            averaged = bool(learner.parents) and self._publish(record)
            learner.save_counters()
        everything = learner.task.evaluation
        if self._measures_at_the_end():
            with record.timed("evaluating"):
                if averaged:
                    record.note_averaged(evaluate(learner.model, learner.task, everything))
                if trained is not None:
                    copy_into(trained, learner.tensors)
                    record.note_trained(evaluate(learner.model, learner.task, everything))
        self._write(record, final=True)
