"""What a run says: one line of `metrics.jsonl` a cycle, and a display for who watches.

On a terminal the display is one table that is redrawn; elsewhere it is plain lines, at most one a
second, for a fast task has hundreds of cycles in one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from p2pfl_state.atomic import JsonLines
from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2pfl_train.evaluate import Evaluation
from p2pfl_train.exchange import Outcome
from p2pfl_train.liars import Aggregated

Part = Literal["starting", "training", "waiting", "averaging", "publishing", "evaluating"]
"""What the time of a cycle goes to. Starting is what a life waits for its daemon, its task and its first
weights, told with its first cycle; waiting, what a cycle stands still for others."""
SHOW_S = 1.0
"""Between two plain lines; the table on a terminal is redrawn four times as often."""


@dataclass
class CycleRecord:
    """What happened in one cycle, filled in as it goes; `to_json` is the line of `metrics.jsonl`."""

    cycle: int = 0
    version: int = 0
    loss: float | None = None
    """Mean training loss; None when nothing was trained or it was no number."""
    accuracy_trained: float | None = None
    accuracy_averaged: float | None = None
    dev_loss_trained: float | None = None
    dev_loss_averaged: float | None = None
    metrics_trained: Mapping[str, float] = field(default_factory=dict)
    """The task's own, as far as measured."""
    metrics_averaged: Mapping[str, float] = field(default_factory=dict)
    models: int = 0
    """Models of others that were averaged in."""
    aggregate: str = ""
    """The rule."""
    byzantine: int | None = None
    """f of the last aggregation: how many of the models, the own one among them, were taken for liars'."""
    too_few: int = 0
    """Models that came and were left out, for they were too few to outvote that many liars."""
    refused: int = 0
    round: int | None = None
    """The last round that was asked for or ended in this cycle."""
    asked: int = 0
    """Rounds, as the next two: the first cycle of a life also has those of the start."""
    answered: int = 0
    failed: int = 0
    failure: str | None = None
    peers: int | None = None
    """Live others, by the last answer of any cycle."""
    collection_s: float | None = None
    network_peers: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Adds the time spent inside to `part`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def note_asked(self, number: int) -> None:
        self.asked += 1
        self.round = number

    def note_outcome(self, outcome: Outcome) -> None:
        """Takes over how a round ended."""
        self.round = outcome.round
        self.refused += len(outcome.checked.refusals)
        if outcome.failure is not None:
            self.failed += 1
            self.failure = outcome.failure
        if outcome.answer is not None:
            self.answered += 1
            self.peers = self.network_peers = outcome.answer.peers
            self.collection_s = outcome.answer.seconds

    def note_aggregated(self, told: Aggregated) -> None:
        self.byzantine = told.byzantine
        self.models += told.models
        self.too_few += told.too_few

    def note_trained(self, measured: Evaluation) -> None:
        self.accuracy_trained, self.dev_loss_trained = measured.accuracy, measured.loss
        self.metrics_trained = measured.metrics

    def note_averaged(self, measured: Evaluation) -> None:
        self.accuracy_averaged, self.dev_loss_averaged = measured.accuracy, measured.loss
        self.metrics_averaged = measured.metrics

    def to_json(self, *, final: bool) -> dict[str, Any]:
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "cycle": self.cycle,
            "version": self.version,
            "loss": self.loss,
            "accuracy_trained": self.accuracy_trained,
            "accuracy_averaged": self.accuracy_averaged,
            "dev_loss_trained": self.dev_loss_trained,
            "dev_loss_averaged": self.dev_loss_averaged,
            "models": self.models,
            "aggregate": self.aggregate,
            "byzantine": self.byzantine,
            "too_few": self.too_few,
            "refused": self.refused,
            "round": self.round,
            "asked": self.asked,
            "answered": self.answered,
            "failed": self.failed,
            "failure": self.failure,
            "peers": self.peers,
            "collection_seconds": self.collection_s,
            "network_peers": self.network_peers,
            **{f"seconds_{part}": round(self.seconds.get(part, 0.0), 6) for part in get_args(Part)},
        }
        for name, metrics in (("trained", self.metrics_trained), ("averaged", self.metrics_averaged)):
            if metrics:
                line[f"metrics_{name}"] = dict(metrics)
        if final:
            line["final"] = True
        return line


class Report:
    """Writes the lines and keeps the display. A context manager."""

    def __init__(self, metrics: Path, console: Console, name: str) -> None:
        """`name` heads the display. Raises `DirectoryUnusable`."""
        self._lines = JsonLines(metrics)
        self._console = console
        self._name = name
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown_at_s = float("-inf")
        self._last: CycleRecord | None = None
        self._failed_rounds = 0

    def say(self, text: str) -> None:
        """One line for who watches."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def write(self, record: CycleRecord, *, final: bool = False) -> None:
        """Appends the record's line and shows it. Raises `DirectoryUnusable`."""
        self._lines.append(record.to_json(final=final))
        self._failed_rounds += record.failed
        self._last = self._merged(record)
        now_s = time.monotonic()
        if self._live is not None:
            if final or now_s - self._shown_at_s >= SHOW_S / 4:
                self._shown_at_s = now_s
                self._live.start()  # no sooner: it hides the cursor, and a signal before ends us at once
                self._live.update(self._table(self._last), refresh=True)
        elif final or now_s - self._shown_at_s >= SHOW_S:
            self._shown_at_s = now_s
            self.say(("final: " if final else "") + _plain(self._last))

    def _merged(self, record: CycleRecord) -> CycleRecord:
        """The record with the latest measurements where it has none: not every cycle is evaluated."""
        last = self._last
        if last is None:
            return record
        shown = CycleRecord(**vars(record))
        for name in ("loss", "accuracy_trained", "accuracy_averaged", "peers"):
            if getattr(shown, name) is None:
                setattr(shown, name, getattr(last, name))
        return shown

    def _table(self, record: CycleRecord) -> Table:
        table = Table(title=f"p2pfl-train {self._name}", title_justify="left")
        columns = {
            "cycle": str(record.cycle),
            "version": str(record.version),
            "loss": _number(record.loss),
            "trained": _number(record.accuracy_trained),
            "averaged": _number(record.accuracy_averaged),
            "models": str(record.models),
            "peers": "–" if record.peers is None else str(record.peers),
            "failed rounds": str(self._failed_rounds),
        }
        for column in columns:
            table.add_column(column, justify="right")
        table.add_row(*columns.values())
        return table

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._lines.close()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _plain(record: CycleRecord) -> str:
    peers = "" if record.peers is None else f", {record.peers} peers"
    return (
        f"cycle {record.cycle}: loss {_number(record.loss)}, "
        f"accuracy {_number(record.accuracy_trained)} trained {_number(record.accuracy_averaged)} averaged, "
        f"{record.models} models{peers}"
    )
