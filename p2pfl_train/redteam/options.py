"""What a simulation is asked for, frozen."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from p2pfl_train import planner
from p2pfl_train.config import EvaluationOptions, TrainingOptions, check_threads
from p2pfl_train.errors import Unsafe, UsageError
from p2pfl_train.redteam.attacks import Attack
from p2pfl_train.rules.rule import ROBUST, Rule
from p2pfl_train.tasks import TaskOptions

DEFAULT_FAN_OUT = 15
DEFAULT_ROUNDS = 200
EVALUATE_EVERY = 20


@dataclass(frozen=True)
class Defence:
    """What the honest do."""

    rule: Rule = ROBUST
    fan_out: int = DEFAULT_FAN_OUT
    byzantine: int = 0
    """f of the rule: b̂ of the planner."""


@dataclass(frozen=True)
class Setting:
    """One simulated network."""

    peers: int
    byzantine: int
    attack: Attack
    defence: Defence
    task: TaskOptions
    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(local_steps=1))
    rounds: int = DEFAULT_ROUNDS
    seed: int = 0
    """Of the draws, the liars and the batches; that of the partition is the task's."""
    evaluation: EvaluationOptions = field(
        default_factory=lambda: EvaluationOptions(EVALUATE_EVERY, examples=1000)
    )
    threads: int = 1

    def check(self) -> None:
        """Raises `UsageError` for numbers that make no sense, `TooFewModels` for a rule that cannot work."""
        self.network(planner.DEFAULT_RISK).check()
        if not 1 <= self.defence.fan_out < self.peers:
            raise UsageError(
                f"--fan-out {self.defence.fan_out} must be from 1 to the other peers, {self.peers - 1}"
            )
        if self.byzantine and not self.honest:
            raise UsageError("there must be an honest peer")
        self.training.check()
        self.evaluation.check()
        check_threads(self.threads)
        self.defence.rule.check(self.defence.fan_out + 1, self.defence.byzantine)

    def network(self, risk: float) -> planner.Network:
        return planner.Network(self.peers, self.byzantine, self.rounds, risk)

    @property
    def liars(self) -> tuple[int, ...]:
        """Indices of the liars among the peers, ascending."""
        return tuple(sorted(random.Random(f"{self.seed}/liars").sample(range(self.peers), self.byzantine)))

    @property
    def honest(self) -> tuple[int, ...]:
        liars = set(self.liars)
        return tuple(index for index in range(self.peers) if index not in liars)

    def senders(self, number: int, receiver: int) -> list[int]:
        """Whom `receiver` pulls from in round `number`: drawn uniformly without replacement."""
        others = [index for index in range(self.peers) if index != receiver]
        return random.Random(f"{self.seed}/draw/{number}/{receiver}").sample(others, self.defence.fan_out)


def defend(rule: Rule, network: planner.Network, fan_out: int, expected: float | None) -> Defence:
    """The rule with the f that the plan gives. Raises `Unsafe` when liars may be a majority of a draw.

    `expected` as in `planner.reckoned`. A rule that withstands nobody needs no plan.
    """
    if not 1 <= fan_out < network.peers:
        raise UsageError(f"--fan-out {fan_out} must be from 1 to the other peers, {network.peers - 1}")
    network = planner.reckoned(network, expected)
    if not rule.withstands_liars:
        return Defence(rule, fan_out, 0)
    found = planner.plan(network, fan_out)
    if not found.safe:
        raise Unsafe(planner.refusal(network, found))
    return Defence(rule, fan_out, found.effective)
