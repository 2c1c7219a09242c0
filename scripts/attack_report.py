"""The report of `make attack`: a page, its figures as JSON, and the bounds that were not kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from p2pfl_state import atomic

from scripts import attack_picture
from scripts.attack_grids import Cell, Comparison, Grid
from scripts.paper_report import machine

PICTURE = "accuracy.png"
Figures = Mapping[str, Mapping[str, Any]]
"""Of each finished cell, by its name, as `p2pfl_train.redteam.results.figures` makes them."""


def write(out: Path, grid: Grid, done: Figures, data: str, model: str | None) -> list[str]:
    """Writes page, figures and picture into `out`; the bounds that are not kept, one line each."""
    broken = list(_broken(grid, done))
    size = machine()
    known = data if ":" not in data and "/" not in data else "own data"
    said = [model, *(figures["model"] for figures in done.values())]
    network = next((str(name).rpartition(":")[2] for name in said if name), "default model")
    report = {
        "data": known,
        "model": network,
        "machine": size,
        "cells": [{**done[cell.name], "model": network} for cell in grid.cells if cell.name in done],
        "not_kept": broken,
    }
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_json(out / "report.json", report)
    attack_picture.draw(grid.cells, done, out / PICTURE)
    (out / "report.md").write_text(_page(grid, done, report), encoding="utf-8")
    return broken


def _broken(grid: Grid, done: Figures) -> Iterator[str]:
    for cell in grid.cells:
        found = done.get(cell.name)
        if found is None:
            continue
        for what, least in (("mean", cell.mean_at_least), ("worst", cell.worst_at_least)):
            if least is not None and found[what] < least:
                yield f"{cell.name}: {what} {found[what]:.4f}, at least {least:g}"
    for comparison in grid.comparisons:
        difference = _difference(comparison, done)
        if difference is not None and difference > comparison.at_most:
            yield f"{comparison.cell.name}: {difference:.4f} below {comparison.why}"


def _difference(comparison: Comparison, done: Figures) -> float | None:
    one, other = done.get(comparison.cell.name), done.get(comparison.other.name)
    return None if one is None or other is None else float(other["mean"] - one["mean"])


def _page(grid: Grid, done: Figures, report: Mapping[str, Any]) -> str:
    size = report["machine"]
    some = next(iter(done.values()), None)
    lines = [
        f"# Liars against {report['model']} on {report['data']}",
        "",
        "Accuracy of the honest peers on all dev examples after the last round's aggregation: their mean, "
        f"and that of the worst of them. {size['cores']} cores, {size['memory_bytes'] / 2**30:.0f} GiB.",
    ]
    if some is not None:
        training = some["training"]
        lines += [
            "",
            f"Each round every peer takes {training['local_steps']} step(s) of batch "
            f"{training['batch_size']} (sgd, learning rate {training['optimiser']['learning_rate']:g}, "
            f"momentum {training['optimiser']['momentum']:g}) and pulls from random others. f is what the "
            "planner makes of the number of liars for a risk of 0.05 over the whole run.",
        ]
    for group in dict.fromkeys(cell.group for cell in grid.cells if cell.name in done):
        lines += ["", f"## {group[:1].upper()}{group[1:]}", "", *_table(grid, done, group)]
    differences = [
        (comparison, difference)
        for comparison in grid.comparisons
        if (difference := _difference(comparison, done)) is not None
    ]
    if differences:
        lines += [
            "",
            "## Beside other runs",
            "",
            "| run | beside | points below | at most |",
            "| --- | --- | ---: | ---: |",
        ]
        lines += [
            f"| {_title(comparison.cell)} | {comparison.why} | {100 * difference:.2f} | "
            f"{100 * comparison.at_most:g} |"
            for comparison, difference in differences
        ]
    lines += ["", f"![mean and worst accuracy of each run]({PICTURE})"]
    lines += ["", "## Bounds that are not kept", ""]
    lines += [f"- {line}" for line in report["not_kept"]] or ["None."]
    return "\n".join(lines) + "\n"


def _table(grid: Grid, done: Figures, group: str) -> list[str]:
    lines = [
        "| attack | rule | models | f | seed | mean | worst | bound (mean / worst) | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for cell in grid.cells:
        if cell.group != group or cell.name not in done:
            continue
        found = done[cell.name]
        bounds = " / ".join("–" if b is None else f"{b:g}" for b in (cell.mean_at_least, cell.worst_at_least))
        lines.append(
            f"| {cell.attack} | {cell.aggregate} | {found['fan_out'] + 1} of {cell.peers} | {found['f']} | "
            f"{cell.seed} | {found['mean']:.4f} | {found['worst']:.4f} | {bounds} | {found['seconds']:.0f} |"
        )
    return lines


def _title(cell: Cell) -> str:
    return f"{cell.attack}, {cell.peers} peers, {cell.byzantine} liars, {cell.partition}, seed {cell.seed}"
