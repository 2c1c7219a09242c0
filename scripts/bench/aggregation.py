"""The aggregation rules over five models of 100 MB from files, beside the mean, and beside other libraries.

Usage: python -m scripts.bench.aggregation. The other libraries need about 4 GB of memory.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from p2pfl_state.manifest import Manifest
from torch import Tensor

from p2pfl_train.aggregate import Contribution, aggregate
from p2pfl_train.rules.rule import parse_rule
from p2pfl_train.tensors import layout_of, stored_tensors
from p2pfl_train.weights import TensorFile, open_checked, save_model, save_tensors
from scripts.bench import rivals
from scripts.bench.averaging import MODELS, make_model
from scripts.bench.harness import TASK, Result, at_most, median, report
from scripts.bench.rivals import Prepare, Rival

BYZANTINE = 1
SAMPLES = 100
REPEATS = 5
RIVAL_REPEATS = 2
SLOW_S = 5.0
"""A rival that took longer is not run again."""
RATIOS: dict[str, float | None] = {
    "trimmed_mean": 4,
    "median": 4,
    "krum": 3,
    "nnm+trimmed_mean": 6,
    "fedavg": None,
    "multi_krum": None,
    "geometric_median": None,
    "centered_clipping": None,
    "nnm+krum": None,
}
"""To the time of the mean, at most; None: for orientation."""
MAX_EXTRA_MB = 150.0
MIXED = "nnm+trimmed_mean"

DRAWS = 20
DRAWN_NUMBERS = 1000
DRAWN_LIAR = 10
TOLERANCE = 1e-4
NEAR_NUMBERS = 4_000_000
NEAR_SCALE = 0.02
NEAR_SPREAD = 1e-3
"""Of models late in a training, in parts of their size; a guess."""
NEAR_LIAR = 10


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    seconds: float
    extra_mb: float


@dataclass(frozen=True)
class Setting:
    """The own model, its numbers before any rule changed them, and the files of the others."""

    own: dict[str, Tensor]
    kept: dict[str, Tensor]
    others: list[Contribution]

    def cost(self, rule: str) -> Cost:
        for name, tensor in self.own.items():
            tensor.copy_(self.kept[name])
        return cost(lambda: aggregate(self.own, SAMPLES, self.others, parse_rule(rule), BYZANTINE))

    def votes(self) -> list[Tensor]:
        """All models in memory, flat, the own one first."""
        votes = [torch.cat([tensor.view(-1) for tensor in self.kept.values()])]
        for other in self.others:
            pieces = [other.file.piece(name, 0, tensor.numel()) for name, tensor in self.own.items()]
            votes.append(torch.cat(pieces))
            other.file.forget()
        return votes


@dataclass(frozen=True)
class Comparison:
    """A rival beside ours, each at its best."""

    rival: Rival
    ours: Cost
    theirs: Cost
    differing: int
    """Draws in which the results differ."""
    corrected: int | None
    """The same where its difference should be gone; None: it cannot be made so."""

    @property
    def ratio(self) -> float:
        return self.theirs.seconds / self.ours.seconds

    @property
    def verdict(self) -> str:
        reason = self.rival.difference or "reason unknown"
        if not self.differing:
            return f"agrees, but {reason}" if self.rival.difference else "agrees"
        if self.corrected is not None:
            reason += f" (that undone: in {self.corrected})" if self.corrected else " (that undone, agrees)"
        return f"differs in {self.differing} of {DRAWS}: {reason}"


def cost(run: Callable[[], object]) -> Cost:
    """Time, and peak memory beyond what was resident before. The result is given up."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # the peak falls to what is resident
    before_mb = resident_mb("VmRSS")
    started = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - started
    del result
    return Cost(seconds, resident_mb("VmHWM") - before_mb)


def resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def best(costs: Sequence[Cost]) -> Cost:
    return Cost(min(cost.seconds for cost in costs), max(cost.extra_mb for cost in costs))


