"""The three pictures over time: accuracy, training cycles, and known peers of every peer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl_train.plots.curves import fit_learning_curve
from p2pfl_train.plots.records import CycleLine, History
from p2pfl_train.plots.style import (
    MEAN_COLOUR,
    SIZE_INCHES,
    WORST_COLOUR,
    Run,
    Series,
    say_empty,
    shorten,
    together,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_ACCURACY = "accuracy (evaluation data)"
ZOOM_FLOORS = (0.5, 0.8, 0.9, 0.95)
APART = 0.03
"""How far the lines of known peers, all whole numbers, are drawn from each other."""
FIT_LABEL = r"fit: $a - b\,(1 + t/\tau)^{-p}$"


def draw_accuracy(run: Run, figure: Figure) -> None:
    """Accuracy after averaging as lines with their fits, after local training as dots.

    A run that ends well gets a second panel with the upper part of the scale.
    """
    averaged = _measured(run, lambda line: line.accuracy_averaged)
    trained = _measured(run, lambda line: line.accuracy_trained)
    floor = _zoom_floor([*averaged, *trained])
    panels: list[Axes] = list(figure.subplots(1 if floor is None else 2, 1, sharex=True, squeeze=False)[:, 0])
    panels[0].set_title("Accuracy of every peer over time")
    run.clock.label(panels[-1])
    if not averaged and not trained:
        panels[0].set_ylabel(_ACCURACY)
        say_empty(panels[0], "no accuracy has been measured yet")
        return
    for axes in panels:
        axes.set_ylabel(_ACCURACY)
        _draw_accuracies(run, axes, averaged, trained)
    lowest = min(float(one.values.min()) for one in (*averaged, *trained))
    panels[0].set_ylim(max(0.0, float(np.floor(lowest * 10 - 0.2)) / 10), 1.01)
    if floor is not None:
        figure.set_size_inches(SIZE_INCHES[0], 1.35 * SIZE_INCHES[1])
        panels[1].set_ylim(floor, 1.0 + 0.02 * (1.0 - floor))
        panels[1].set_title(f"the same above {floor:g}", fontsize=10, fontweight="normal")
    _legend(run, figure, panels, _accuracy_marks(run))


def _zoom_floor(series: Sequence[Series]) -> float | None:
    """From where on to show the scale again: most of the later measurements lie above it."""
    if not series:
        return None
    late = np.concatenate([one.values[len(one.values) // 2 :] for one in series])
    typical, lowest = float(np.quantile(late, 0.05)), min(float(one.values.min()) for one in series)
    floors = [floor for floor in ZOOM_FLOORS if lowest + 0.1 < floor < typical]
    return max(floors, default=None)


def _draw_accuracies(run: Run, axes: Axes, averaged: Sequence[Series], trained: Sequence[Series]) -> None:
    many = run.palette.many
    for one in trained:
        axes.plot(one.times, one.values, color=run.palette.colour(one.index), rasterized=many, **_dots(many))
    _draw_lines(run, axes, averaged, width=0.6 if many else 0.9, alpha=0.3 if many else 0.5)
    for one in averaged:
        _draw_fit(axes, one, **run.palette.line(one.index), linewidth=0.9 if many else 2.0)
    if many and averaged:
        _draw_together(run, axes, averaged, "worst peer at each moment")
    for index, history in enumerate(run.histories):
        for line in history.finals:
            if line.accuracy_averaged is not None:
                colour = run.palette.colour(index)
                axes.plot(run.clock([line.time]), [line.accuracy_averaged], color=colour, **_STAR)


_STAR: dict[str, Any] = {"marker": "*", "markersize": 9, "linestyle": "none", "zorder": 6, "clip_on": False}


def _dots(many: bool) -> dict[str, Any]:
    size, alpha = (3.0, 0.25) if many else (4.5, 0.4)
    return {
        "linestyle": "none",
        "marker": ".",
        "markersize": size,
        "markeredgewidth": 0,
        "alpha": alpha,
        "zorder": 2,
    }


def _accuracy_marks(run: Run) -> list[Line2D]:
    """What lines, dots and stars mean, in grey, whatever the peer."""
    from matplotlib.lines import Line2D

    grey = "#555555"
    marks = [
        Line2D([], [], color=grey, linewidth=1.0, alpha=0.7, label="after averaging"),
        Line2D([], [], color=grey, **_dots(False) | {"markersize": 7}, label="after local training"),
    ]
    marks.insert(1, Line2D([], [], color=grey, linewidth=2.0, label=FIT_LABEL))
    if any(history.finals for history in run.histories):
        marks.append(Line2D([], [], color=grey, **_STAR, label="at the end, on all examples"))
    return marks


def draw_cycles(run: Run, figure: Figure) -> None:
    """Number of the cycle that each peer has finished."""
    axes = figure.subplots()
    series = _measured(run, lambda line: line.cycle)
    axes.set_title("Training cycles over time")
    axes.set_ylabel("cycles finished")
    run.clock.label(axes)
    if not series:
        say_empty(axes, "no cycle has been finished yet")
        return
    many = run.palette.many
    _draw_lines(run, axes, series, width=0.9 if many else 1.8, alpha=0.6 if many else 0.9)
    if many:
        _draw_together(run, axes, series, "fewest of any peer")
    axes.set_ylim(bottom=0)
    whole_numbers(axes.yaxis)
    _legend(run, figure, [axes], [])


def draw_known_peers(run: Run, figure: Figure) -> None:
    """How many live others each daemon knew."""
    axes = figure.subplots()
    series = _known(run)
    axes.set_title("Known peers over time")
    axes.set_ylabel("live other peers known" + ("" if run.palette.many else " (equal lines drawn apart)"))
    run.clock.label(axes)
    if not series:
        say_empty(axes, "no daemon has written a membership event yet")
        return
    many = run.palette.many
    width, alpha = (0.9, 0.6) if many else (1.8, 0.9)
    _draw_lines(run, axes, series, width=width, alpha=alpha, steps=True, apart=0.0 if many else APART)
    if many:
        _draw_together(run, axes, series, "fewest of any peer")
    axes.set_ylim(bottom=-0.2)
    whole_numbers(axes.yaxis)
    _legend(run, figure, [axes], [])


def _measured(run: Run, value: Callable[[CycleLine], float | None]) -> list[Series]:
    """One series for each peer that has any, of the cycles' lines that carry the value."""
    found = []
    for index, history in enumerate(run.histories):
        pairs = [(line.time, number) for line in history.cycles if (number := value(line)) is not None]
        if pairs:
            times, values = zip(*pairs, strict=True)
            breaks = tuple(run.clock([before for before, _ in history.silences]))
            found.append(Series(index, run.clock(times), np.array(values, dtype=np.float64), breaks))
    return found


