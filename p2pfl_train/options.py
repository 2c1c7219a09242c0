"""The options of the commands, each with its help. Defaults stand with the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_DATA, _MODEL, _TRAINING = "Data", "Model", "Training"
_LIARS, _NETWORK, _END, _EVALUATION = "Liars", "Network", "When to stop", "Evaluation"

State = Annotated[Path, typer.Option("--state", metavar="DIR", help="The peer's state directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Threads = Annotated[int, typer.Option(help="Torch threads.")]

Data = Annotated[
    str | None,
    typer.Option(
        help="digits, mnist, fashion-mnist, cifar10, a folder of class folders, a .npz or .csv file, or "
        "module:function. Without it the peer only receives.",
        rich_help_panel=_DATA,
    ),
]
EvaluationData = Annotated[
    str | None,
    typer.Option(help="Other data, as for run; its dev split is used.", rich_help_panel=_DATA),
]
DataDir = Annotated[
    Path, typer.Option(metavar="DIR", help="Where data sets known by name are kept.", rich_help_panel=_DATA)
]
Download = Annotated[
    bool, typer.Option("--download/--no-download", help="Fetch missing data sets.", rich_help_panel=_DATA)
]
Shard = Annotated[
    str | None, typer.Option(metavar="K/N", help="This peer's part, as 3/10.", rich_help_panel=_DATA)
]
PartitionKind = Annotated[
    str, typer.Option("--partition", help="paper, iid or dirichlet:ALPHA.", rich_help_panel=_DATA)
]
LabelsPerPeer = Annotated[
    int | None, typer.Option(help="Labels a peer holds, for --partition paper.", rich_help_panel=_DATA)
]
Fraction = Annotated[
    float, typer.Option(help="Of this peer's examples, the part that is used.", rich_help_panel=_DATA)
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C", help="All class names in order, where this peer lacks some.", rich_help_panel=_DATA
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Size that images of a folder are brought to.", rich_help_panel=_DATA),
]
Channels = Annotated[
    str | None,
    typer.Option(
        metavar="1|3",
        help="Bring images of a folder to gray (1) or colour (3); by default gray, unless one has colour.",
        rich_help_panel=_DATA,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C", help="Subtracted, by channel or column; with --std.", rich_help_panel=_DATA
    ),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Divided by; the same at all peers.", rich_help_panel=_DATA),
]
Seed = Annotated[int, typer.Option(help="Of split, partition and batch order.", rich_help_panel=_DATA)]

Model = Annotated[
    str | None,
    typer.Option(
        help="paper-cnn, lenet, caffe-lenet, bank, mlp, cnn-bn or file.py:Class; by default what fits.",
        rich_help_panel=_MODEL,
    ),
]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", metavar="NAME=JSON", help="An argument, as hidden=64.", rich_help_panel=_MODEL
    ),
]
Join = Annotated[
    bool,
    typer.Option("--join", help="Take model and classes from the network.", rich_help_panel=_MODEL),
]
AcceptArchitecture = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-arch",
        metavar="SHA256",
        help="Run the architecture's Python code with this digest; else a terminal shows it and asks.",
        rich_help_panel=_MODEL,
    ),
]

LocalSteps = Annotated[
    int | None, typer.Option(help="Optimiser steps a cycle.  [default: 10]", rich_help_panel=_TRAINING)
]
LocalEpochs = Annotated[
    float | None,
    typer.Option(help="Instead: passes over the data a cycle.", rich_help_panel=_TRAINING),
]
BatchSize = Annotated[int, typer.Option(help="Examples a step.", rich_help_panel=_TRAINING)]
LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate.", rich_help_panel=_TRAINING)]
Momentum = Annotated[float, typer.Option(help="Of sgd.", rich_help_panel=_TRAINING)]
Optimiser = Annotated[str, typer.Option("--optimizer", help="sgd or adam.", rich_help_panel=_TRAINING)]
Nice = Annotated[int, typer.Option(help="Added to the process's niceness.", rich_help_panel=_TRAINING)]

FanOut = Annotated[int, typer.Option(help="Models to ask for.", rich_help_panel=_NETWORK)]
Deadline = Annotated[float, typer.Option(help="Seconds a request may take.", rich_help_panel=_NETWORK)]
AggregateEvery = Annotated[
    str, typer.Option(help="Cycles (1) or seconds (2s) between requests.", rich_help_panel=_NETWORK)
]
Blocking = Annotated[
    bool,
    typer.Option("--blocking", help="Wait for each answer, as the paper does.", rich_help_panel=_NETWORK),
]
ReceiveTimeout = Annotated[
    float, typer.Option(help="Seconds a newcomer waits for a task.", rich_help_panel=_NETWORK)
]

AggregateRule = Annotated[
    str | None,
    typer.Option(
        "--aggregate",
        metavar="RULE",
        help="mean, fedavg, median, trimmed_mean, krum, multi_krum, geometric_median or centered_clipping; "
        "nnm+ in front mixes nearest neighbours first. By default fedavg; nnm+trimmed_mean where liars are "
        "expected.",
        rich_help_panel=_LIARS,
    ),
]
ByzantineModels = Annotated[
    int | None,
    typer.Option(
        "--byzantine", metavar="F", help="Liars among the models of a round.", rich_help_panel=_LIARS
    ),
]
ExpectByzantine = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of liars among all peers, as 0.1: a plan makes F of it as the membership changes.",
        rich_help_panel=_LIARS,
    ),
]
Risk = Annotated[
    float,
    typer.Option(help="Accepted probability that a draw ever has more liars than F.", rich_help_panel=_LIARS),
]
PlanRounds = Annotated[int, typer.Option(help="Rounds that the risk is for.", rich_help_panel=_LIARS)]

Cycles = Annotated[int | None, typer.Option(help="Stop after so many.", rich_help_panel=_END)]
Minutes = Annotated[float | None, typer.Option(help="Stop after this time.", rich_help_panel=_END)]
TargetAccuracy = Annotated[
    float | None, typer.Option(help="Stop at this measured accuracy, as 0.95.", rich_help_panel=_END)
]

EvaluateEvery = Annotated[
    int | None,
    typer.Option(
        help="Cycles; by default as often as a tenth of the time allows.", rich_help_panel=_EVALUATION
    ),
]
EvaluateExamples = Annotated[
    int, typer.Option(help="How many, the same every time.", rich_help_panel=_EVALUATION)
]
FinalEvaluation = Annotated[
    bool | None,
    typer.Option(
        "--final-evaluation/--no-final-evaluation",
        help="Measure on all evaluation data at the end; by default, after a signal only if it is quick.",
        rich_help_panel=_EVALUATION,
    ),
]