def make_setting(folder: Path, *, opposite: bool = False) -> Setting:
    """Random models, or such in opposite pairs, each the farthest from its opposite.

    Of those, nearest-neighbour mixing makes another mean for each, which is its worst case; where several
    leave out the same liar, they share one.
    """
    torch.manual_seed(0)
    model = make_model()
    own = stored_tensors(model)
    others = []
    for index in range(MODELS + 1):
        for tensor in own.values():
            _ = tensor.neg_() if opposite and index % 2 else tensor.normal_(0, 0.01)
        if index < MODELS:
            path = folder / f"{index}.safetensors"
            manifest = save_model(path, model, Manifest(1, SAMPLES, TASK, "0" * 64))
            others.append(Contribution(open_checked(path, layout_of(own), manifest), SAMPLES))
    return Setting(own, {name: tensor.clone() for name, tensor in own.items()}, others)


def small_results(folder: Path, votes: Sequence[Tensor], rules: Sequence[str]) -> dict[str, Tensor]:
    """What our rules make of votes as they come, the own one first."""
    others = []
    for index, vote in enumerate(votes[1:]):
        path = folder / f"small-{index}.safetensors"
        save_tensors(path, {"w": vote}, {})
        others.append(Contribution(TensorFile.open(path), SAMPLES))
    results = {}
    for rule in rules:
        results[rule] = votes[0].clone()
        aggregate({"w": results[rule]}, SAMPLES, others, parse_rule(rule), BYZANTINE)
    return results


@dataclass(frozen=True)
class Draw:
    """Small random votes, in every other draw with a far liar, and what our rules make of them."""

    votes: list[Tensor]
    ours: dict[str, Tensor]

    def differs(self, rule: str, prepare: Prepare) -> bool:
        theirs = rivals.numbers(prepare(self.votes, BYZANTINE)())
        return float(np.abs(theirs - self.ours[rule].numpy()).max()) > TOLERANCE


def make_draws(folder: Path, rules: Sequence[str]) -> list[Draw]:
    draws = []
    for seed in range(DRAWS):
        random = torch.Generator().manual_seed(seed)
        votes = [torch.randn(DRAWN_NUMBERS, generator=random) for _ in range(MODELS + 1)]
        if seed % 2:
            votes[-1] *= DRAWN_LIAR
        draws.append(Draw(votes, small_results(folder, votes, rules)))
    return draws


def compare(setting: Setting, found: Sequence[Rival], draws: Sequence[Draw]) -> list[Comparison]:
    votes = setting.votes()
    ours: list[list[Cost]] = [[] for _ in found]
    theirs: list[list[Cost]] = [[] for _ in found]
    for _ in range(RIVAL_REPEATS):
        for rival, own_costs, costs in zip(found, ours, theirs, strict=True):
            if not costs or costs[-1].seconds < SLOW_S:
                own_costs.append(setting.cost(rival.rule))
                costs.append(cost(rival.prepare(votes, BYZANTINE)))
    comparisons = []
    for rival, own_costs, costs in zip(found, ours, theirs, strict=True):
        differing = sum(draw.differs(rival.rule, rival.prepare) for draw in draws)
        corrected = rival.corrected and sum(draw.differs(rival.rule, rival.corrected) for draw in draws)
        comparisons.append(Comparison(rival, best(own_costs), best(costs), differing, corrected))
    return comparisons


def near_models(folder: Path, found: Sequence[Rival], rule: str) -> list[Result]:
    """How far a result is from the honest mean, among models that differ little, and one of them more.

    A distance that is taken as |x|² + |y|² - 2xy in float32 is mostly rounding there.
    """
    random = torch.Generator().manual_seed(0)
    base = torch.randn(NEAR_NUMBERS, generator=random) * NEAR_SCALE
    spread = NEAR_SCALE * NEAR_SPREAD
    sizes = [spread] * MODELS + [spread * NEAR_LIAR]
    votes = [base + torch.randn(NEAR_NUMBERS, generator=random) * size for size in sizes]
    honest = torch.stack(votes[:MODELS]).mean(dim=0).numpy()
    results = {"ours": small_results(folder, votes, [rule])[rule].numpy()}
    for rival in found:
        if rival.rule == rule:
            results[rival.library] = rivals.numbers(rival.prepare(votes, BYZANTINE)())
    return [
        Result(
            f"{rule}, near models and a liar, {who}: off by",
            float(np.linalg.norm(result - honest)) / (spread * NEAR_NUMBERS**0.5),
            "spreads",
        )
        for who, result in results.items()
    ]


