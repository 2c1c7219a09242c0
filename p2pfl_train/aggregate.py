"""Aggregates received models into the own one, in place, piece by piece, by one of the `rules`.

The files stay mapped: one pass over them for the distances, where the rule asks for any, and one for
the result. The memory needed beyond the own model is a piece of a tensor for each model, however large
they are.

- Floating-point tensors: as the rule says; types narrower than float32 are computed in float32.
- Running means and variances of batch norm are floating-point buffers and treated like the rest: an
  average of variances stays a variance (it leaves out the spread between the peers' means, which the
  next local steps put right). Rules that withstand liars keep them apart from what was learned.
- Integer and boolean buffers, such as `num_batches_tracked`, keep the own value: a mean of counters
  is the counter of nobody. A peer without samples of its own takes those of the heaviest model, or,
  with a rule that withstands liars, the median of each.

The own model is one vote, and an honest one; that of a peer without samples is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.markers import AggregateAnswer, Refusal
from torch import Tensor

from p2pfl_train.errors import WeightsRefused
from p2pfl_train.rules.blocks import Cook, Distances, columns_of
from p2pfl_train.rules.columns import Columns, Floats
from p2pfl_train.rules.definitions import Matrix, Recipe, Votes
from p2pfl_train.rules.rule import FEDAVG, Rule
from p2pfl_train.tensors import Layout
from p2pfl_train.weights import PIECE_BYTES, TensorFile, open_checked

MAX_SAMPLES_RATIO = 10
"""A sender counts at most this many times what we count, whatever it claims; a guess that lets honest
peers differ tenfold and keeps a liar from replacing our model."""
TOO_FAR = 100.0
"""Times farther than others are from each other; distances between those are then 1 % wrong in float32."""
MAPPED_BYTES = 32 << 20
"""Of all files together this much is mapped at a time."""


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


@dataclass(frozen=True)
class _Source:
    """One vote: the own tensors, or a file."""

    file: TensorFile | None

    def piece(self, name: str, flat: Tensor, start: int, count: int) -> Tensor:
        if self.file is None:
            return flat[start : start + count]
        return self.file.piece(name, start, count)

    def forget(self) -> None:
        if self.file is not None:
            self.file.forget()


@torch.no_grad()
def aggregate(
    own: Mapping[str, Tensor],
    own_samples: int,
    others: Sequence[Contribution],
    rule: Rule = FEDAVG,
    byzantine: int = 0,
    buffers: Collection[str] = (),
) -> None:
    """Replaces the tensors in `own` by what `rule` makes of them and of `others`, of which so many may lie.

    `buffers` names those that are no parameters, see `Rule.for_buffers`.
    The files must have been verified against the layout of `own`: nothing is checked here. All pieces
    are at hand before a number changes. Raises `TooFewModels`; nothing has changed then.
    """
    if not others:
        return
    own_share, other_shares = shares(own_samples, [other.samples for other in others])
    votes_itself = own_samples > 0
    sources = [_Source(other.file) for other in others]
    claimed = list(other_shares)
    if votes_itself:
        sources, claimed = [_Source(None), *sources], [own_share, *claimed]
    rule.check(len(sources), byzantine)
    votes = Votes(np.array(claimed), byzantine, centre=0 if votes_itself else None)
    if rule.needs_distances:
        learned = {name: tensor for name, tensor in own.items() if name not in buffers}
        votes = replace(votes, distances=_distances(learned, sources))
    recipe = rule.recipe(votes)
    recipes = {True: rule.for_buffers(votes, recipe), False: recipe}
    heaviest = others[max(range(len(others)), key=other_shares.__getitem__)].file
    for name, tensor in own.items():
        if tensor.numel() == 0:
            continue
        flat = tensor.contiguous().view(-1)
        if not tensor.is_floating_point():
            if not votes_itself:
                _take_counters(name, flat, sources if rule.withstands_liars else [_Source(heaviest)])
        else:
            _cook(name, flat, sources, recipes[name in buffers])
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """In what is computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _distances(own: Mapping[str, Tensor], sources: Sequence[_Source]) -> Matrix:
    """Squared distances between the votes over all floating-point tensors.

    Seen from the own model. Where that has no vote, or is so far from the others that float32 could
    not tell these apart, from the median of each coordinate: it lies among the honest, wherever the
    own weights and the liars are.
    """
    if sources[0].file is None:
        squared = _seen_from(own, sources, from_median=False)
        others = squared[1:, 1:][~np.eye(len(sources) - 1, dtype=bool)]
        if not others.size or squared[0, 1:].min() <= TOO_FAR**2 * np.median(others):
            return squared
    return _seen_from(own, sources, from_median=True)


