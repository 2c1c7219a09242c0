"""The report of `make paper`: report.md, report.json and the four pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from p2pfl_state.layout import StateDir

from p2pfl_train.plots.draw import draw
from p2pfl_train.plots.records import History, read_histories
from p2pfl_train.plots.summary import PeerSummary, summarise
from scripts.paper_plan import Plan, Times

LEVELS = (0.90, 0.95)


def write(plan: Plan, states: Sequence[StateDir], times: Times) -> tuple[Path, Path]:
    """Writes all files into the plan's folder; returns report.md and report.json.

    Raises `TrainError`, `StateError`.
    """
    roots = [state.root for state in states]
    report = figures(plan, summarise(roots, since=times.last_start), read_histories(roots), times)
    draw(roots, plan.out)
    text, data = plan.out / "report.md", plan.out / "report.json"
    data.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    text.write_text(markdown(report), encoding="utf-8")
    return text, data


def machine() -> dict[str, Any]:
    """The size of this machine and the versions that count."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": pages * page_bytes,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def figures(
    plan: Plan, summaries: Sequence[PeerSummary], histories: Sequence[History], times: Times
) -> dict[str, Any]:
    """All figures of the report as JSON; times in seconds from the last start, accuracies from 0 to 1."""
    since = times.last_start
    drops = [peer.worst_drop for peer in summaries if peer.worst_drop is not None]
    first_steps = [line.time - line.accounted_s for history in histories for line in history.cycles[:1]]
    last_first_step_s = max(first_steps) - since if len(first_steps) == len(histories) else None
    return {
        "machine": machine(),
        "options": {
            "peers": plan.peers,
            "minutes": plan.minutes,
            "model": plan.model,
            "data": plan.data,
            "trainer": list(plan.train),
            "kill": plan.kill,
        },
        "starting_s": times.last_start - times.started[0],
        "last_first_step_s": last_first_step_s,
        "all_above": {
            f"{level:.2f}": {
                "each_once_s": _latest([_first_above(history, level, since) for history in histories]),
                "all_at_once_s": all_above_at_once(histories, level, since),
            }
            for level in LEVELS
        },
        "final_averaged": spread([final_accuracy(peer) for peer in summaries]),
        "final_not_averaged": sum(
            peer.final_averaged is None and peer.final_trained is not None for peer in summaries
        ),
        "final_trained": spread([peer.final_trained for peer in summaries]),
        "worst_drop": max(drops, default=None),
        "rounds_asked": sum(peer.rounds_asked for peer in summaries),
        "rounds_answered": sum(peer.rounds_answered for peer in summaries),
        "rounds_failed": sum(peer.rounds_failed for peer in summaries),
        "share_waiting_most": max(peer.share_waiting for peer in summaries),
        "starting_most_s": max(peer.starting_s for peer in summaries),
        "killed": None if times.killed is None else killed_figures(summaries, histories, times),
        "peers": [asdict(peer) for peer in summaries],
    }


def _first_above(history: History, level: float, since: float) -> float | None:
    for line in history.cycles:
        if line.accuracy_averaged is not None and line.accuracy_averaged >= level:
            return line.time - since
    return None


def _latest(times_s: Sequence[float | None]) -> float | None:
    reached = [time_s for time_s in times_s if time_s is not None]
    return max(reached) if len(reached) == len(times_s) and reached else None


def all_above_at_once(histories: Sequence[History], level: float, since: float) -> float | None:
    """The first moment at which the latest accuracy after averaging of every peer is at least `level`."""
    measured = sorted(
        (line.time, number, line.accuracy_averaged)
        for number, history in enumerate(histories)
        for line in history.cycles
        if line.accuracy_averaged is not None
    )
    latest = [0.0] * len(histories)
    for time, number, accuracy in measured:
        latest[number] = accuracy
        if min(latest) >= level:
            return time - since
    return None


def final_accuracy(peer: PeerSummary) -> float | None:
    """Of the model that a peer ends with: after the last average, or after local training when that brought
    no model; None when it measured neither."""
    return peer.final_trained if peer.final_averaged is None else peer.final_averaged


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean and worst; None when a peer has none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": sum(known) / len(known), "worst": min(known)}


def killed_figures(
    summaries: Sequence[PeerSummary], histories: Sequence[History], times: Times
) -> dict[str, Any]:
    """What the kill cost the others, and in how many rounds the killed one was back above 0.95."""
    names = [path.name.rpartition("/")[2] for path in histories]
    back = histories[names.index(str(times.killed))]
    rounds, rounds_to_095 = 0, None
    for line in back.cycles:
        if line.time < times.restarted_at or not line.answered:
            continue
        rounds += line.answered
        if line.accuracy_averaged is not None and line.accuracy_averaged >= 0.95:
            rounds_to_095 = rounds
            break
    return {
        "peer": times.killed,
        "killed_s": times.killed_at - times.last_start,
        "restarted_s": times.restarted_at - times.last_start,
        "others_rounds_failed": sum(
            peer.rounds_failed for name, peer in zip(names, summaries, strict=True) if name != times.killed
        ),
        "rounds_to_095": rounds_to_095,
    }


