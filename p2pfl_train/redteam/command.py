"""The commands `plan` and `simulate`. What is heavy is imported inside them, so `--help` is quick."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from p2pfl_train import options as opt
from p2pfl_train import planner
from p2pfl_train.errors import Unsafe, UsageError
from p2pfl_train.paths import expanded
from p2pfl_train.rules.rule import ROBUST, parse_rule
from p2pfl_train.signals import EXIT_INTERRUPTED, StopSignals, stop_signals

if TYPE_CHECKING:
    from p2pfl_train.redteam.options import Setting
    from p2pfl_train.redteam.simulation import Engine, Outcome

_NETWORK, _OUTPUT = "Network", "Output"
MODEL_MB = 6.5
"""The paper's CNN."""
MODELS = {"mnist": "caffe-lenet", "fashion-mnist": "caffe-lenet"}
"""What is simulated by default where the trainer's own default would take four times as long."""
MAX_WORKERS = 1024

Peers = Annotated[int, typer.Option(help="All peers, liars included.", rich_help_panel=_NETWORK)]
Byzantine = Annotated[int, typer.Option(help="Liars among them.", rich_help_panel=_NETWORK)]
Rounds = Annotated[int, typer.Option(help="Rounds of the run.", rich_help_panel=_NETWORK)]
PlannedFanOut = Annotated[
    int | None,
    typer.Option(help="Models to pull; by default the fewest that are safe.", rich_help_panel=_NETWORK),
]


def plan(
    peers: Peers,
    byzantine: Byzantine,
    rounds: Rounds = planner.DEFAULT_ROUNDS,
    fan_out: PlannedFanOut = None,
    risk: opt.Risk = planner.DEFAULT_RISK,
    model_mb: Annotated[float, typer.Option("--model-mb", help="Size of a model in MB.")] = MODEL_MB,
    as_json: opt.Json = False,
) -> None:
    """How many liars a peer may pull, and how many models it must pull so that they lose.

    Exit code 9 for a plan under which liars may be half of the models or more.
    """
    network = planner.Network(peers, byzantine, rounds, risk)
    network.check()
    fan_out = planner.advised(network) if fan_out is None else fan_out
    if not 1 <= fan_out < peers:
        raise UsageError(f"--fan-out {fan_out} must be from 1 to the other peers, {peers - 1}")
    if not 0 < model_mb <= 1e6:
        raise UsageError(f"--model-mb {model_mb} must be above 0, at most 1e6")
    found, safe = planner.plan(network, fan_out), planner.smallest_safe(network)
    figures = _plan_figures(network, found, safe, model_mb)
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(_plan_table(network, found, safe, figures))
    if not found.safe:
        raise Unsafe(planner.refusal(network, found))


def _plan_figures(
    network: planner.Network, found: planner.Plan, safe: planner.Plan | None, model_mb: float
) -> dict[str, Any]:
    return {
        "peers": network.peers,
        "byzantine": network.byzantine,
        "rounds": network.rounds,
        "risk": network.risk,
        "draws": network.draws,
        "fan_out": found.fan_out,
        "effective_byzantine": found.effective,
        "models": found.votes,
        "exceeded": found.exceeded,
        "safe": found.safe,
        "smallest_safe_fan_out": None if safe is None else safe.fan_out,
        "smallest_safe_effective_byzantine": None if safe is None else safe.effective,
        "mb_per_peer_and_round": round(found.fan_out * model_mb, 3),
        "mb_per_round": round(network.peers * found.fan_out * model_mb, 3),
    }


