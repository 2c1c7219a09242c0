"""What `make attack` runs: cells, each a simulated network, and the bounds that they must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ROBUST = "nnm+trimmed_mean"
SLOW_ROUNDS = 1000
"""Where peers hold few labels each: what a rule trims away is also what the honest learn."""

GIVEN_FACTOR = 0.43
"""What Baruch et al. (NeurIPS 2019) compute for 9 liars of 30: the normal quantile at 14 of 21."""


@dataclass(frozen=True)
class Cell:
    """One simulation, as it would be typed."""

    attack: str
    peers: int
    byzantine: int
    aggregate: str = ROBUST
    fan_out: int | None = None
    """None: the smallest that is safe."""
    partition: str = "dirichlet:1.0"
    labels_per_peer: int | None = None
    expected: float | None = None
    """Share of liars that the honest reckon with; None: the true one."""
    rounds: int = 200
    seed: int = 0
    group: str = ""
    """The heading under which the report has it."""
    mean_at_least: float | None = None
    worst_at_least: float | None = None

    @property
    def name(self) -> str:
        """Unlike that of all others of a grid; a file name."""
        spread = self.partition.replace(":", "-")
        if self.labels_per_peer is not None:
            spread += f"-{self.labels_per_peer}"
        asked = "safe" if self.fan_out is None else str(self.fan_out)
        expected = "" if self.expected is None else f"-expect{self.expected:g}"
        return (
            f"{self.peers}-{self.byzantine}-{self.attack.replace(':', '')}-{self.aggregate}-{asked}-{spread}"
            f"{expected}-{self.rounds}-seed{self.seed}"
        )


@dataclass(frozen=True)
class Comparison:
    """A cell must not be worse than another by more than this."""

    cell: Cell
    other: Cell
    at_most: float
    """Of mean accuracy."""
    why: str


@dataclass(frozen=True)
class Grid:
    """Cells in the order in which they run."""

    cells: Sequence[Cell]
    comparisons: Sequence[Comparison] = field(default_factory=tuple)


@dataclass(frozen=True)
class Size:
    """Of the networks of a gate."""

    peers: int
    byzantine: int
    fan_out: int | None
    rounds: int
    partition: str


GATE_ATTACKS = (
    "sign-flip", "foe", "shrink", "alie", "label-flip", "gaussian", "dissensus", "free-rider", "changing",
)  # fmt: skip


def gate(size: Size, attacks: Sequence[str], rule: str, seeds: Sequence[int], bound: float) -> Grid:
    """The rule under each attack, beside what an average would do and what it would do among honest peers."""
    cells: list[Cell] = []
    share = size.byzantine / size.peers

    def cell(attack: str, byzantine: int, aggregate: str, seed: int, worst: float | None, group: str) -> Cell:
        return Cell(
            attack, size.peers, byzantine, aggregate, size.fan_out, size.partition,
            expected=share, rounds=size.rounds, seed=seed, group=group, worst_at_least=worst,
        )  # fmt: skip

    for seed in seeds:
        cells += [cell(attack, size.byzantine, rule, seed, bound, "under attack") for attack in attacks]
        cells.append(cell("none", 0, rule, seed, bound, "without liars"))
        cells.append(cell("none", 0, "fedavg", seed, None, "without liars"))
        cells += [
            cell(attack, size.byzantine, "fedavg", seed, None, "plain averaging under attack")
            for attack in attacks
            if attack in ("sign-flip", "foe", "alie")
        ]
    return Grid(cells)


def mnist(seeds: Sequence[int]) -> Grid:
    """What the project promises on MNIST."""
    cells: list[Cell] = []
    comparisons: list[Comparison] = []
    for seed in seeds:
        honest = Cell("none", 30, 0, "fedavg", 15, seed=seed, group="30 peers, 6 liars, Dirichlet(1.0)")
        cells.append(honest)
        for attack in ("sign-flip", "foe", "alie"):
            some = Cell(
                attack, 30, 6, ROBUST, 15, seed=seed, group=honest.group,
                mean_at_least=0.975, worst_at_least=0.97,
            )  # fmt: skip
            everyone = Cell(attack, 30, 6, ROBUST, 29, seed=seed, group=honest.group)
            plain = Cell(attack, 30, 6, "fedavg", 15, seed=seed, group=honest.group)
            cells += [some, everyone, plain]
            comparisons += [
                Comparison(some, everyone, 0.01, "the same rule over all 30 models"),
                Comparison(some, honest, 0.015, "plain averaging without liars"),
            ]
        for attack in ("sign-flip", "foe", "alie", f"alie:{GIVEN_FACTOR}"):
            cells.append(
                Cell(attack, 30, 9, ROBUST, None, seed=seed, group="30 peers, 9 liars, planned fan-out",
                     mean_at_least=0.97, worst_at_least=0.96)
            )  # fmt: skip
        for attack in ("sign-flip", "foe", "alie"):
            cells.append(
                Cell(attack, 100, 10, ROBUST, 15, seed=seed, group="100 peers, 10 liars",
                     mean_at_least=0.97, worst_at_least=0.96)
            )  # fmt: skip
        cells += hard(seed)
        paper = "no liars, the paper's 7 of 10 labels a peer"
        average = Cell("none", 30, 0, "fedavg", 15, "paper", seed=seed, group=paper)
        careful = Cell("none", 30, 0, ROBUST, 15, "paper", expected=0.2, seed=seed, group=paper)
        cells += [average, careful]
        comparisons.append(Comparison(careful, average, 0.01, "plain averaging"))
    return Grid(cells, comparisons)


def hard(seed: int) -> list[Cell]:
    """Where liars can hide among honest peers that are very unlike each other, or outwit the rule."""
    cells = [
        Cell(
            attack,
            30,
            6,
            ROBUST,
            15,
            partition,
            labels,
            rounds=SLOW_ROUNDS,
            seed=seed,
            group=f"hard: {name}, {SLOW_ROUNDS} rounds",
            worst_at_least=0.93,
        )
        for name, partition, labels in (
            ("Dirichlet(0.1)", "dirichlet:0.1", None),
            ("2 labels a peer", "paper", 2),
        )
        for attack in ("sign-flip", "foe", "alie")
    ]
    cells += [
        Cell(attack, 30, 6, ROBUST, 15, seed=seed, group=f"hard: {attack}", worst_at_least=0.93)
        for attack in ("dissensus", "changing", "shrink")
    ]
    return cells