def _seen_from(own: Mapping[str, Tensor], sources: Sequence[_Source], *, from_median: bool) -> Matrix:
    distances = Distances(len(sources) + from_median)
    columns, median = Columns(), np.empty(0)
    for name, tensor in own.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        for rows, _ in _blocks(name, tensor.contiguous().view(-1), sources):
            if not from_median:
                distances.add(rows)
                continue
            if median.shape != rows[0].shape or median.dtype != rows[0].dtype:
                median = np.empty_like(rows[0])
            columns.trimmed_mean(rows, (len(rows) - 1) // 2, median)
            distances.add([median, *rows])
    squared = distances.squared()
    return squared[1:, 1:] if from_median else squared


def _cook(name: str, flat: Tensor, sources: Sequence[_Source], recipe: Recipe) -> None:
    if recipe.trim is None and recipe.weights is not None:
        _add_up(name, flat, sources, recipe.weights[0].tolist())
    else:
        _by_columns(name, flat, sources, recipe)


def _by_columns(name: str, flat: Tensor, sources: Sequence[_Source], recipe: Recipe) -> None:
    cook = Cook(recipe, np.float64 if flat.dtype == torch.float64 else np.float32)
    largest = torch.finfo(flat.dtype).max
    for rows, start in _blocks(name, flat, sources):
        result = torch.from_numpy(cook.apply(rows))
        part = flat[start : start + len(result)]
        if result.dtype == part.dtype:
            torch.clamp(result, -largest, largest, out=part)
        else:
            part.copy_(result.clamp_(-largest, largest))


def _blocks(name: str, flat: Tensor, sources: Sequence[_Source]) -> Iterator[tuple[list[Floats], int]]:
    """The same columns of all votes, widened where they are narrow, with the place of the first."""
    wide = _wide(flat.dtype)
    columns = columns_of(len(sources), wide.itemsize)
    step = max(columns, min(PIECE_BYTES, MAPPED_BYTES // len(sources)) // flat.element_size())
    for first in range(0, flat.numel(), step):
        count = min(step, flat.numel() - first)
        pieces = [source.piece(name, flat, first, count).to(wide).numpy() for source in sources]
        for start in range(0, count, columns):
            yield [piece[start : start + columns] for piece in pieces], first + start
        for source in sources:
            source.forget()


def _take_counters(name: str, flat: Tensor, sources: Sequence[_Source]) -> None:
    """The median of each integer, the lower of two in the middle; of booleans what most say."""
    step = max(1, min(PIECE_BYTES, MAPPED_BYTES // len(sources)) // flat.element_size())
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        votes = torch.stack([source.piece(name, flat, start, part.numel()) for source in sources])
        part.copy_(votes.to(torch.int64).median(dim=0).values)
        for source in sources:
            source.forget()


def _add_up(name: str, flat: Tensor, sources: Sequence[_Source], weights: Sequence[float]) -> None:
    """The weighted sum of the votes, by the same sequence of additions as a running mean."""
    wide = _wide(flat.dtype)
    largest = torch.finfo(flat.dtype).max
    step = max(1, PIECE_BYTES // flat.element_size())
    own_weight = sum(weight for source, weight in zip(sources, weights, strict=True) if source.file is None)
    files = [
        (source.file, weight)
        for source, weight in zip(sources, weights, strict=True)
        if source.file is not None and weight > 0
    ]
    if not files:
        return
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        pieces = [(file, file.piece(name, start, part.numel()), weight) for file, weight in files]
        total = part.to(wide)  # the part itself where it is wide enough
        # A weight of nothing must also undo NaN: 0 x NaN would keep it.
        total = total.mul_(own_weight) if own_weight > 0 else total.zero_()
        for file, piece, weight in pieces:
            total.add_(piece.to(wide), alpha=weight)
            file.forget()  # before the next is read: more than a piece may have been mapped for it
        total.clamp_(-largest, largest)  # weights sum to 1 but for rounding, which is enough to overflow
        if total is not part:
            part.copy_(total)