def _plan_table(
    network: planner.Network, found: planner.Plan, safe: planner.Plan | None, figures: dict[str, Any]
) -> Table:
    table = Table(show_header=False, title_justify="left", title="plan")
    table.add_column()
    table.add_column()
    rows = {
        "network": f"{network.peers} peers, {network.byzantine} of them liars",
        "draws": f"{network.draws:,} of {found.fan_out} models, in {network.rounds} rounds of "
        f"{network.honest} honest peers",
        "liars among the pulled, b̂": f"{found.effective} of {found.votes} models, the own one included",
        "more in some draw": f"with probability {found.exceeded:.3g} (at most {network.risk:g} is accepted)",
        "f of the rule": str(found.effective) if found.safe else "none: liars may be half or more",
        "smallest safe fan-out": "none"
        if safe is None
        else f"{safe.fan_out}, with {safe.effective} of {safe.votes}",
        "traffic a round": f"{figures['mb_per_peer_and_round']:g} MB in for each peer, "
        f"{figures['mb_per_round']:,g} MB in all",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def simulate(
    peers: Peers = 30,
    byzantine: Byzantine = 6,
    attack: Annotated[
        str,
        typer.Option(
            help="none, sign-flip, foe, shrink, alie, label-flip, gaussian, dissensus, free-rider or "
            "changing; with a factor as alie:1.5, else foe, shrink and alie search for the worst.",
            rich_help_panel=_NETWORK,
        ),
    ] = "alie",
    aggregate: opt.AggregateRule = None,
    fan_out: PlannedFanOut = None,
    expect_byzantine: opt.ExpectByzantine = None,
    risk: opt.Risk = planner.DEFAULT_RISK,
    rounds: Rounds = 200,
    data: opt.Data = "digits",
    data_dir: opt.DataDir = Path("data"),
    download: opt.Download = True,
    partition: opt.PartitionKind = "dirichlet:1.0",
    labels_per_peer: opt.LabelsPerPeer = None,
    fraction: opt.Fraction = 1.0,
    seed: opt.Seed = 0,
    model: Annotated[
        str | None,
        typer.Option(
            help="As for run; by default caffe-lenet for mnist and fashion-mnist.", rich_help_panel="Model"
        ),
    ] = None,
    model_arg: opt.ModelArguments = None,
    local_steps: Annotated[
        int, typer.Option(help="Optimiser steps a round.", rich_help_panel="Training")
    ] = 1,
    batch_size: opt.BatchSize = 25,
    lr: opt.LearningRate = 0.1,
    momentum: opt.Momentum = 0.9,
    optimizer: opt.Optimiser = "sgd",
    evaluate_every: opt.EvaluateEvery = 20,
    evaluate_examples: opt.EvaluateExamples = 1000,
    threads: Annotated[int | None, typer.Option(help="Torch threads.  [default: all processors]")] = None,
    engine: Annotated[str, typer.Option(help="local or ray.", rich_help_panel=_OUTPUT)] = "local",
    workers: Annotated[int, typer.Option(help="Of Ray.", rich_help_panel=_OUTPUT)] = 2,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster; by default one is started here.", rich_help_panel=_OUTPUT),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(help="Exit with 9 when the worst honest accuracy ends below.", rich_help_panel=_OUTPUT),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where figures and picture go.", rich_help_panel=_OUTPUT)
    ] = Path("report/simulate"),
    as_json: opt.Json = False,
) -> None:
    """Many peers in this process, some of which lie: mean and worst accuracy of the honest.

    With the trainer's own steps, partition and aggregation. Without --aggregate the robust rule.
    """
    if bound is not None and not 0 <= bound <= 1:
        raise UsageError(f"--bound {bound} must be from 0 to 1")
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine {engine[:40]!r} must be local or ray")
    if not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"--workers {workers} must be from 1 to {MAX_WORKERS}")
    network = planner.Network(peers, byzantine, rounds, risk)
    with stop_signals(EXIT_INTERRUPTED) as stop:
        from p2pfl_train.config import EvaluationOptions, OptimiserOptions, TrainingOptions, optimiser_name
        from p2pfl_train.models import parse_model_arguments
        from p2pfl_train.redteam.attacks import parse_attack
        from p2pfl_train.redteam.options import Setting, defend
        from p2pfl_train.tasks import TaskOptions

        setting = Setting(
            peers=peers,
            byzantine=byzantine,
            attack=parse_attack(attack),
            defence=defend(
                ROBUST if aggregate is None else parse_rule(aggregate),
                network,
                planner.advised(planner.reckoned(network, expect_byzantine)) if fan_out is None else fan_out,
                expect_byzantine,
            ),
            task=TaskOptions(
                data=data,
                data_dir=expanded(data_dir),
                download=download,
                model=model or MODELS.get(data or ""),
                model_arguments=parse_model_arguments(model_arg or []),
                partition=partition,
                labels_per_peer=labels_per_peer,
                fraction=fraction,
                seed=seed,
            ),
            training=TrainingOptions(
                local_steps, None, batch_size, OptimiserOptions(optimiser_name(optimizer), lr, momentum)
            ),
            rounds=rounds,
            seed=seed,
            evaluation=EvaluationOptions(evaluate_every, evaluate_examples),
            threads=(os.cpu_count() or 1) if threads is None else threads,
        )
        setting.check()
        _warn(setting, planner.reckoned(network, expect_byzantine).byzantine)
        outcome = _run(setting, _Engines(engine, workers, ray_address), out, as_json, stop)
    if stop():
        Console(stderr=True).print(f"interrupted in round {outcome.final.round} of {rounds}")
        raise typer.Exit(EXIT_INTERRUPTED)
    if bound is not None and outcome.final.worst < bound:
        raise Unsafe(f"the worst honest accuracy is {outcome.final.worst:.4f}, below --bound {bound:g}")


def _warn(setting: Setting, expected: int) -> None:
    """Says on stderr that the honest reckon with fewer liars than there are."""
    if setting.defence.rule.withstands_liars and expected < setting.byzantine:
        Console(stderr=True).print(
            f"the honest expect {expected} of {setting.byzantine} liars (--expect-byzantine): "
            "the plan's risk holds for so few only",
            highlight=False,
            soft_wrap=True,
        )


@dataclass(frozen=True)
class _Engines:
    """Which engine runs it."""

    name: str
    workers: int
    address: str | None

    def start(self, setting: Setting) -> Engine:
        from p2pfl_train.redteam.crew import Crew
        from p2pfl_train.redteam.ray_engine import RayEngine
        from p2pfl_train.redteam.simulation import members

        if self.name == "ray":
            return RayEngine(setting, self.workers, self.address)
        return Crew(setting, members(setting))


def _run(setting: Setting, engines: _Engines, out: Path, as_json: bool, stop: StopSignals) -> Outcome:
    """Runs it, shows it and writes it down."""
    from p2pfl_train.redteam import results
    from p2pfl_train.redteam.simulation import simulate as run

    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 160)
    stop.training_begins()  # from here on there are processes to end, with Ray
    engine = engines.start(setting)
    try:
        with results.Board(console, setting) as board:
            outcome = run(setting, engine, board.show, stop)
    finally:
        engine.close()
    paths = results.write(outcome, out)
    if as_json:
        typer.echo(json.dumps(results.figures(outcome)))
    else:
        console.print(
            f"{outcome.peer_rounds_per_second:.1f} peers x rounds a second; {paths[0]}, {paths[1]}",
            highlight=False,
            soft_wrap=True,
        )
    return outcome
