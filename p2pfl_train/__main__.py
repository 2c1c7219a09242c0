"""The command `p2pfl-train`. Everything heavy is imported inside the commands, so `--help` is quick."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from p2pfl_state.errors import StateError
from p2pfl_state.layout import StateDir
from rich.console import Console

from p2pfl_train import options as opt
from p2pfl_train.config import (
    AggregationOptions,
    EvaluationOptions,
    ExchangeOptions,
    OptimiserOptions,
    RunOptions,
    StopOptions,
    TrainingOptions,
    check_threads,
    optimiser_name,
    parse_every,
)
from p2pfl_train.errors import TrainError, UsageError
from p2pfl_train.paths import expanded
from p2pfl_train.planner import DEFAULT_RISK, DEFAULT_ROUNDS
from p2pfl_train.redteam import command as redteam
from p2pfl_train.rules.rule import parse_rule
from p2pfl_train.signals import stop_signals

if TYPE_CHECKING:
    from p2pfl_train.tasks import TaskOptions

T = TypeVar("T")

PROGRAM = "p2pfl-train"
LOG_WIDTH = 160
EXIT_STATE = 3

EPILOG = (
    "Exit codes: 0 done, also after SIGTERM or Ctrl-C; 2 wrong usage; 3 the state directory cannot be "
    "used; 4 no daemon, or no task from the network; 6 the data; 7 the model; 8 the weights; 9 liars may "
    "win: a plan that is not safe, an accuracy below its bound; 130 stopped at once by a second "
    "Ctrl-C, a simulation by any signal."
)

app = typer.Typer(
    help="The trainer of a peer: learns from private data, publishes weights, averages with its peers.",
    epilog=EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command(epilog=EPILOG)
def run(
    state: opt.State,
    data: opt.Data = None,
    data_dir: opt.DataDir = Path("data"),
    download: opt.Download = True,
    shard: opt.Shard = None,
    partition: opt.PartitionKind = "paper",
    labels_per_peer: opt.LabelsPerPeer = None,
    fraction: opt.Fraction = 1.0,
    classes: opt.Classes = None,
    image_size: opt.ImageSize = None,
    channels: opt.Channels = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    seed: opt.Seed = 0,
    model: opt.Model = None,
    model_arg: opt.ModelArguments = None,
    join: opt.Join = False,
    accept_arch: opt.AcceptArchitecture = None,
    local_steps: opt.LocalSteps = None,
    local_epochs: opt.LocalEpochs = None,
    batch_size: opt.BatchSize = 32,
    lr: opt.LearningRate = 0.05,
    momentum: opt.Momentum = 0.9,
    optimizer: opt.Optimiser = "sgd",
    threads: opt.Threads = 1,
    nice: opt.Nice = 0,
    fan_out: opt.FanOut = 5,
    deadline: opt.Deadline = 10.0,
    aggregate_every: opt.AggregateEvery = "1",
    blocking: opt.Blocking = False,
    receive_timeout: opt.ReceiveTimeout = 60.0,
    aggregate: opt.AggregateRule = None,
    byzantine: opt.ByzantineModels = None,
    expect_byzantine: opt.ExpectByzantine = None,
    risk: opt.Risk = DEFAULT_RISK,
    plan_rounds: opt.PlanRounds = DEFAULT_ROUNDS,
    cycles: opt.Cycles = None,
    minutes: opt.Minutes = None,
    target_accuracy: opt.TargetAccuracy = None,
    evaluate_every: opt.EvaluateEvery = None,
    evaluate_examples: opt.EvaluateExamples = 500,
    final_evaluation: opt.FinalEvaluation = None,
) -> None:
    """Train, publish and average until stopped. SIGTERM or Ctrl-C averages once more and publishes."""
    if local_steps is not None and local_epochs is not None:
        raise UsageError("--local-steps and --local-epochs do not go together: give one")
    steps = TrainingOptions.local_steps if local_steps is None else local_steps
    optimiser = OptimiserOptions(optimiser_name(optimizer), lr, momentum)
    run_options = RunOptions(
        state=state,
        training=TrainingOptions(steps, local_epochs, batch_size, optimiser, f"{seed}/{shard or ''}"),
        exchange=ExchangeOptions(fan_out, deadline, parse_every(aggregate_every), blocking, receive_timeout),
        aggregation=AggregationOptions.of(
            None if aggregate is None else parse_rule(aggregate),
            byzantine,
            expect_byzantine,
            risk,
            plan_rounds,
        ),
        stop=StopOptions(cycles, minutes, target_accuracy),
        evaluation=EvaluationOptions(evaluate_every, evaluate_examples, final_evaluation),
        threads=threads,
    )
    run_options.check()
    wanted = {
        "data": data,
        "data_dir": expanded(data_dir),
        "download": download,
        "shard": shard,
        "partition": partition,
        "labels_per_peer": labels_per_peer,
        "fraction": fraction,
        "seed": seed,
        "model": model,
    }
    texts = {"classes": classes, "image_size": image_size, "channels": channels, "mean": mean, "std": std}
    accepted = _accepted(accept_arch)
    _set_nice(nice)
    with stop_signals() as stop:
        task_options = _task_options(wanted, model_arg or [], texts)
        from p2pfl_train import loop
        from p2pfl_train.startup import TaskSource

        source = TaskSource(task_options, join, accepted)
        loop.run(run_options, source, _console(), stop, stop.training_begins)


def _task_options(
    wanted: dict[str, Any], arguments: list[str], texts: Mapping[str, str | None]
) -> TaskOptions:
    from p2pfl_train.datasets.load import parse_channels, parse_classes, parse_image_size, parse_numbers
    from p2pfl_train.models import parse_model_arguments
    from p2pfl_train.tasks import TaskOptions

    def parsed(name: str, parse: Callable[[str], T]) -> T | None:
        text = texts[name]
        return None if text is None else parse(text)

    return TaskOptions(
        **wanted,
        model_arguments=parse_model_arguments(arguments),
        classes=parsed("classes", parse_classes),
        image_size=parsed("image_size", parse_image_size),
        channels=parsed("channels", parse_channels),
        mean=parsed("mean", partial(parse_numbers, "--mean")),
        std=parsed("std", partial(parse_numbers, "--std")),
    )


def _accepted(digests: list[str] | None) -> frozenset[str]:
    for digest in digests or []:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UsageError(f"--accept-arch {digest[:70]!r} must be a SHA-256 in lower-case hex")
    return frozenset(digests or [])


def _set_nice(nice: int) -> None:
    if nice:
        try:
            os.nice(nice)
        except OSError as error:
            raise UsageError(f"--nice {nice}: {error.strerror}; only root may lower it") from None


def _console() -> Console:
    """On a terminal as wide as that; a file or a pipe has room."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, allow_nan=False, ensure_ascii=False))


