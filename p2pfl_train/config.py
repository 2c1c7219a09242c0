"""The options of a run, frozen: made once from the command line and passed in. Nothing here is global.

Each default was chosen for ten peers on two cores; what a value costs is said beside it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from p2pfl_state.markers import MAX_FAN_OUT

from p2pfl_train import planner
from p2pfl_train.errors import UsageError
from p2pfl_train.rules.rule import FEDAVG, ROBUST, Rule

OptimiserName = Literal["sgd", "adam"]

MAX_THREADS = 1024
"""More processors than machines have; far below what makes OpenMP fail, or torch overflow."""
MAX_COUNT = 2**31 - 1


def optimiser_name(text: str) -> OptimiserName:
    """The name in `--optimizer`. Raises `UsageError`."""
    match text:
        case "sgd" | "adam":
            return text
        case _:
            raise UsageError(f"--optimizer {text[:40]!r} must be sgd or adam")


@dataclass(frozen=True)
class OptimiserOptions:
    """How a step is taken."""

    name: OptimiserName = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    """For `sgd`; kept through an average."""


@dataclass(frozen=True)
class TrainingOptions:
    """One cycle of local training."""

    local_steps: int = 10
    """Steps a cycle. Few keep a peer from forgetting the classes that it does not hold."""
    local_epochs: float | None = None
    """Instead of `local_steps`: passes over the private data a cycle."""
    batch_size: int = 32
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    sampling_seed: str = "0"
    """What the order of the batches depends on; different for every shard."""

    def check(self) -> None:
        """Raises `UsageError` for a number that makes no sense."""
        _at_least("--local-steps", self.local_steps, 1)
        _above("--local-epochs", self.local_epochs)
        _at_least("--batch-size", self.batch_size, 1)
        _above("--lr", self.optimiser.learning_rate)
        if not 0 <= self.optimiser.momentum < 1:
            raise UsageError(f"--momentum {self.optimiser.momentum} must be from 0 to below 1")


@dataclass(frozen=True)
class Every:
    """A period in cycles or in seconds; exactly one is set."""

    cycles: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class ExchangeOptions:
    """When models are asked for, and how."""

    fan_out: int = 5
    deadline_s: float = 10.0
    every: Every = Every(cycles=1)
    blocking: bool = False
    """Wait for every answer, as the paper does, instead of training on."""
    receive_timeout_s: float = 60.0
    """How long a newcomer waits for a task from the network."""


@dataclass(frozen=True)
class AggregationOptions:
    """What becomes of the models that come, and how many of them may be liars'."""

    rule: Rule = FEDAVG
    byzantine: int | None = None
    """f: liars among the models of a round. None: from `expected`, or none."""
    expected: float | None = None
    """Share of liars among all peers; the planner makes f of it, anew when the membership changes."""
    risk: float = planner.DEFAULT_RISK
    """Of more liars than f in any round of any honest peer; for `expected`."""
    rounds: int = planner.DEFAULT_ROUNDS
    """For how many rounds the risk is meant."""

    @classmethod
    def of(
        cls, rule: Rule | None, byzantine: int | None, expected: float | None, risk: float, rounds: int
    ) -> AggregationOptions:
        """With the robust rule where liars are expected and none is named."""
        expecting = byzantine is not None or expected is not None
        return cls(rule or (ROBUST if expecting else FEDAVG), byzantine, expected, risk, rounds)

    def check(self, fan_out: int) -> None:
        """Raises `UsageError`, `TooFewModels` when the rule can never work with so few models."""
        if self.byzantine is not None and self.expected is not None:
            raise UsageError("--byzantine and --expect-byzantine do not go together: give one")
        _at_least("--byzantine", self.byzantine, 0)
        if self.expected is not None and not 0 <= self.expected < 0.5:
            raise UsageError(
                f"--expect-byzantine {self.expected} must be a share from 0 to below 0.5, as 0.1"
            )
        planner.check_risk(self.risk)
        _at_least("--plan-rounds", self.rounds, 1)
        expecting = bool(self.byzantine or self.expected)
        if expecting and not self.rule.withstands_liars:
            raise UsageError(f"--aggregate {self.rule} withstands no liars: leave it out for {ROBUST}")
        if self.byzantine is None and self.expected is None and self.rule.needs_byzantine:
            raise UsageError(
                f"--aggregate {self.rule} must know how many lie: --expect-byzantine 0.1 (of all peers), or "
                "--byzantine 2 (of the models of a round)"
            )
        self.rule.check(fan_out + 1, self.byzantine or 0)


