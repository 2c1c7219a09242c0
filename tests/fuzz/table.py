"""All targets: a new message or file gets a row in one of the three, where both fuzzers find it."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz import directory, identities, network
from tests.fuzz.target import Target


def all_targets(folder: Path) -> tuple[Target, ...]:
    """`folder`: an empty one, for those that read files."""
    return (*network.targets(), *directory.targets(folder), *identities.targets(folder))