def _known(run: Run) -> list[Series]:
    """Each value holds until the next, the last until the peer's last line of any kind."""
    found = []
    for index, history in enumerate(run.histories):
        if history.known:
            times = [line.time for line in history.known] + [max(history.times)]
            values = [line.peers for line in history.known] + [history.known[-1].peers]
            breaks = tuple(run.clock(_daemon_ends(history)))
            found.append(Series(index, run.clock(times), np.array(values, dtype=np.float64), breaks))
    return found


def _daemon_ends(history: History) -> list[float]:
    """Unix seconds after which the daemon was down: a join that adds nobody begins another life."""
    ends = []
    for before, now in pairwise(history.known):
        silent = [start for start, _ in history.silences if before.time <= start < now.time]
        if silent and now.joined and now.peers <= before.peers:
            ends.append(silent[-1])
    return ends


def _draw_lines(
    run: Run,
    axes: Axes,
    series: Sequence[Series],
    *,
    width: float,
    alpha: float,
    steps: bool = False,
    apart: float = 0.0,
) -> None:
    """One line a peer; with `apart`, equal values of neighbours are drawn that far from each other."""
    middle = (len(run.histories) - 1) / 2
    for one in series:
        times, values = one.broken(steps=steps)
        axes.plot(
            times,
            values + apart * (one.index - middle),
            **run.palette.line(one.index),
            linewidth=width,
            alpha=alpha,
            drawstyle="steps-post" if steps else "default",
            marker="." if len(one.times) == 1 else "",
            zorder=3,
        )


def _draw_together(run: Run, axes: Axes, series: Sequence[Series], least: str) -> None:
    """Mean and minimum over all peers, above the lines of each."""
    both = together(series, run.end)
    style: dict[str, Any] = {"drawstyle": "steps-post"}
    axes.plot(
        both.times, both.mean, color=MEAN_COLOUR, linewidth=2.0, label="mean of all peers", zorder=6, **style
    )
    axes.plot(both.times, both.least, color=WORST_COLOUR, linewidth=1.0, label=least, zorder=5, **style)


def _draw_fit(axes: Axes, one: Series, **style: Any) -> None:
    curve = fit_learning_curve(one.times, one.values)
    if curve is not None:
        grid = np.linspace(one.times[0], one.times[-1], 300)
        axes.plot(grid, curve(grid), solid_capstyle="round", zorder=4, **style)


def _legend(run: Run, figure: Figure, panels: Sequence[Axes], marks: Sequence[Line2D]) -> None:
    """Outside the axes: peers at the right, by colour bar when there are many; what the marks mean below."""
    from matplotlib.lines import Line2D

    if run.palette.many:
        run.palette.colour_bar(figure, panels)
        marks = [*(line for line in panels[0].lines if not str(line.get_label()).startswith("_")), *marks]
    else:
        peers = [
            Line2D([], [], **run.palette.line(index), linewidth=2.2, label=shorten(history.name))
            for index, history in enumerate(run.histories)
        ]
        figure.legend(handles=peers, loc="outside right upper", title="peer")
    silent = sum(not history.times for history in run.histories)
    if silent:
        marks = [*marks, Line2D([], [], linestyle="none", label=f"({silent} without a measurement)")]
    if marks:
        figure.legend(handles=list(marks), loc="outside lower center", ncols=3 if len(marks) > 4 else 4)
