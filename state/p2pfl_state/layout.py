"""Every path of a state directory, as a pure function of its root. No other file spells a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CONTRACT_VERSION = 1
"""Version of the state-directory contract that this code writes and reads."""

_FETCHED_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")


@dataclass(frozen=True)
class StateDir:
    """Paths of one peer's state directory. Nothing here touches the disk."""

    root: Path

    # locks: each held by its process for its whole life
    @property
    def daemon_lock(self) -> Path:
        return self.root / "daemon.lock"

    @property
    def trainer_lock(self) -> Path:
        return self.root / "trainer.lock"

    # markers
    @property
    def boot_done(self) -> Path:
        return self.root / ".BOOT_DONE"

    @property
    def aggregate(self) -> Path:
        return self.root / ".AGGREGATE"

    @property
    def aggregate_done(self) -> Path:
        return self.root / ".AGGREGATE_DONE"

    # written by the trainer
    @property
    def model(self) -> Path:
        return self.root / "model.safetensors"

    @property
    def task(self) -> Path:
        return self.root / "task.json"

    @property
    def trainer_state(self) -> Path:
        return self.root / "trainer.safetensors"

    @property
    def received_source(self) -> Path:
        return self.root / "received.py"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    # written by the daemon
    @property
    def home(self) -> Path:
        return self.root / "home.json"

    @property
    def key(self) -> Path:
        return self.root / "key.pem"

    @property
    def rotations(self) -> Path:
        return self.root / "rotations.json"

    @property
    def known_peers(self) -> Path:
        return self.root / "known_peers.json"

    @property
    def signed_version(self) -> Path:
        return self.root / "signed_version.json"

    @property
    def evicted(self) -> Path:
        return self.root / "evicted.json"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.jsonl"

    @property
    def peers(self) -> Path:
        return self.root / "peers.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def aggregation(self) -> Path:
        return self.root / "aggregation"

    def round_dir(self, round_number: int) -> Path:
        return self.aggregation / str(round_number)

    def fetched_model(self, round_number: int, peer_id: str) -> Path:
        """Where the model of `peer_id` (64 lower-case hex digits) of one round appears."""
        name = f"{peer_id}.safetensors"
        assert _FETCHED_NAME.fullmatch(name), peer_id
        return self.round_dir(round_number) / name

    def fetched_task(self, round_number: int) -> Path:
        return self.round_dir(round_number) / "task.json"

    @property
    def trust_requests(self) -> Path:
        return self.root / "trust_requests.json"

    @property
    def trust_heirs(self) -> Path:
        return self.root / "trust_heirs.json"

    # written by the commands with which a person decides
    @property
    def trust(self) -> Path:
        return self.root / "trust.json"

    @property
    def trust_lock(self) -> Path:
        return self.root / "trust.lock"

    @property
    def withdrawn(self) -> Path:
        return self.root / ".WITHDRAWN"

    # written by the launcher that started the pair
    @property
    def daemon_log(self) -> Path:
        return self.root / "daemon.log"

    @property
    def trainer_log(self) -> Path:
        return self.root / "trainer.log"

    @property
    def launcher(self) -> Path:
        return self.root / "launcher.json"

    @property
    def launcher_lock(self) -> Path:
        return self.root / "launcher.lock"

    @property
    def launcher_log(self) -> Path:
        return self.root / "launcher.log"


def temporary(path: Path) -> Path:
    """The name under which `path` is written before it is renamed into place.

    It can be fixed because each path has one writer: a crash leaves at most one such file, and the
    next write of the same path replaces it.
    """
    return path.with_name(f".{path.name}.tmp")
