"""Averages received models into the own one, in place, piece by piece.

The weighted mean by samples of federated averaging (McMahan et al., "Communication-Efficient Learning
of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1), over the peers that were asked
instead of over all. The memory needed beyond the own model is one piece of a tensor, however many
models there are.

- Floating-point tensors: the weighted mean; types narrower than float32 are summed in float32.
- Running means and variances of batch norm are floating-point buffers and averaged like the rest: an
  average of variances stays a variance (it leaves out the spread between the peers' means, which the
  next local steps put right).
- Integer and boolean buffers, such as `num_batches_tracked`, keep the own value: a mean of counters
  is the counter of nobody. A peer without samples of its own takes those of the heaviest model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.markers import AggregateAnswer, Refusal
from torch import Tensor

from p2pfl_train.errors import WeightsRefused
from p2pfl_train.tensors import Layout
from p2pfl_train.weights import PIECE_BYTES, TensorFile, open_checked

MAX_SAMPLES_RATIO = 10
"""A sender counts at most this many times what we count, whatever it claims; a guess that lets honest
peers differ tenfold and keeps a liar from replacing our model."""


@dataclass(frozen=True)
class Contribution:
    """One verified model, and the samples that its sender claims."""

    file: TensorFile
    samples: int


@dataclass(frozen=True)
class Checked:
    """What came of one answer: the models that may be averaged, and those that were refused."""

    contributions: tuple[Contribution, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def check_models(state: StateDir, answer: AggregateAnswer, layout: Layout, task: str) -> Checked:
    """Opens and verifies the models of an answer. Costs one pass over their bytes, mostly SHA-256.

    `layout` is that of the own model and `task` the own task digest. Raises `DirectoryUnusable` when
    a file cannot be read; a model that does not fit becomes a refusal.
    """
    contributions, refusals = [], []
    for model in answer.models:
        try:
            if model.manifest.task != task:
                raise WeightsRefused("it belongs to another task")
            path = state.fetched_model(answer.round, model.peer_id)
            file = open_checked(path, layout, model.manifest)
            contributions.append(Contribution(file, model.manifest.samples))
        except WeightsRefused as error:
            refusals.append(Refusal(model.peer_id, model.manifest.weights, str(error)))
    return Checked(tuple(contributions), tuple(refusals))


def shares(own_samples: int, sent_samples: Sequence[int]) -> tuple[float, list[float]]:
    """The weights of the own model and of the others in the mean; together they are 1.

    What a sender claims is clamped to [1, MAX_SAMPLES_RATIO x own]. Without own samples the own
    model counts nothing, and the smallest claim takes the place of `own`.
    """
    reference = own_samples if own_samples > 0 else max(1, min(sent_samples, default=1))
    clamped = [min(max(samples, 1), MAX_SAMPLES_RATIO * reference) for samples in sent_samples]
    total = own_samples + sum(clamped)
    if total == 0:
        return 1.0, []
    return own_samples / total, [samples / total for samples in clamped]


@torch.no_grad()
def average(own: Mapping[str, Tensor], own_samples: int, others: Sequence[Contribution]) -> None:
    """Replaces the tensors in `own` by the weighted mean of them and of `others`.

    The files must have been verified against the layout of `own`: nothing is checked here. All pieces
    are at hand before a number changes.
    """
    if not others:
        return
    own_share, other_shares = shares(own_samples, [other.samples for other in others])
    weighted = [(other.file, share) for other, share in zip(others, other_shares, strict=True)]
    heaviest = max(weighted, key=lambda pair: pair[1])[0]
    for name, tensor in own.items():
        if tensor.numel() == 0:
            continue
        flat = tensor.contiguous().view(-1)
        if tensor.is_floating_point():
            _average_flat(name, flat, own_share, weighted)
        elif own_share == 0:
            flat.copy_(heaviest.piece(name, 0, flat.numel()))
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))


def _average_flat(
    name: str, flat: Tensor, own_share: float, others: Sequence[tuple[TensorFile, float]]
) -> None:
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    largest = torch.finfo(flat.dtype).max
    step = PIECE_BYTES // flat.element_size()
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        pieces = [(file, file.piece(name, start, part.numel()), share) for file, share in others]
        total = part.to(wide)  # the part itself where it is wide enough
        # A share of nothing must also undo NaN: 0 x NaN would keep it.
        total = total.mul_(own_share) if own_share > 0 else total.zero_()
        for file, piece, share in pieces:
            total.add_(piece.to(wide), alpha=share)
            file.forget()  # before the next is read: more than a piece may have been mapped for it
        total.clamp_(-largest, largest)  # shares sum to 1 but for rounding, which is enough to overflow
        if total is not part:
            part.copy_(total)
