"""A malicious peer: takes the trainer's place beside a real daemon and publishes what an attack says.

For tests of one's own network. Start a daemon (`p2pfl-net serve`), then this on its state directory. It
asks for the models of as many peers as it may, and makes its lie from them; with other liars among them
it knows less than an attacker who knows his accomplices.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from p2pfl_state import home
from p2pfl_state.layout import StateDir
from p2pfl_state.lock import ProcessLock
from p2pfl_state.markers import MAX_FAN_OUT

from p2pfl_net.usage import Parser
from p2pfl_train.aggregate import check_models
from p2pfl_train.config import TrainingOptions
from p2pfl_train.exchange import Exchange, Wish, next_round
from p2pfl_train.learner import Learner
from p2pfl_train.redteam.attacks import KINDS, Attack, Liars, parse_attack
from p2pfl_train.redteam.crew import CLAIMED_SAMPLES
from p2pfl_train.redteam.peer import Peer, flipped, plausible
from p2pfl_train.report import CycleRecord
from p2pfl_train.startup import TaskSource, make_learner, receive_task
from p2pfl_train.tasks import TaskOptions, build_task
from p2pfl_train.tensors import layout_of
from scripts.failures import WrongUsage
from scripts.signals import StopSignals

FACTOR = 1.5
"""Of a direction whose factor is searched in a simulation: here the rule of the others is not known."""
DEADLINE_S = 5.0
TASK_PATIENCE_S = 300.0
LOCAL_STEPS = 10
MAX_PAUSE_S = 3600.0
EPILOG = "exit codes: as for p2pfl-train run"


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(program, __doc__, EPILOG)
    add = parser.add_argument
    add("--state", type=Path, required=True, metavar="DIR", help="of a running daemon")
    add("--attack", default="alie", help=f"{', '.join(_possible())}; with a factor as alie:1.5")
    add("--data", help="for label-flip: as for p2pfl-train run; else the task comes from the network")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where known data sets are kept")
    add("--shard", metavar="K/N", help="for label-flip: the part of the data")
    add("--model", help="with --data: as for p2pfl-train run")
    add("--every", type=float, default=0.5, metavar="SECONDS", help="between two lies (0.5)")
    return parser


def _possible() -> list[str]:
    """What one file for all can say, and is a lie."""
    return [name for name in KINDS if name not in ("none", "dissensus", "changing")]


@dataclass
class LyingLearner(Learner):
    """Claims more samples than it has."""

    @property
    def samples(self) -> int:
        return CLAIMED_SAMPLES


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `TrainError`, `StateError`, `ScriptFailed`."""
    options = build_parser(program).parse_args(arguments)
    attack = parse_attack(options.attack)
    if attack.name not in _possible():
        possible = ", ".join(_possible())
        raise WrongUsage(
            f"--attack {options.attack}: a daemon serves one model to all; use one of {possible}"
        )
    if not 0 < options.every <= MAX_PAUSE_S:
        raise WrongUsage(f"--every {options.every} must be above 0, at most {MAX_PAUSE_S:g} seconds")
    if attack.kind.flips_labels and options.data is None:
        raise WrongUsage("--attack label-flip learns: give it --data")
    if not options.state.is_dir():
        raise WrongUsage(
            f"--state {options.state}: no such directory; start a daemon (p2pfl-net serve) first"
        )
    torch.set_num_threads(1)
    state = StateDir(options.state)
    home.prepare(state)
    home.check(state)
    lock = ProcessLock(state.trainer_lock)
    lock.acquire()
    try:
        with Exchange(state, next_round(state, 0)) as exchange:
            exchange.wait_for_boot(lambda: signals.asked)
            learner = _learner(options, state, exchange, lambda: signals.asked)
            if learner is not None:
                _lie(attack, learner, exchange, options.every, lambda: signals.asked)
    finally:
        lock.release()
    return 0


def _learner(
    options: argparse.Namespace, state: StateDir, exchange: Exchange, stop: Callable[[], bool]
) -> LyingLearner | None:
    """The network's task, or that of the data; None when `stop` came first."""
    if options.data is None:
        source = TaskSource(TaskOptions(data=None))
        task = receive_task(state, source, exchange, CycleRecord(), timeout_s=TASK_PATIENCE_S, stop=stop)
    else:
        data = TaskOptions(
            options.data, options.data_dir, shard=options.shard, model=options.model, partition="iid"
        )
        task = build_task(data)
    if task is None:
        return None
    made = make_learner(state, task, None, TrainingOptions())
    return LyingLearner(state, task, made.model, None, None, made.counters, published=made.published)


def _lie(
    attack: Attack, learner: LyingLearner, exchange: Exchange, every_s: float, stop: Callable[[], bool]
) -> None:
    """Asks and publishes until `stop`."""
    mouth = Peer(learner.task, learner.model, None, None)
    student = None
    if attack.kind.flips_labels:
        student = Peer.of(flipped(learner.task), TrainingOptions(), "liar")
    liars = Liars(attack, 1, 0)
    liars.begin(mouth.weights())
    number = 0
    check = partial(
        check_models, learner.state, layout=layout_of(learner.tensors), task=learner.counters.task
    )
    while not stop():
        exchange.poll()
        if exchange.ready:
            exchange.ask(Wish(MAX_FAN_OUT, DEADLINE_S, learner.counters.task), check)
            outcome = exchange.wait(stop)
            models = outcome.checked.contributions if outcome is not None else ()
            if models:
                number += 1
                crowd = liars.look(torch.stack([mouth.row_of(model.file) for model in models]))
                if student is not None:
                    student.load(crowd.mean)
                    said = torch.empty(1, len(crowd.mean))
                    student.train(LOCAL_STEPS, said[0])
                else:
                    spoken, _ = liars.speak(crowd, number, lambda push: FACTOR)
                    assert spoken is not None
                    said = spoken
                mouth.load(plausible(said[0], mouth.variances()))
                learner.publish({})
                print(
                    f"version {learner.counters.version}: {attack}, made of {len(models)} models", flush=True
                )
        exchange.pause(every_s, stop)
