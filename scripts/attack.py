"""`make attack`: your task, your rule, and liars of every kind; fails when honest peers end below a bound.

Many peers in one process (`p2pfl-train simulate`), once for each cell of a grid. The report has mean and
worst accuracy of the honest, beside plain averaging without liars and under those that ruin it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from p2pfl_state import atomic

from p2pfl_net.usage import Parser
from p2pfl_train import planner
from p2pfl_train.errors import Unsafe
from scripts import attack_report, die_with_parent, pairs
from scripts.attack_grids import GATE_ATTACKS, ROBUST, Cell, Grid, Size, gate, mnist
from scripts.failures import CellFailed, WrongUsage
from scripts.signals import EXIT_INTERRUPTED, StopSignals

SIMULATE = (sys.executable, "-m", "p2pfl_train", "simulate")
RESULT = "simulation.json"
TYPED = "options.json"
LOG = "output.log"
MAX_JOBS = 256
MEASUREMENTS = 5
"""In the course of each cell, on so many examples; what counts is the last one, on all."""
EXAMPLES = 500
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
    add("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time (one a processor)")
    add("--threads", type=int, default=1, help="threads of each (1)")
    add("--resume", action="store_true", help="keep the cells that an interrupted run has finished")
    add("--only", default="", metavar="TEXT", help="run only cells with this in their names")
    add("--args", default="", help="more of these options, in one text")
    add("--out", type=Path, metavar="DIR", help="folder of the report (report/attack-GRID)")
    return parser


def grid_of(options: argparse.Namespace) -> Grid:
    """Raises `WrongUsage`, `UsageError`."""
    from p2pfl_train.redteam.attacks import parse_attack  # loads torch

    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise WrongUsage(f"SEEDS={options.seeds} must be numbers, separated by commas") from None
    if not 0 <= options.bound <= 1:
        raise WrongUsage(f"BOUND={options.bound} must be from 0 to 1")
    if options.grid == "mnist":
        return mnist(seeds)
    for attack in options.attacks.split(","):
        parse_attack(attack)
    size = Size(options.peers, options.byzantine, options.fan_out, options.rounds, options.partition)
    if size.peers < 2 or not 0 < size.byzantine < size.peers:
        raise WrongUsage("--byzantine must be from 1 to below --peers")
    return gate(size, options.attacks.split(","), options.aggregate, seeds, options.bound)


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `ScriptFailed`, `TrainError`, `StateError`."""
    options = _options(build_parser(program), arguments)
    grid = grid_of(options)
    wanted = [cell for cell in grid.cells if options.only in cell.name]
    if not wanted:
        raise WrongUsage(f"--only {options.only}: no cell has this in its name")
    out: Path = options.out or Path("report") / f"attack-{options.grid}"
    waiting = [_Run(cell, out / "cells" / cell.name, options) for cell in wanted]
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.unusable(out, error) from error
    if not options.resume:
        for run in waiting:
            run.forget()
    if not _run_all(waiting, options.jobs, lambda: signals.asked):
        print("interrupted: no report; --resume goes on from here", flush=True)
        return EXIT_INTERRUPTED
    done = {run.cell.name: run.result() for run in waiting}
    broken = attack_report.write(out, grid, done, options.data, options.model)
    print(f"report: {out / 'report.md'}, {out / 'report.json'}", flush=True)
    if broken:
        raise Unsafe(f"{len(broken)} bounds are not kept: {'; '.join(broken[:3])}")
    return 0


def _options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """What was typed, and after it what stands in --args. Raises `WrongUsage`."""
    given = parser.parse_args(arguments)
    try:
        more = shlex.split(given.args)
    except ValueError as error:
        raise WrongUsage(f"ARGS={given.args!r}: {error}".lower()) from None
    options = parser.parse_args([*arguments, *more])
    if not 1 <= options.jobs <= MAX_JOBS:
        raise WrongUsage(f"--jobs {options.jobs} must be from 1 to {MAX_JOBS}")
    return options


class _Run:
    """One cell in a process of its own, `p2pfl-train simulate`, as a person would type it."""

    def __init__(self, cell: Cell, folder: Path, options: argparse.Namespace) -> None:
        """Raises `Unsafe` when no fan-out is safe."""
        self.cell = cell
        self._folder = folder
        self._typed = _typed(cell, options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def done(self) -> bool:
        """Whether a run with the same options has come to its end."""
        try:
            same = json.loads((self._folder / TYPED).read_text())["options"] == self._typed
            return same and bool(self.result()["rounds"][-1]["final"])
        except (OSError, ValueError, LookupError):
            return False

    def forget(self) -> None:
        (self._folder / RESULT).unlink(missing_ok=True)

    def result(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads((self._folder / RESULT).read_text())
        return figures

    def start(self) -> None:
        self.forget()
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(self._folder / TYPED, {"options": self._typed})
        command = [*SIMULATE, *self._typed, f"--out={self._folder}"]
        with open(self._folder / LOG, "wb") as log:
            # A process group of its own keeps the terminal's Ctrl-C away.
            self._process = subprocess.Popen(
                die_with_parent.command(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def ended(self) -> bool:
        """Raises `ScriptFailed` when it ended without a result."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None and (code != 0 or not self.done):
            lines = (self._folder / LOG).read_text(errors="replace").splitlines() or ["it said nothing"]
            raise CellFailed(f"{self.cell.name}: {lines[-1]}", code if code > 0 else 1)
        return code is not None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _run_all(runs: Sequence[_Run], jobs: int, asked: Callable[[], bool]) -> bool:
    """Runs what is not done, `jobs` at a time; False when it was interrupted. Nothing runs after it."""
    waiting = [run for run in runs if not run.done]
    running: list[_Run] = []
    count = len(runs) - len(waiting)
    try:
        while (waiting or running) and not asked():
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                running[-1].start()
            time.sleep(pairs.LOOK_S)
            for run in [run for run in running if run.ended()]:
                running.remove(run)
                count += 1
                found = run.result()
                print(
                    f"{count}/{len(runs)} {run.cell.name}: mean {found['mean']:.4f}, worst "
                    f"{found['worst']:.4f}, {found['seconds']:.0f} s",
                    flush=True,
                )
    finally:
        for run in running:
            run.kill()
    return not asked()


def _typed(cell: Cell, options: argparse.Namespace) -> list[str]:
    """The options of the command. Raises `Unsafe`, `UsageError`."""
    typed = {
        "peers": cell.peers,
        "byzantine": cell.byzantine,
        "attack": cell.attack,
        "aggregate": cell.aggregate,
        "fan-out": _fan_out(cell),
        "expect-byzantine": cell.expected,
        "rounds": cell.rounds,
        "data": options.data,
        "data-dir": options.data_dir,
        "model": options.model,
        "partition": cell.partition,
        "labels-per-peer": cell.labels_per_peer,
        "seed": cell.seed,
        "batch-size": options.batch_size,
        "lr": options.lr,
        "evaluate-every": max(1, cell.rounds // MEASUREMENTS),
        "evaluate-examples": EXAMPLES,
        "threads": options.threads,
    }
    return [f"--{name}={value}" for name, value in typed.items() if value is not None]


def _fan_out(cell: Cell) -> int:
    if cell.fan_out is not None:
        return cell.fan_out
    network = planner.Network(cell.peers, cell.byzantine, cell.rounds)
    network = planner.reckoned(network, cell.expected)
    safe = planner.smallest_safe(network)
    if safe is None:
        raise Unsafe(planner.refusal(network, planner.plan(network, cell.peers - 1)))
    return safe.fan_out
