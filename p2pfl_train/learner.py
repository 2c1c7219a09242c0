"""One peer's model while it learns: local steps, publication, averaging, and what a NaN undoes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from p2pfl_state import signed
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import MAX_PARENTS, Manifest, Parent, Previous
from torch import Tensor, nn
from torch.optim import Optimizer

from p2pfl_train import checkpoint
from p2pfl_train.aggregate import Contribution, aggregate
from p2pfl_train.batches import Batches, described, size_of
from p2pfl_train.checkpoint import Counters
from p2pfl_train.config import OptimiserOptions, TrainingOptions
from p2pfl_train.errors import ModelError, TrainError, one_line
from p2pfl_train.rules.rule import FEDAVG, Rule
from p2pfl_train.task import Task
from p2pfl_train.taskspec import initial_seed
from p2pfl_train.tensors import buffer_names, stored_tensors
from p2pfl_train.weights import TensorFile, copy_into, load_published, save_model

SAVE_S = 1.0
"""The optimiser state is written at most this often: it is as large as the model, and each write waits
for the disk. A restart loses the momentum of that time; the weights are never behind."""

MAX_DIVERGED = 3
"""So many cycles in a row may end in NaN before a peer begins anew, or gives up."""


def make_optimiser(model: nn.Module, options: OptimiserOptions) -> Optimizer:
    """SGD with momentum, or Adam, over all parameters that learn."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("the model has no parameter that learns: give it one that requires a gradient")
    # The fused step is 5 to 10 % of a small model's time faster; it knows no sparse gradients.
    fused = not any(getattr(module, "sparse", False) is True for module in model.modules())
    rate = options.learning_rate
    if options.name == "adam":
        return torch.optim.Adam(parameters, lr=rate, fused=fused)
    optimiser = torch.optim.SGD(parameters, lr=rate, momentum=options.momentum, fused=fused)
    if options.momentum > 0:
        optimiser.register_step_pre_hook(_complete_momentum)
    return optimiser