@app.command(epilog=EPILOG)
def evaluate(
    state: opt.State,
    data: opt.EvaluationData = None,
    data_dir: opt.DataDir | None = None,
    model: opt.Model = None,
    accept_arch: opt.AcceptArchitecture = None,
    threads: opt.Threads = 1,
    as_json: opt.Json = False,
) -> None:
    """Measure the published model: confusion matrix and accuracy of each class.

    On the dev split of the data that the run used, unless --data names other data.
    """
    check_threads(threads)
    import torch

    from p2pfl_train import predict as offline

    torch.set_num_threads(threads)
    directory = StateDir(state)
    options = offline.evaluation_options(directory, data, expanded(data_dir) if data_dir else None)
    published = offline.load(directory, options, _accepted(accept_arch), model)
    measured = offline.measure(published)
    if as_json:
        _print_json(offline.evaluation_json(published, measured))
    else:
        console = _console()
        console.print(offline.evaluation_table(published, measured, console))


@app.command(epilog=EPILOG)
def predict(
    state: opt.State,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    model: opt.Model = None,
    accept_arch: opt.AcceptArchitecture = None,
    threads: opt.Threads = 1,
    as_json: opt.Json = False,
) -> None:
    """Say the class of image files, with its probability."""
    check_threads(threads)
    import torch

    from p2pfl_train import predict as offline
    from p2pfl_train.tasks import TaskOptions

    torch.set_num_threads(threads)
    published = offline.load(StateDir(state), TaskOptions(data=None), _accepted(accept_arch), model)
    for result in offline.classify(published, images):
        if as_json:
            _print_json(result)
            continue
        best = sorted(result["probabilities"].items(), key=lambda item: -item[1])[:3]
        shares = ", ".join(f"{name} {share:.3f}" for name, share in best)
        typer.echo(f"{result['image']}: {result['class']} ({shares})")


@app.command(epilog=EPILOG)
def plot(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="State directories.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("plots"),
) -> None:
    """Draw accuracy, cycles, known peers and collection times of peers, as PNG and SVG."""
    from p2pfl_train.plots.draw import draw

    for path in draw(directories, out):
        typer.echo(str(path))


app.command(epilog=EPILOG)(redteam.plan)
app.command(epilog=EPILOG)(redteam.simulate)


def main() -> None:
    """Runs the command line: errors become one line and the exit code that `errors.py` documents."""
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)  # by itself typer would draw boxes
    except typer.TyperException as error:  # what it found wrong with the command line
        _fail(f"{error.format_message().rstrip('.')}; see --help", error.exit_code)
    except TrainError as error:
        _fail(str(error), error.exit_code)
    except StateError as error:
        _fail(str(error), EXIT_STATE)
    sys.exit(code or 0)


def _fail(text: str, code: int) -> NoReturn:
    line = " ".join(text.split())
    typer.echo(f"{PROGRAM}: {line}", err=True)
    sys.exit(code)


def entry() -> None:
    """The console script. Ends without the interpreter's teardown, which takes torch some seconds."""
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    entry()
