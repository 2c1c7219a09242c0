"""A task: what the peers of one training share, and one peer's private part of it.

`TaskSpec` is the shared half. Its digest tells which models may be averaged: same architecture, same
ordered class names, same input and preprocessing. `Task` adds what stays on this machine. A user who
brings a new problem writes one function that returns a `Task`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pfl_state.manifest import canonical_json
from torch import Tensor, nn
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor]
"""Inputs of shape (batch, *input_shape), as the data set stores them, and their targets: for a task with
classes one index an example, shape (batch,); else whatever the loss takes."""


@dataclass(frozen=True)
class Architecture:
    """How to build a model: a registry name with arguments, or a class in a Python file."""

    name: str
    """A name in `models.REGISTRY`, or `Class` when `source` is given."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments, JSON values only."""
    source: str | None = None
    """Text of the Python file that defines the class; None for a registry name."""

    @property
    def source_digest(self) -> str | None:
        """SHA-256 of the source in hex: what an operator accepts."""
        return None if self.source is None else hashlib.sha256(self.source.encode()).hexdigest()


@dataclass(frozen=True)
class TaskSpec:
    """What must be equal for two models to be averaged."""

    architecture: Architecture
    classes: tuple[str, ...]
    """Ordered class names: index i of the output is classes[i]. Empty when there are none."""
    input_shape: tuple[int, ...]
    """Shape of one example as the model sees it, (channels, height, width) for images."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """How a stored example becomes a model input; JSON values, for images `mean` and `std`."""

    def descriptor(self) -> dict[str, Any]:
        """The JSON value that the digest is of. The source enters as its own digest."""
        return {
            "architecture": {
                "name": self.architecture.name,
                "arguments": dict(self.architecture.arguments),
                "source_sha256": self.architecture.source_digest,
            },
            "classes": list(self.classes),
            "input_shape": list(self.input_shape),
            "preprocessing": dict(self.preprocessing),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the descriptor, in hex."""
        return hashlib.sha256(canonical_json(self.descriptor()).encode()).hexdigest()


Loss = Callable[[Tensor, Tensor], Tensor]
"""(model output, targets) to a scalar tensor."""
Metric = Callable[[Tensor, Tensor], float]
"""(model outputs of all evaluated examples, their targets) to a number."""
Preprocess = Callable[[Tensor], Tensor]
"""A stored batch of inputs to what the model takes; must be cheap, it runs at every step."""


@dataclass(frozen=True)
class Task:
    """One peer's view of a training: the shared spec and the private data."""

    spec: TaskSpec
    build_model: Callable[[], nn.Module]
    """Makes the model with fresh weights from torch's global random state."""
    train: Dataset[Batch]
    """Private examples by index (`__len__`, `__getitem__`). An `Examples` is batched without a loader."""
    evaluation: Dataset[Batch]
    """Examples that accuracy is measured on; for the built-in tasks the dev split over all classes."""
    loss: Loss
    preprocess: Preprocess
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """More measurements by name, beside loss and accuracy. With one, all outputs are held in memory."""
    labels_held: Sequence[int] = ()
    """Class indices present in `train`, for display."""
