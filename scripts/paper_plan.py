"""What the paper's experiment is, and when each thing in it happened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """What the experiment is."""

    peers: int
    minutes: float
    """From the start of the last peer to the stop."""
    model: str
    data: str
    data_dir: str | None
    train: tuple[str, ...]
    """Options that every trainer gets, without --data-dir: that is this machine's business."""
    kill: bool
    cycles: int
    """At least, of each peer before the kill and of the killed one after it, whatever `minutes` is."""
    out: Path

    @property
    def states(self) -> Path:
        return self.out / "peers"


@dataclass
class Times:
    """What happened when, in unix seconds."""

    started: list[float]
    """Of each peer's processes, in order."""
    stopped: float = 0.0
    killed: str | None = None
    """Name of the peer that was killed."""
    killed_at: float = 0.0
    restarted_at: float = 0.0

    @property
    def last_start(self) -> float:
        return self.started[-1]
