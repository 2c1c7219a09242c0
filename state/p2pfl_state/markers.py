"""The markers through which daemon and trainer talk: frozen, checked when written and when read.

A marker of an earlier life is recognised by the random instance id of its writer and by the round;
its reader decides with those fields, never by the file's age.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pfl_state import atomic
from p2pfl_state.fields import INSTANCE, Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir
from p2pfl_state.manifest import MAX_MANIFEST_BYTES, Manifest

MAX_FAN_OUT = 256
MIN_DEADLINE_S = 0.01
MAX_DEADLINE_S = 86400.0
MAX_FAILED = 4 * MAX_FAN_OUT
"""Failures that an answer lists; further ones are left out."""
MAX_REASON = 500
MAX_MARKER_BYTES = 2 * MAX_FAN_OUT * MAX_MANIFEST_BYTES
"""Bound of a marker file. An answer with `MAX_FAN_OUT` of the largest manifests stays below it, also
where each of their commas is followed by a space."""

_ONE_LINE = re.compile(r"[^\x00-\x1f]*")
_CONTROL = re.compile(r"[\x00-\x1f]")


def new_instance() -> str:
    """A random id for one life of a process: 32 hex digits."""
    return os.urandom(16).hex()


@dataclass(frozen=True)
class BootDone:
    """`.BOOT_DONE`: the network is up. Valid only while `daemon.lock` is held."""

    instance: str
    """Random id of this life of the daemon."""
    peer_id: str
    address: str
    """`host:port` at which this peer is reached, as far as it knows."""
    peers: int
    """How many others were known when the network was up."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.extra,
            "contract": CONTRACT_VERSION,
            "instance": self.instance,
            "peer_id": self.peer_id,
            "address": self.address,
            "peers": self.peers,
        }

    @classmethod
    def parse(cls, data: bytes) -> BootDone:
        """Raises `MalformedFile`."""
        fields = Fields(parse_object(data, ".BOOT_DONE"), ".BOOT_DONE")
        fields.contract()
        return cls(
            instance=fields.text("instance", pattern=INSTANCE),
            peer_id=fields.digest("peer_id"),
            address=fields.text("address"),
            peers=fields.integer("peers"),
            extra=fields.extra,
        )


@dataclass(frozen=True)
class Refusal:
    """One model of the round before that the trainer refused."""

    peer_id: str
    weights: str
    """Digest that the refused model announced."""
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"peer_id": self.peer_id, "weights": self.weights, "reason": self.reason[:MAX_REASON]}

    @classmethod
    def read(cls, value: Any) -> Refusal:
        fields = Fields(value, ".AGGREGATE refused")
        return cls(
            peer_id=fields.digest("peer_id"),
            weights=fields.digest("weights"),
            reason=fields.text("reason", limit=MAX_REASON),
        )


@dataclass(frozen=True)
class AggregateRequest:
    """`.AGGREGATE`: the trainer asks for the models of a random subset of peers."""

    instance: str
    """Random id of this life of the trainer."""
    round: int
    """Monotonic over restarts."""
    fan_out: int
    """How many models are wanted."""
    deadline_s: float
    """Seconds from the moment the daemon sees the request."""
    task: str | None
    """Digest of the task that the models must have; None takes the task of whoever has one."""
    want_task: bool = False
    """Whether the task description is wanted beside the models (a newcomer without one)."""
    delete_below: int = 0
    """The daemon may delete the files of rounds below this one."""
    refused: tuple[Refusal, ...] = ()
    """What the trainer refused since its last request."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.extra,
            "contract": CONTRACT_VERSION,
            "instance": self.instance,
            "round": self.round,
            "fan_out": self.fan_out,
            "deadline_s": self.deadline_s,
            "task": self.task,
            "want_task": self.want_task,
            "delete_below": self.delete_below,
            "refused": [refusal.to_json() for refusal in self.refused],
        }

    @classmethod
    def parse(cls, data: bytes) -> AggregateRequest:
        """Raises `MalformedFile`."""
        fields = Fields(parse_object(data, ".AGGREGATE"), ".AGGREGATE")
        fields.contract()
        return cls(
            instance=fields.text("instance", pattern=INSTANCE),
            round=fields.integer("round"),
            fan_out=fields.integer("fan_out", low=1, high=MAX_FAN_OUT),
            deadline_s=fields.number("deadline_s", low=MIN_DEADLINE_S, high=MAX_DEADLINE_S),
            task=fields.digest_or_none("task"),
            want_task=fields.flag("want_task"),
            delete_below=fields.integer("delete_below"),
            refused=tuple(Refusal.read(v) for v in fields.items("refused", limit=MAX_FAN_OUT)),
            extra=fields.extra,
        )


@dataclass(frozen=True)
class FetchedModel:
    """One model of an answered round: verified by size and file digest, its path under the layout."""

    peer_id: str
    manifest: Manifest
    """What the sender says of it. Whether the tensors fit is the trainer's to judge."""
    file_digest: str
    size_bytes: int
    seconds: float
    """From the start of this fetch to the file under its final name."""
    reused: bool
    """Whether the bytes were already here and not downloaded again."""

    def to_json(self) -> dict[str, Any]:
        return {
            "peer_id": self.peer_id,
            "manifest": self.manifest.to_json(),
            "file_digest": self.file_digest,
            "size_bytes": self.size_bytes,
            "seconds": round(self.seconds, 6),
            "reused": self.reused,
        }

    @classmethod
    def read(cls, value: Any) -> FetchedModel:
        fields = Fields(value, ".AGGREGATE_DONE models")
        return cls(
            peer_id=fields.digest("peer_id"),
            manifest=Manifest.read(fields.mapping("manifest")),
            file_digest=fields.digest("file_digest"),
            size_bytes=fields.integer("size_bytes"),
            seconds=fields.number("seconds"),
            reused=fields.flag("reused"),
        )