Cell = Callable[[PeerSummary], str]


def _accuracy(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} s"


def _rounds(peer: PeerSummary) -> str:
    return f"{peer.rounds_asked} / {peer.rounds_answered} / {peer.rounds_failed}"


COLUMNS: tuple[tuple[str, Cell], ...] = (
    ("peer", lambda peer: peer.name.rpartition("/")[2]),
    ("cycles", lambda peer: str(peer.cycles)),
    ("to 0.90", lambda peer: _seconds(peer.seconds_to_090)),
    ("to 0.95", lambda peer: _seconds(peer.seconds_to_095)),
    ("averaged, final", lambda peer: _accuracy(peer.final_averaged)),
    ("averaged, best", lambda peer: _accuracy(peer.best_averaged)),
    ("trained, final", lambda peer: _accuracy(peer.final_trained)),
    ("trained, best", lambda peer: _accuracy(peer.best_trained)),
    ("rounds asked / answered / failed", _rounds),
    ("waiting", lambda peer: f"{100 * peer.share_waiting:.2f} %"),
    ("training", lambda peer: f"{100 * peer.share_training:.0f} %"),
    ("worst drop", lambda peer: _accuracy(peer.worst_drop)),
)


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: what came out, the table of the peers, and how it was run."""
    summaries = [PeerSummary(**peer) for peer in report["peers"]]
    options, size = report["options"], report["machine"]
    name = f"{options['model']} on {options['data']}"
    memory_gib = size["memory_bytes"] / 2**30
    versions = f"{size['system']}, Python {size['python']}, torch {size['torch']}"
    pictures = ("accuracy", "cycles", "known_peers", "collection")
    lines = [
        f"# {options['peers']} peers, {name}, {options['minutes']:g} minutes",
        "",
        f"On {size['cores']} cores with {memory_gib:.0f} GiB ({versions}), one torch thread a peer. Times "
        f"count from the start of the last peer, {report['starting_s']:.0f} s after the first; the last "
        f"trainer's first step came {_seconds(report['last_first_step_s'])} after it. Accuracies on the way "
        "are of at most 500 dev examples, final ones of all.",
        "",
        *(_level(level, times) for level, times in report["all_above"].items()),
        f"- final accuracy after averaging: {_spread(report['final_averaged'])}; after local training: "
        f"{_spread(report['final_trained'])}",
        *_not_averaged(report["final_not_averaged"]),
        f"- worst drop by an average once past 0.90: {_accuracy(report['worst_drop'])}",
        f"- rounds: {report['rounds_asked']} asked, {report['rounds_answered']} answered, "
        f"{report['rounds_failed']} failed",
        f"- waiting for the network: at most {100 * report['share_waiting_most']:.2f} % of a trainer's time, "
        "with the last average; for the first weights, before it trained, at most "
        f"{report['starting_most_s']:.1f} s",
        *_killed(report["killed"]),
        "",
        "| " + " | ".join(name for name, _ in COLUMNS) + " |",
        "| --- " + "| ---: " * (len(COLUMNS) - 1) + "|",
        *("| " + " | ".join(cell(peer) for _, cell in COLUMNS) + " |" for peer in summaries),
        "",
        f"Options of every trainer: `{' '.join(options['trainer'])} --shard k/{options['peers']}`. What was "
        "tried before the defaults were settled: `docs/defaults.md`.",
        "",
        *(f"![{picture.replace('_', ' ')}]({picture}.png)" for picture in pictures),
    ]
    return "\n".join(lines) + "\n"


def _level(level: str, times: dict[str, float | None]) -> str:
    once, together = _seconds(times["each_once_s"]), _seconds(times["all_at_once_s"])
    return f"- all above {level} after averaging: each once: {once}; all at the same time: {together}"


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return "not measured by all"
    return f"mean {values['mean']:.4f}, worst {values['worst']:.4f}"


def _not_averaged(peers: int) -> list[str]:
    if not peers:
        return []
    return [f"- no model came to the last average of {peers} of the peers: what they trained counts there"]


def _killed(killed: dict[str, Any] | None) -> list[str]:
    if killed is None:
        return []
    rounds = killed["rounds_to_095"]
    back = "was not back above 0.95" if rounds is None else f"was back above 0.95 in its round {rounds}"
    return [
        f"- {killed['peer']} killed with -9 at {killed['killed_s']:.0f} s and restarted at "
        f"{killed['restarted_s']:.0f} s: the others lost {killed['others_rounds_failed']} rounds; it {back}"
    ]