def _complete_momentum(optimiser: Optimizer, *_: object) -> None:
    """Gives zeros to each parameter that has a gradient and no momentum yet.

    The fused step takes momenta of all parameters or of none, and a branch of a model may get its
    first gradient in any step; the plain one would make that of a sparse gradient sparse, which a
    tensor file cannot hold. From zeros the first step is the same, for there is no dampening.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and "momentum_buffer" not in optimiser.state[parameter]:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def take_step(task: Task, model: nn.Module, optimiser: Optimizer, batches: Batches) -> float:
    """One optimiser step on the next batch; returns its loss. One that is not finite changes nothing.

    Raises `ModelError` when the model or the loss fails.
    """
    inputs, targets = batches.next()
    try:
        loss = task.loss(model(task.preprocess(inputs)), targets)
        value = loss.item()
        if math.isfinite(value):
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
    except Exception as error:
        raise ModelError(
            f"the model cannot train on a batch of {described(inputs)}: {one_line(error)}"
        ) from error
    return value


@dataclass
class Learner:
    """Model, optimiser and counters of one life. Everything here is the main thread's."""

    state: StateDir
    task: Task
    model: nn.Module
    optimiser: Optimizer | None
    """None for a peer without training data."""
    batches: Batches | None
    counters: Counters
    parents: list[Parent] = field(default_factory=list)
    """What was averaged in since the last publication."""
    published: Manifest | None = None
    initial: TensorFile | None = None
    """What the network gave to begin with, until the first publication; None for the task's seed."""
    _saved_at_s: float = float("-inf")

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights as they are stored; writing to them changes the model.

        Asked for anew each time: a model may give a parameter or a buffer other memory in any step
        (weight clipping that assigns `.data`, a running mean that assigns the buffer).
        """
        return stored_tensors(self.model)

    @property
    def samples(self) -> int:
        """Private training examples: the weight of this peer in an average."""
        return size_of(self.task.train)

    def steps_of(self, options: TrainingOptions) -> int:
        """Steps of one cycle."""
        if self.batches is None:
            return 0
        if options.local_epochs is None:
            return options.local_steps
        return max(1, round(options.local_epochs * self.batches.per_epoch))

    def train(self, steps: int, between_steps: Callable[[], bool]) -> float:
        """Takes up to `steps` optimiser steps and returns their mean loss; NaN when one diverged.

        `between_steps` is called after each; it ends the cycle early by returning True.
        """
        assert self.batches is not None
        assert self.optimiser is not None
        self.model.train()
        total, done = 0.0, 0
        while done < steps:
            total += take_step(self.task, self.model, self.optimiser, self.batches)
            done += 1
            if between_steps() or not math.isfinite(total):
                break
        self.counters = replace(self.counters, batches=self.batches.drawn)
        return total / done if math.isfinite(total) else math.nan

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Writes the model, then, unless that was done a moment ago, optimiser state and counters.

        Raises `WeightsRefused` when the weights are not finite (nothing is written),
        `DirectoryUnusable`.
        """
        manifest = Manifest(
            version=self._next_version(),
            samples=self.samples,
            task=self.counters.task,
            weights="0" * 64,  # filled in by save_model
            parents=tuple(self.parents[-MAX_PARENTS:]),
            previous=self._previous(),
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        )
        self.published = save_model(self.state.model, self.model, manifest)
        self.initial = None  # nobody needs it now, and its map keeps a deleted file on disk
        self.counters = replace(self.counters, version=manifest.version)
        self.parents.clear()
        if time.monotonic() - self._saved_at_s >= SAVE_S:
            self.save_counters()

    def _previous(self) -> Previous | None:
        """From what this went on."""
        if self.published is not None:
            return Previous(self.published.version, self.published.weights)
        if self.initial is None:
            return None
        given = self.initial.manifest()
        return Previous(given.version, given.weights, self.initial.path.stem)

    def _next_version(self) -> int:
        """Above all that the daemon has signed: after a restored backup, that is more than we know of."""
        mark = signed.read(self.state)
        return 1 + max(self.counters.version, 0 if mark is None else mark.version)

    def save_counters(self) -> None:
        """Writes the optimiser state and the counters. Raises `DirectoryUnusable`."""
        if self.optimiser is not None:
            checkpoint.save(self.state.trainer_state, self.optimiser, self.counters)
            self._saved_at_s = time.monotonic()

    def average(self, contributions: Sequence[Contribution], rule: Rule = FEDAVG, byzantine: int = 0) -> None:
        """Aggregates verified models into the current weights; the optimiser keeps its momentum.

        Raises `TooFewModels` for a rule that cannot withstand so many liars; nothing has changed then.
        """
        aggregate(self.tensors, self.samples, contributions, rule, byzantine, buffer_names(self.model))
        self.note_parents(contributions)

    def begin_with(self, contributions: Sequence[Contribution], rule: Rule, byzantine: int) -> None:
        """Takes what a rule makes of others' models for the first weights; the own ones are no vote.

        Raises `TooFewModels`.
        """
        aggregate(self.tensors, 0, contributions, rule, byzantine, buffer_names(self.model))
        self.note_parents(contributions)

    def note_parents(self, contributions: Sequence[Contribution]) -> None:
        """The next publication names these as what went into it."""
        for contribution in contributions:
            manifest = contribution.file.manifest()
            self.parents.append(Parent(contribution.file.path.stem, manifest.version, manifest.weights))

    def recover(self) -> None:
        """Goes back to the published weights after the current ones became useless, without momentum.

        Without a publication yet: to those of the one peer that it began with, or to the task's seed.
        """
        self.parents.clear()
        if self.published is not None:
            load_published(self.state.model, self.model)
        elif self.initial is not None:
            copy_into(self.initial, self.tensors)
        else:
            self._take_seed()
        if self.optimiser is not None:
            self.optimiser.state.clear()

    def begin_anew(self) -> None:
        """Goes back to the weights of the task's seed, without momentum."""
        self.parents.clear()
        self._take_seed()
        if self.optimiser is not None:
            self.optimiser.state.clear()

    def _take_seed(self) -> None:
        fresh = stored_tensors(fresh_model(self.task))
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(fresh[name])


def fresh_model(task: Task) -> nn.Module:
    """The model with the weights that every peer of the task starts with when it starts alone."""
    torch.manual_seed(initial_seed(task.spec.digest))
    try:
        return task.build_model()
    except TrainError:
        raise
    except Exception as error:
        raise ModelError(f"the model cannot be built: {one_line(error)}") from error
