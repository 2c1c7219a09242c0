"""State directories of runs that never were, written as trainer and daemon write them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pfl_state import atomic
from p2pfl_state.layout import StateDir

START = 1_700_000_000.0
"""Unix seconds of every made-up run's first moment."""
CYCLE_S = 2.0


def write_lines(
    root: Path, metrics: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> Path:
    """A state directory with these lines; returns `root`."""
    root.mkdir(parents=True, exist_ok=True)
    state = StateDir(root)
    for path, records in ((state.metrics, metrics), (state.events, events)):
        with atomic.JsonLines(path) as lines:
            for record in records:
                lines.append(record)
    return root


def write_run(
    folder: Path,
    peers: int,
    *,
    minutes: float = 10.0,
    stagger_s: float = 4.0,
    seed: int = 0,
) -> list[Path]:
    """A run of `peers` that start `stagger_s` apart and learn; a peer in the middle dies and comes back."""
    rng = random.Random(seed)
    starts = [START + stagger_s * index for index in range(peers)]
    end = START + 60.0 * minutes
    victim = peers // 2
    dead = (START + 30.0 * minutes, START + 30.0 * minutes + 60.0)
    roots = []
    for index in range(peers):
        metrics = _metrics(rng, starts, index, end, dead if index == victim else None)
        events = _events(rng, starts, index, victim, dead)
        roots.append(write_lines(folder / str(8000 + index), metrics, events))
    return roots


def _metrics(
    rng: random.Random,
    starts: Sequence[float],
    index: int,
    end: float,
    dead: tuple[float, float] | None,
) -> list[dict[str, Any]]:
    records = []
    time, cycle = starts[index], 0
    gift = rng.uniform(-0.008, 0.004)
    pace = CYCLE_S * rng.uniform(0.85, 1.2)
    while True:
        time += pace * rng.uniform(0.9, 1.3)
        if time > end:
            break
        if dead is not None and dead[0] < time < dead[1]:
            time = dead[1]
        cycle += 1
        age = time - starts[0]
        averaged = 0.988 + gift - 0.88 / (1 + age / 25) ** 2 + rng.gauss(0, 0.004)
        if rng.random() < 0.01:
            averaged -= rng.uniform(0.05, 0.3)
        trained = averaged - abs(rng.gauss(0.03, 0.015))
        evaluated = cycle % 3 == 1
        known = sum(start < time for start in starts)
        collected = rng.random() < 0.9 and known > 1
        records.append(
            {
                "time": time,
                "cycle": cycle,
                "version": cycle,
                "loss": 2.3 / cycle,
                "dev_loss_trained": 2.2 / cycle if evaluated else None,
                "dev_loss_averaged": 2.1 / cycle if evaluated else None,
                "accuracy_trained": _share(trained) if evaluated else None,
                "accuracy_averaged": _share(averaged) if evaluated else None,
                "models": 5 if collected else 0,
                "round": cycle,
                "asked": 1,
                "answered": int(collected),
                "failed": 0,
                "seconds_training": 0.8 * pace,
                "seconds_waiting": 0.0,
                "seconds_averaging": 0.03,
                "seconds_publishing": 0.02,
                "seconds_evaluating": 0.1,
                "peers": known - 1,
                "refused": 0,
                "collection_seconds": 0.03 + 0.001 * known + rng.expovariate(25) if collected else None,
                "network_peers": known if collected else None,
            }
        )
    records.append(
        {
            "time": time + 2,
            "cycle": cycle,
            "final": True,
            "accuracy_trained": 0.958,
            "accuracy_averaged": 0.984,
        }
    )
    return records


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _events(
    rng: random.Random, starts: Sequence[float], index: int, victim: int, dead: tuple[float, float]
) -> list[dict[str, Any]]:
    happened = [
        (max(start, starts[index]) + rng.uniform(0.2, 1.5), "peer_joined", 1)
        for other, start in enumerate(starts)
        if other != index
    ]
    if index != victim and len(starts) > 2:
        happened.append((dead[0] + rng.uniform(3, 6), "peer_lost", -1))
        happened.append((dead[1] + rng.uniform(0.2, 1.5), "peer_joined", 1))
    if index == victim:  # it starts again knowing nobody, and hears of all at once
        again = [(dead[1] + rng.uniform(0.2, 1.5), "peer_joined", 1) for _ in starts[1:]]
        happened += [(dead[1], "started", 1 - len(starts)), *again]
    known = 0
    records: list[dict[str, Any]] = [{"time": starts[index], "event": "started", "port": 8000 + index}]
    for time, event, change in sorted(happened):
        known += change
        peers = {"peers": known} if event != "started" else {}
        records.append({"time": time, "event": event, **peers})
    return records
