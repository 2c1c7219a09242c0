"""`make attack`: your task, your rule, and liars of every kind; fails when honest peers end below a bound.

Many peers in this process (`p2pfl-train simulate`), once for each cell of a grid. The report has mean and
worst accuracy of the honest, beside plain averaging under the same attacks.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2pfl_state import atomic

from p2pfl_net.usage import Parser
from p2pfl_train.errors import Unsafe
from scripts import attack_report
from scripts.attack_grids import GATE_ATTACKS, ROBUST, Cell, Grid, Size, gate, mnist
from scripts.failures import WrongUsage
from scripts.signals import EXIT_INTERRUPTED, StopSignals

EPILOG = """exit codes: 0 all bounds are kept; 2 wrong usage; 6 the data; 7 the model; 9 a bound is not kept,
or a plan is not safe; 130 Ctrl-C, and what is done is kept for --resume"""


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(program, __doc__, EPILOG)
    add = parser.add_argument
    add("--data", default="digits", help="as for p2pfl-train run (digits)")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where known data sets are kept")
    add("--model", help="as for p2pfl-train run")
    add("--grid", choices=("gate", "mnist"), default="gate", help="your gate, or what the project promises")
    add("--peers", type=int, default=20, help="of the gate (20)")
    add("--byzantine", type=int, default=4, help="liars among them (4)")
    add("--fan-out", type=int, help="models that a peer pulls; by default the fewest that are safe")
    add("--rounds", type=int, default=200, help="of the gate (200)")
    add("--partition", default="paper", help="of the gate, as for p2pfl-train run (paper)")
    add("--attacks", default=",".join(GATE_ATTACKS), help="of the gate, separated by commas (all)")
    add("--aggregate", default=ROBUST, help=f"the rule of the gate ({ROBUST})")
    add("--bound", type=float, default=0.85, help="worst honest accuracy that the gate demands (0.85)")
    add("--seeds", default="0", help="separated by commas (0)")
    add("--lr", type=float, default=0.1, help="learning rate (0.1)")
    add("--batch-size", type=int, default=25, help="examples a step (25)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads (all processors)")
    add("--resume", action="store_true", help="keep the cells that an interrupted run has finished")
    add("--only", default="", metavar="TEXT", help="run only cells with this in their names")
    add("--out", type=Path, metavar="DIR", help="folder of the report (report/attack-GRID)")
    return parser


def grid_of(options: argparse.Namespace) -> Grid:
    """Raises `WrongUsage`."""
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise WrongUsage(f"SEEDS={options.seeds} must be numbers, separated by commas") from None
    if not 0 <= options.bound <= 1:
        raise WrongUsage(f"BOUND={options.bound} must be from 0 to 1")
    if options.grid == "mnist":
        return mnist(seeds)
    size = Size(options.peers, options.byzantine, options.fan_out, options.rounds, options.partition)
    if size.peers < 2 or not 0 < size.byzantine < size.peers:
        raise WrongUsage("--byzantine must be from 1 to below --peers")
    return gate(size, options.attacks.split(","), options.aggregate, seeds, options.bound)


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `ScriptFailed`, `TrainError`, `StateError`."""
    options = build_parser(program).parse_args(arguments)
    grid = grid_of(options)
    cells = [cell for cell in grid.cells if options.only in cell.name]
    out: Path = options.out or Path("report") / f"attack-{options.grid}"
    done: dict[str, dict[str, Any]] = {}
    for place, cell in enumerate(cells, start=1):
        path = out / "cells" / f"{cell.name}.json"
        if options.resume and path.exists():
            done[cell.name] = json.loads(path.read_text())
            continue
        figures = _run(cell, options, signals)
        if figures is None:
            print("interrupted: no report; --resume goes on from here", flush=True)
            return EXIT_INTERRUPTED
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, figures)
        done[cell.name] = figures
        print(
            f"{place}/{len(cells)} {cell.name}: mean {figures['mean']:.4f}, worst {figures['worst']:.4f}, "
            f"{figures['seconds']:.0f} s",
            flush=True,
        )
    broken = attack_report.write(out, grid, done, options.data, options.model)
    print(f"report: {out / 'report.md'}, {out / 'report.json'}", flush=True)
    if broken:
        raise Unsafe(f"{len(broken)} bounds are not kept: {'; '.join(broken[:3])}")
    return 0


def _run(cell: Cell, options: argparse.Namespace, signals: StopSignals) -> dict[str, Any] | None:
    """The figures of a cell; None when it was interrupted."""
    from p2pfl_train.config import EvaluationOptions, OptimiserOptions, TrainingOptions
    from p2pfl_train.planner import Network, plan, refusal, smallest_safe
    from p2pfl_train.redteam.attacks import parse_attack
    from p2pfl_train.redteam.crew import Crew
    from p2pfl_train.redteam.options import Setting, defend, reckoned
    from p2pfl_train.redteam.results import figures
    from p2pfl_train.redteam.simulation import members, simulate
    from p2pfl_train.rules.rule import parse_rule
    from p2pfl_train.tasks import TaskOptions

    network = Network(cell.peers, cell.byzantine, cell.rounds)
    fan_out = cell.fan_out
    if fan_out is None:
        expected = reckoned(network, cell.expected)
        safe = smallest_safe(expected)
        if safe is None:
            raise Unsafe(refusal(expected, plan(expected, cell.peers - 1)))
        fan_out = safe.fan_out
    setting = Setting(
        peers=cell.peers,
        byzantine=cell.byzantine,
        attack=parse_attack(cell.attack),
        defence=defend(parse_rule(cell.aggregate), network, fan_out, cell.expected),
        task=TaskOptions(
            data=options.data,
            data_dir=options.data_dir,
            model=options.model,
            partition=cell.partition,
            labels_per_peer=cell.labels_per_peer,
            seed=cell.seed,
        ),
        training=TrainingOptions(1, None, options.batch_size, OptimiserOptions("sgd", options.lr)),
        rounds=cell.rounds,
        seed=cell.seed,
        evaluation=EvaluationOptions(max(1, cell.rounds // 10)),
        threads=options.threads,
    )
    setting.check()
    outcome = simulate(setting, Crew(setting, members(setting)), stop=lambda: signals.asked)
    return None if signals.asked else {**figures(outcome), "cell": asdict(cell)}
