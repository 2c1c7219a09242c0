"""What a simulation tells: a table as it runs, its figures as JSON, and a picture of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from p2pfl_state import atomic
from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2pfl_train.errors import UsageError
from p2pfl_train.redteam.options import Setting
from p2pfl_train.redteam.simulation import Measured, Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "simulation.json"
PICTURE = "simulation.png"


def title(setting: Setting) -> str:
    """The setting in one line, as a person would say it."""
    defence = setting.defence
    several = "" if setting.byzantine == 1 else "s"
    liars = f"{setting.byzantine} liar{several} ({setting.attack})" if setting.byzantine else "no liars"
    return (
        f"{setting.peers} peers, {liars}, {defence.rule} of {defence.fan_out} + 1 models, "
        f"f = {defence.byzantine}, {setting.task.data} {setting.task.partition}, seed {setting.seed}"
    )


class Board:
    """Shows each measured round: a table that grows on a terminal, lines elsewhere. A context manager."""

    def __init__(self, console: Console, setting: Setting) -> None:
        self._console = console
        self._table = Table(title=title(setting), title_justify="left")
        for column in ("round", "loss", "mean", "worst", "factor", "seconds"):
            self._table.add_column(column, justify="right")
        self._live = Live(self._table, console=console, auto_refresh=False) if console.is_terminal else None
        self._title = title(setting)

    def show(self, measured: Measured) -> None:
        cells = [
            str(measured.round),
            "–" if measured.loss is None else f"{measured.loss:.4f}",
            f"{measured.mean:.4f}",
            f"{measured.worst:.4f}",
            "–" if measured.factor is None else f"{measured.factor:g}",
            f"{measured.seconds:.0f}",
        ]
        if self._live is not None:
            self._table.add_row(*cells)
            self._live.refresh()
            return
        self._console.print(
            f"round {cells[0]}: loss {cells[1]}, honest accuracy {cells[2]} mean {cells[3]} worst, "
            f"factor {cells[4]}, {cells[5]} s",
            highlight=False,
            soft_wrap=True,
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(self._title, highlight=False, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def figures(outcome: Outcome) -> dict[str, Any]:
    """Everything of a run as JSON: what was asked for, each measured round, and the end."""
    setting = outcome.setting
    return {
        "peers": setting.peers,
        "byzantine": setting.byzantine,
        "attack": str(setting.attack),
        "aggregate": str(setting.defence.rule),
        "fan_out": setting.defence.fan_out,
        "f": setting.defence.byzantine,
        "data": setting.task.data if setting.task.data and os.sep not in setting.task.data else "own data",
        "model": None if setting.task.model is None else setting.task.model.rpartition(":")[2],
        "partition": setting.task.partition,
        "labels_per_peer": setting.task.labels_per_peer,
        "seed": setting.seed,
        "training": asdict(setting.training),
        "rounds": [
            {
                "round": measured.round,
                "loss": measured.loss,
                "mean": measured.mean,
                "worst": measured.worst,
                "factor": measured.factor,
                "accuracies": list(measured.accuracies),
                "seconds": round(measured.seconds, 3),
                "final": measured.final,
            }
            for measured in outcome.measured
        ],
        "mean": outcome.final.mean,
        "worst": outcome.final.worst,
        "seconds_rounds": round(outcome.seconds, 3),
        "seconds": round(outcome.final.seconds, 3),
        "peer_rounds_per_second": round(outcome.peer_rounds_per_second, 1),
    }


def write(outcome: Outcome, folder: Path) -> list[Path]:
    """Writes `simulation.json` and `simulation.png` into `folder`. Raises `UsageError`."""
    paths = [folder / FIGURES, folder / PICTURE]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(paths[0], figures(outcome))
        draw([outcome], paths[1])
    except OSError as error:
        raise UsageError(f"cannot write into {folder} ({error.strerror}): choose another --out DIR") from None
    return paths


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Mean and worst honest accuracy over the rounds, one colour a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from p2pfl_train.plots.style import SIZE_INCHES, styled

    with styled():
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        _curves(figure, outcomes)
        figure.savefig(path, format="png", metadata={"Software": None})


def _curves(figure: Figure, outcomes: Sequence[Outcome]) -> None:
    from p2pfl_train.plots.style import OKABE_ITO

    axes = figure.add_subplot()
    for index, outcome in enumerate(outcomes):
        colour = OKABE_ITO[index % len(OKABE_ITO)]
        rounds = [measured.round for measured in outcome.measured]
        means = [measured.mean for measured in outcome.measured]
        worst = [measured.worst for measured in outcome.measured]
        name = f"{outcome.setting.attack}, {outcome.setting.defence.rule}" if len(outcomes) > 1 else "mean"
        axes.fill_between(rounds, worst, means, color=colour, alpha=0.12, linewidth=0)
        axes.plot(rounds, means, color=colour, marker="o", markersize=3, label=name)
        dashed: dict[str, Any] = {
            "linestyle": (0, (5, 1.6)),
            "marker": "o",
            "markersize": 3,
            "markerfacecolor": "white",
        }
        axes.plot(rounds, worst, color=colour, label="worst" if index == 0 else None, **dashed)
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy of honest peers")
    axes.set_ylim(0, 1.01)
    axes.legend(loc="lower right")
    if len(outcomes) == 1:
        axes.set_title(title(outcomes[0].setting), fontsize=10)