@dataclass(frozen=True)
class FailedFetch:
    """One peer of a round whose model did not come, and why in one line."""

    peer_id: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"peer_id": self.peer_id, "reason": _CONTROL.sub(" ", self.reason[:MAX_REASON])}

    @classmethod
    def read(cls, value: Any) -> FailedFetch:
        fields = Fields(value, ".AGGREGATE_DONE failed")
        return cls(
            peer_id=fields.digest("peer_id"),
            reason=fields.text("reason", limit=MAX_REASON, pattern=_ONE_LINE),
        )


@dataclass(frozen=True)
class AggregateAnswer:
    """`.AGGREGATE_DONE`: the answer to one request; a round is always answered, also with nothing."""

    instance: str
    """The trainer instance whose request this answers."""
    round: int
    models: tuple[FetchedModel, ...]
    failed: tuple[FailedFetch, ...]
    candidates: int
    """Live peers of the task with a published model when the round began."""
    peers: int
    """All live peers known when the round began."""
    seconds: float
    """From the request seen to this answer."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    drawn: int | None = None
    """Peers that were asked for their model; None from a daemon that does not say, as the next two."""
    drawable: int | None = None
    """Peers of the task that could be drawn."""
    undecided: int | None = None
    """Live peers that publish nothing yet, and may be of the task."""

    def to_json(self) -> dict[str, Any]:
        counts = {"drawn": self.drawn, "drawable": self.drawable, "undecided": self.undecided}
        return {
            **self.extra,
            **{name: count for name, count in counts.items() if count is not None},
            "contract": CONTRACT_VERSION,
            "instance": self.instance,
            "round": self.round,
            "models": [model.to_json() for model in self.models],
            "failed": [failure.to_json() for failure in self.failed[:MAX_FAILED]],
            "candidates": self.candidates,
            "peers": self.peers,
            "seconds": round(self.seconds, 6),
        }

    @classmethod
    def parse(cls, data: bytes) -> AggregateAnswer:
        """Raises `MalformedFile`."""
        fields = Fields(parse_object(data, ".AGGREGATE_DONE"), ".AGGREGATE_DONE")
        fields.contract()
        return cls(
            instance=fields.text("instance", pattern=INSTANCE),
            round=fields.integer("round"),
            models=tuple(FetchedModel.read(v) for v in fields.items("models", limit=MAX_FAN_OUT)),
            failed=tuple(FailedFetch.read(v) for v in fields.items("failed", limit=MAX_FAILED)),
            candidates=fields.integer("candidates"),
            peers=fields.integer("peers"),
            seconds=fields.number("seconds"),
            drawn=fields.integer_or_none("drawn"),
            drawable=fields.integer_or_none("drawable"),
            undecided=fields.integer_or_none("undecided"),
            extra=fields.extra,
        )


def _write(path: Path, marker: BootDone | AggregateRequest | AggregateAnswer) -> None:
    """Writes a marker after reading its own JSON back: what we write, we can read.

    It is renamed into place but not synced: it speaks to a process that lives now, and a crash of the
    machine ends both.
    """
    value = marker.to_json()
    type(marker).parse(atomic.encode_json(value))
    atomic.write_json(path, value, durable=False)


def write_boot_done(state: StateDir, marker: BootDone) -> None:
    """Raises `DirectoryUnusable`, `MalformedFile` for a marker that breaks the contract."""
    _write(state.boot_done, marker)


def read_boot_done(state: StateDir) -> BootDone | None:
    """None when there is none. It counts only while `daemon.lock` is held. Raises `StateError`."""
    data = atomic.read_bounded(state.boot_done, MAX_MARKER_BYTES)
    return None if data is None else BootDone.parse(data)


def write_request(state: StateDir, marker: AggregateRequest) -> None:
    """Raises `DirectoryUnusable`, `MalformedFile` for a marker that breaks the contract."""
    _write(state.aggregate, marker)


def read_request(state: StateDir) -> AggregateRequest | None:
    """None when there is none. Raises `StateError`."""
    data = atomic.read_bounded(state.aggregate, MAX_MARKER_BYTES)
    return None if data is None else AggregateRequest.parse(data)


def write_answer(state: StateDir, marker: AggregateAnswer) -> None:
    """Raises `DirectoryUnusable`, `MalformedFile` for a marker that breaks the contract."""
    _write(state.aggregate_done, marker)


def read_answer(state: StateDir) -> AggregateAnswer | None:
    """None when there is none. Raises `StateError`."""
    data = atomic.read_bounded(state.aggregate_done, MAX_MARKER_BYTES)
    return None if data is None else AggregateAnswer.parse(data)
