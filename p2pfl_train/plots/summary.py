"""What a run came to, peer by peer: the figures that a report of an experiment prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from p2pfl_train.plots.records import CycleLine, History, origin, read_histories

PASSED = 0.90
"""From this accuracy on, an average that makes a peer worse counts as a drop."""


@dataclass(frozen=True)
class PeerSummary:
    """One peer's figures; accuracies from 0 to 1, None for what was never measured."""

    name: str
    cycles: int
    """Finished cycles of all lives."""
    seconds_to_first: float | None
    """From the origin of the times to the end of the first cycle."""
    seconds_to_090: float | None
    """From the origin to the first accuracy after averaging of at least 0.90."""
    seconds_to_095: float | None
    last_averaged: float | None
    best_averaged: float | None
    last_trained: float | None
    best_trained: float | None
    final_averaged: float | None
    """On all evaluation examples, at the end of the last life that ended cleanly."""
    final_trained: float | None
    rounds_asked: int
    rounds_answered: int
    rounds_failed: int
    starting_s: float
    """What all lives waited for the daemon, the task and the first weights, before their first cycles."""
    wall_s: float
    """From the start of the first cycle to the last line; time between two lives counts."""
    share_waiting: float
    """Of `wall_s`, as the other shares: in which training stood still for the network or for the end of
    a verification, the last average of each life included, but not `starting_s`. 0 when there is no cycle."""
    share_training: float
    share_averaging: float
    share_publishing: float
    share_evaluating: float
    worst_drop: float | None
    """Most that one average took away once the peer had reached 0.90: accuracy after local training
    less accuracy after averaging, of one cycle. 0 when none took anything; None when none was measured."""


def summarise(dirs: Sequence[Path], *, since: float | None = None) -> list[PeerSummary]:
    """The figures of each state directory, in the order given.

    `since` is the origin of the times in unix seconds, by default the first line of any peer. Raises
    `DataError` when one is not a directory or none holds a line; `StateError` when a file cannot be
    read.
    """
    histories = read_histories(dirs)
    start = origin(histories) if since is None else since
    return [_summarise(history, start) for history in histories]


def _summarise(history: History, start: float) -> PeerSummary:
    cycles = history.cycles
    averaged = [line.accuracy_averaged for line in cycles if line.accuracy_averaged is not None]
    trained = [line.accuracy_trained for line in cycles if line.accuracy_trained is not None]
    final = history.finals[-1] if history.finals else None
    lines = (*cycles, *history.finals)  # the last average of a life is asked for after its last cycle
    ended = max((line.time for line in lines), default=0.0)
    wall_s = ended - cycles[0].time + cycles[0].accounted_s if cycles else 0.0

    def share(seconds: float) -> float:
        return seconds / wall_s if wall_s > 0 else 0.0

    return PeerSummary(
        name=history.name,
        cycles=len(cycles),
        seconds_to_first=cycles[0].time - start if cycles else None,
        seconds_to_090=_seconds_to(0.90, cycles, start),
        seconds_to_095=_seconds_to(0.95, cycles, start),
        last_averaged=averaged[-1] if averaged else None,
        best_averaged=max(averaged, default=None),
        last_trained=trained[-1] if trained else None,
        best_trained=max(trained, default=None),
        final_averaged=final.accuracy_averaged if final else None,
        final_trained=final.accuracy_trained if final else None,
        rounds_asked=sum(line.asked for line in lines),
        rounds_answered=sum(line.answered for line in lines),
        rounds_failed=sum(line.failed for line in lines),
        starting_s=sum(line.starting_s for line in lines),
        wall_s=wall_s,
        share_waiting=share(sum(line.waiting_s for line in lines)),
        share_training=share(sum(line.training_s for line in lines)),
        share_averaging=share(sum(line.averaging_s for line in lines)),
        share_publishing=share(sum(line.publishing_s for line in lines)),
        share_evaluating=share(sum(line.evaluating_s for line in lines)),
        worst_drop=worst_drop(cycles),
    )


def _seconds_to(accuracy: float, cycles: Sequence[CycleLine], start: float) -> float | None:
    for line in cycles:
        if line.accuracy_averaged is not None and line.accuracy_averaged >= accuracy:
            return line.time - start
    return None


def worst_drop(cycles: Sequence[CycleLine]) -> float | None:
    """The most that one average took from a peer that had been at `PASSED` before it, or None.

    Compared are the two accuracies of one cycle, measured on the same examples.
    """
    worst: float | None = None
    passed = False
    for line in cycles:
        trained, averaged = line.accuracy_trained, line.accuracy_averaged
        passed = passed or (trained is not None and trained >= PASSED)
        if passed and trained is not None and averaged is not None and line.models != 0:
            worst = max(worst or 0.0, trained - averaged)
        passed = passed or (averaged is not None and averaged >= PASSED)
    return worst
