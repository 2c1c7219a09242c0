"""The picture of a grid: mean and worst honest accuracy of each cell, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.attack_grids import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 9.6
ROW_INCHES = 0.28
MARGIN_INCHES = 1.2


def draw(cells: Sequence[Cell], done: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One row a cell, the groups apart; `done` as in the report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from p2pfl_train.plots.style import styled

    rows = _rows(cells, done)
    height = MARGIN_INCHES + ROW_INCHES * len(rows)
    with styled():
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_rows(axes, rows, done)
        figure.savefig(path, format="png", metadata={"Software": None})


def _rows(cells: Sequence[Cell], done: Mapping[str, Mapping[str, Any]]) -> list[Cell | str]:
    """Headings and cells, from the top."""
    rows: list[Cell | str] = []
    for group in dict.fromkeys(cell.group for cell in cells):
        mine = [cell for cell in cells if cell.group == group and cell.name in done]
        if mine:
            rows += [group, *mine]
    return rows


def _draw_rows(axes: Axes, rows: Sequence[Cell | str], done: Mapping[str, Mapping[str, Any]]) -> None:
    from p2pfl_train.plots.style import OKABE_ITO, WORST_COLOUR

    labels = []
    for place, row in enumerate(rows):
        if isinstance(row, str):
            labels.append(row)
            continue
        found = done[row.name]
        labels.append(f"{row.attack}, {row.aggregate}, {found['fan_out'] + 1} models, seed {row.seed}")
        axes.plot([found["worst"], found["mean"]], [place, place], color="#bbbbbb", linewidth=2, zorder=1)
        axes.plot(found["worst"], place, "o", color=WORST_COLOUR, markersize=8, markerfacecolor="none")
        axes.plot(found["mean"], place, "o", color=OKABE_ITO[0], markersize=5)
        if row.worst_at_least is not None:
            axes.plot(row.worst_at_least, place, "|", color="#000000", markersize=9)
    axes.set_yticks(range(len(rows)), labels=labels)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        if isinstance(row, str):
            tick.set_fontweight("bold")
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(-0.01, 1.01)
    axes.set_xlabel("accuracy of honest peers: mean (dot), worst (ring), bound of the worst (bar)")