def print_comparisons(comparisons: Sequence[Comparison], lines: Sequence[str]) -> None:
    print("\nother libraries, models in memory; ours in files")
    for line in lines:
        print(f"  {line}")
    if not comparisons:
        return
    print(
        f"  {'':<26} {'ours s':>7} {'theirs s':>8} {'ratio':>6} {'ours MB':>8} {'theirs MB':>9}  small data"
    )
    for row in comparisons:
        print(
            f"  {row.rival!s:<26} {row.ours.seconds:>7.2f} {row.theirs.seconds:>8.2f} {row.ratio:>6.1f} "
            f"{row.ours.extra_mb:>8.0f} {row.theirs.extra_mb:>9.0f}  {row.verdict}"
        )


def rival_results(comparisons: Sequence[Comparison]) -> list[Result]:
    memory_mb: dict[str, float] = {}
    for row in comparisons:
        most_mb = memory_mb.get(row.rival.library, 0.0)
        memory_mb[row.rival.library] = max(most_mb, row.theirs.extra_mb)
    return [
        *(Result(f"{row.rival}: theirs / ours", row.ratio, "") for row in comparisons),
        *(Result(f"{library}: peak memory over the models", mb, "MB") for library, mb in memory_mb.items()),
        *(
            Result(f"{row.rival}: {row.rival.difference or 'differs'}", row.differing, f"of {DRAWS}")
            for row in comparisons
            if row.differing
        ),
    ]


def in_turns(setting: Setting, rules: Sequence[str]) -> dict[str, list[Cost]]:
    """A busy moment of the machine then hits all rules."""
    costs: dict[str, list[Cost]] = {rule: [] for rule in rules}
    for _ in range(REPEATS):
        for rule, measured in costs.items():
            measured.append(setting.cost(rule))
    return costs


def median_s(costs: Sequence[Cost]) -> float:
    return median([cost.seconds for cost in costs])


def rule_results(costs: dict[str, list[Cost]]) -> list[Result]:
    mean_s = median_s(costs["mean"])
    results = [Result("mean", mean_s, "s")]
    for rule, limit in RATIOS.items():
        name, ratio = f"{rule} / mean", median_s(costs[rule]) / mean_s
        results.append(Result(name, ratio, "") if limit is None else at_most(name, ratio, "", limit))
    extra_mb = max(cost.extra_mb for measured in costs.values() for cost in measured)
    return [
        *results,
        at_most("peak memory over the trainer's own, of all rules", extra_mb, "MB", MAX_EXTRA_MB),
    ]


def worst_mixing(folder: Path) -> Result:
    costs = in_turns(make_setting(folder, opposite=True), ["mean", MIXED])
    ratio = median_s(costs[MIXED]) / median_s(costs["mean"])
    return Result(f"{MIXED} / mean, no two models with the same mean", ratio, "")


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="p2pfl-bench-") as name:
        folder = Path(name)
        setting = make_setting(folder)
        model_mb = sum(tensor.numel() * tensor.element_size() for tensor in setting.own.values()) / 1e6
        costs = in_turns(setting, ["mean", *RATIOS])
        found, lines = rivals.load()
        comparisons = compare(setting, found, make_draws(folder, list(RATIOS))) if found else []
        further = [worst_mixing(folder), *near_models(folder, found, MIXED)]
    print_comparisons(comparisons, lines)
    report(
        f"aggregation of {MODELS} models of {model_mb:.0f} MB and the own one, f = {BYZANTINE}, one thread, "
        f"median of {REPEATS}",
        [*rule_results(costs), *further, *rival_results(comparisons)],
    )


if __name__ == "__main__":
    main()
