"""`p2pfl-net simulate`: the daemon's own membership on a virtual clock, and what it took."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p2pfl_net.errors import UsageError
from p2pfl_net.sim.cluster import Cluster, Outcome, Scenario
from p2pfl_net.sim.conditions import Conditions

Trace = Callable[[float, int, str, Any], None]


def run(options: argparse.Namespace) -> None:
    """Runs the scenario and prints what came of it. Raises `UsageError`."""
    scenario, conditions = _scenario(options), _conditions(options)
    gc.disable()  # nothing here is cyclic garbage, and the tables of thousands of peers are large
    with _trace_to(options.trace) as trace:
        outcome = Cluster(scenario, conditions, options.seed, trace=trace).run()
    sys.stdout.write(json.dumps(outcome.to_json()) + "\n" if options.json else _table(outcome))


def _scenario(options: argparse.Namespace) -> Scenario:
    if not 2 <= options.peers <= 20_000:
        raise UsageError(f"--peers {options.peers}: give 2 to 20000")
    if not 0 < options.seconds <= 86_400:
        raise UsageError(f"--seconds {options.seconds:g}: give a positive number, at most a day's 86400")
    seconds = options.seconds
    kill = tuple((share, at) for share, at, _ in map(_at("--kill", seconds), options.kill))
    join = tuple((int(count), at) for count, at, _ in map(_at("--join", seconds), options.join))
    partition = tuple(
        (at, end, share) for share, at, end in map(_at("--partition", seconds), options.partition)
    )
    pause = tuple((share, at, end - at) for share, at, end in map(_at("--pause", seconds), options.pause))
    return Scenario(
        options.peers, options.seconds, options.joined, options.churn, kill, join, partition, pause
    )


def _conditions(options: argparse.Namespace) -> Conditions:
    try:
        low, high = (float(part) / 1000 for part in options.latency.split("-"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high:
        raise UsageError(f"--latency {options.latency!r}: give milliseconds as A-B, such as 1-20")
    return Conditions(
        (low, high),
        options.loss,
        options.drop,
        options.duplicate,
        options.reorder,
        options.one_way,
        options.skew,
    )


def _at(option: str, seconds: float) -> Callable[[str], tuple[float, float, float]]:
    """Reads `WHAT@FROM` and `WHAT@FROM-TO`, within a run of so many seconds; without an end, it is the
    beginning."""

    def parse(text: str) -> tuple[float, float, float]:
        what, _, when = text.partition("@")
        begin, _, end = when.partition("-")
        try:
            amount, start = float(what), float(begin)
            stop = float(end) if end else start
        except ValueError:
            amount, start, stop = 0.0, 0.0, 0.0
        needs_end = option in ("--partition", "--pause")
        is_share = option != "--join"
        if amount <= 0 or (is_share and amount >= 1) or start < 0 or (stop <= start) is needs_end:
            example = "0.5@20-50" if needs_end else "0.3@20" if is_share else "100@20"
            raise UsageError(f"{option} {text!r}: give it as {example}")
        if stop >= seconds:
            raise UsageError(f"{option} {text!r}: the run is over by then; give --seconds above {stop:g}")
        return amount, start, stop

    return parse


@contextmanager
def _trace_to(path: Path | None) -> Iterator[Trace | None]:
    if path is None:
        yield None
        return
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"--trace {path}: {error.strerror}; name a file that can be written") from None
    with file:

        def write(now: float, peer: int, way: str, what: Any) -> None:
            line = {"time": round(now, 6), "peer": peer, "way": way, "event": repr(what)}
            file.write(json.dumps(line) + "\n")

        yield write


def _table(outcome: Outcome) -> str:
    rows = [
        ("seed", str(outcome.seed)),
        ("peers at first, live at the end", f"{outcome.peers}, {outcome.live}"),
        ("virtual seconds", f"{outcome.virtual_seconds:.1f}"),
        ("all views right after the last change", _seconds(outcome.convergence_s)),
        ("a newcomer is in every view", _spread(outcome.join_spread_s)),
        ("the first notices a death", _spread(outcome.first_detection_s)),
        ("a dead peer is out of every view", _spread(outcome.detection_s)),
        ("declared dead, and could answer", str(outcome.false_positives)),
        ("views that lost a living peer for a while", str(outcome.living_dropped)),
        ("messages per peer and second", f"{outcome.messages_per_peer_s:.2f}"),
        ("bytes per peer and second", f"{outcome.bytes_per_peer_s:.0f}"),
    ]
    return "".join(f"{name:<40} {value}\n" for name, value in rows)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.1f} s, at most {ordered[-1]:.1f} s ({len(ordered)})"