@dataclass(frozen=True)
class StopOptions:
    """What ends a run by itself; nothing does when all are None."""

    cycles: int | None = None
    """Cycles of this life."""
    minutes: float | None = None
    target_accuracy: float | None = None
    """Stop once a measured accuracy is at least this, from 0 to 1."""


@dataclass(frozen=True)
class EvaluationOptions:
    """When accuracy is measured."""

    every_cycles: int | None = None
    """None: as often as a tenth of the time allows."""
    examples: int = 500
    """A fixed, stratified part of the evaluation data."""
    final: bool | None = None
    """Measure on all evaluation data at the end. None: also after a signal only if it takes moments."""

    def check(self) -> None:
        """Raises `UsageError` for a number that makes no sense."""
        _at_least("--evaluate-every", self.every_cycles, 1)
        _at_least("--evaluate-examples", self.examples, 1)


@dataclass(frozen=True)
class RunOptions:
    """A whole run of the trainer."""

    state: Path
    training: TrainingOptions = field(default_factory=TrainingOptions)
    exchange: ExchangeOptions = field(default_factory=ExchangeOptions)
    aggregation: AggregationOptions = field(default_factory=AggregationOptions)
    stop: StopOptions = field(default_factory=StopOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    threads: int = 1

    def check(self) -> None:
        """Raises `UsageError` for a number that makes no sense."""
        exchange, stop = self.exchange, self.stop
        self.training.check()
        if not 1 <= exchange.fan_out <= MAX_FAN_OUT:
            raise UsageError(f"--fan-out {exchange.fan_out} must be from 1 to {MAX_FAN_OUT}")
        if not 0.01 <= exchange.deadline_s <= 86400:
            raise UsageError(f"--deadline {exchange.deadline_s} must be from 0.01 to 86400 seconds")
        _above("--receive-timeout", exchange.receive_timeout_s)
        self.aggregation.check(exchange.fan_out)
        _at_least("--cycles", stop.cycles, 1)
        _above("--minutes", stop.minutes)
        if stop.target_accuracy is not None and not 0 < stop.target_accuracy <= 1:
            raise UsageError(f"--target-accuracy {stop.target_accuracy} must be above 0, at most 1")
        self.evaluation.check()
        check_threads(self.threads)


def check_threads(threads: int) -> None:
    """Raises `UsageError` for a number of torch threads that no machine can run."""
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"--threads {threads} must be from 1 to {MAX_THREADS}")


def _at_least(option: str, value: int | None, low: int) -> None:
    if value is not None and not low <= value <= MAX_COUNT:
        raise UsageError(f"{option} {value} must be from {low} to {MAX_COUNT}")


def _above(option: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and 0 < value <= 1e9):
        raise UsageError(f"{option} {value} must be above 0, at most 1e9")


def parse_every(text: str) -> Every:
    """`3` is three cycles, `2s` or `0.5s` seconds. Raises `UsageError`."""
    match = re.fullmatch(r"(\d{1,9})|(\d{1,6}(?:\.\d{1,6})?)s", text.strip())
    if match and match[1] and int(match[1]) > 0:
        return Every(cycles=int(match[1]))
    if match and match[2] and float(match[2]) > 0:
        return Every(seconds=float(match[2]))
    raise UsageError(f"--aggregate-every {text[:40]!r} must be like 1 (cycles) or 2s (seconds)")
