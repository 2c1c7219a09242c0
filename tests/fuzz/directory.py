"""Everything that is read from a state directory, or from another file that a person names."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from p2pfl_state import home
from p2pfl_state.atomic import encode_json, read_json_lines
from p2pfl_state.errors import StateError
from p2pfl_state.layout import CONTRACT_VERSION, StateDir
from p2pfl_state.manifest import (
    METADATA_KEY,
    Manifest,
    file_weights_digest,
    parse_header,
    read_header,
    weights_digest,
)
from p2pfl_state.markers import (
    AggregateAnswer,
    AggregateRequest,
    BootDone,
    FailedFetch,
    FetchedModel,
    Refusal,
)
from p2pfl_state.taskfile import TaskFile

from p2pfl_net import inspect, networkkey, views
from p2pfl_net.core.ids import Address
from p2pfl_net.errors import KeyUnusable, UsageError
from p2pfl_net.get import Part
from p2pfl_net.runtime import identity, statedir
from p2pfl_net.runtime.known_peers import KnownPeers
from p2pfl_train import checkpoint
from p2pfl_train.errors import WeightsRefused
from p2pfl_train.exchange import peers_that_differ
from p2pfl_train.plots.records import History, read_histories
from p2pfl_train.weights import TensorFile
from tests.fuzz.network import IDENTITY, MANIFEST, ME, OTHER, TASK
from tests.fuzz.target import Target

T = TypeVar("T")

_WRONG = (StateError,)
_INSTANCE = "0f" * 16


def targets(folder: Path) -> tuple[Target, ...]:
    """Readers of paths find the bytes in `folder`, which is theirs alone."""
    return (*_texts(), *_markers(), *_files(folder), *_lists(folder), *_tensors(folder))


def _at(path: Path, read: Callable[[Path], T], mode: int = 0o600) -> Callable[[bytes], T]:
    """A reader of a path as one of bytes."""

    def decode(data: bytes) -> T:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        return read(path)

    return decode


def _texts() -> list[Target]:
    return [
        Target(
            "manifest",
            Manifest.decode,
            _WRONG,
            (MANIFEST.encode().encode(),),
            lambda manifest: manifest.encode().encode(),
        ),
        Target("task", TaskFile.parse, _WRONG, (TASK.encode(),), TaskFile.encode),
    ]


def _markers() -> list[Target]:
    boot = BootDone(_INSTANCE, ME, "192.0.2.1:8000", 3, {"later": 1})
    refusal = Refusal(OTHER, "6b" * 32, "NaN")
    request = AggregateRequest(_INSTANCE, 5, 4, 1.5, "5a" * 32, True, 4, (refusal,), {"later": []})
    model = FetchedModel(OTHER, MANIFEST, "8d" * 32, 1000, 0.5, False)
    answer = AggregateAnswer(_INSTANCE, 5, (model,), (FailedFetch(ME, "gone"),), 2, 3, 0.25, {"later": {}})
    return [
        Target(".BOOT_DONE", BootDone.parse, _WRONG, (_json(boot),), _json),
        Target(".AGGREGATE", AggregateRequest.parse, _WRONG, (_json(request),), _json),
        Target(".AGGREGATE_DONE", _answer, _WRONG, (_json(answer),), _json),
    ]


def _json(marker: BootDone | AggregateRequest | AggregateAnswer) -> bytes:
    return encode_json(marker.to_json())


def _answer(data: bytes) -> AggregateAnswer:
    """With its times as it writes them, to the microsecond."""
    answer = AggregateAnswer.parse(data)
    models = tuple(replace(model, seconds=round(model.seconds, 6)) for model in answer.models)
    return replace(answer, models=models, seconds=round(answer.seconds, 6))


BOOT = Address("192.0.2.1", 8000)


def _ignore(event: str, fields: dict[str, object]) -> None:
    pass


def _files(folder: Path) -> list[Target]:
    state = StateDir(folder / "files")
    state.root.mkdir()
    claimed = {"contract": CONTRACT_VERSION, "host": home.host_id(), "inode": state.root.stat().st_ino}
    known = {"contract": CONTRACT_VERSION, "peers": {"192.0.2.1:8000": ME}}
    part = Part.of(state.root / "got.safetensors")
    part.data.write_bytes(b"begun")
    return [
        Target("home.json", _at(state.home, lambda _: home.check(state)), _WRONG, (encode_json(claimed),)),
        Target(
            "known_peers.json",
            _at(state.known_peers, lambda path: KnownPeers(path, {BOOT: None}, {}, _ignore)),
            _WRONG,
            (encode_json(known),),
        ),
        Target(
            "key.pem",
            _at(state.key, _peer_key),
            (KeyUnusable, StateError),
            (IDENTITY.key_pem(),),
            bytes,
        ),
        Target(
            "network key",
            _at(state.root / "network.key", networkkey.read),
            (UsageError,),
            (b"p2pfl-network-key-1 " + b"0a" * 32 + b"\n",),
            lambda key: f"p2pfl-network-key-1 {key.hex()}\n".encode(),
        ),
        Target(
            "note of a broken download",
            _at(part.note, lambda _: part.resume_point()),
            (),
            (encode_json({"file_digest": "8d" * 32}),),
        ),
    ]


def _peer_key(path: Path) -> bytes:
    """The key as it is written."""
    found = identity.load(path)
    assert found is not None
    return found.key_pem()


def _lists(folder: Path) -> list[Target]:
    state = StateDir(folder / "lists")
    me = {"id": ME, "address": "192.0.2.1:8000", "state": "alive", "published": True, "task": "5a" * 32}
    other = {**me, "id": OTHER, "tags": ["lab"], "last_seen": 1e9, "rtt_ms": 0.5, "version": 2, "offences": 0}
    network = {"health": 0, "counters": {"pings_sent": 3, "suspicions": 0}}
    peers = encode_json(
        {"contract": CONTRACT_VERSION, "self": me, "peers": [other, other], "network": network}
    )
    events = b'{"time": 1e9, "event": "peer_joined", "peers": 1}\n{"time": 1e9, "event": "rou'
    cycle = encode_json({"time": 1e9, "cycle": 1, "loss": 0.5, "accuracy_averaged": 0.5, "asked": 1})
    return [
        Target("peers.json", _at(state.peers, lambda path: _shown_peers(path.parent)), _WRONG, (peers,)),
        Target(
            "remembered peers", _at(state.peers, lambda _: statedir.remembered_peers(state)), (), (peers,)
        ),
        Target(
            "peers that differ", _at(state.peers, lambda _: peers_that_differ(state, "5a" * 32)), (), (peers,)
        ),
        Target("event log", _at(state.events, lambda path: list(read_json_lines(path))), (), (events,)),
        Target("status", _status(folder / "status"), _WRONG, (peers, events)),
        Target("history", _history(folder / "history"), (), (cycle, events, peers)),
    ]


def _shown_peers(root: Path) -> str:
    return _printed(
        lambda: views.show_peers(inspect.read_peers(root), tags=["lab"], is_old=True, as_json=False)
    )


def _printed(show: Callable[[], None]) -> str:
    """What a command prints, as a terminal would take it."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(output):
        show()
    output.seek(0)
    return output.read()


def _status(root: Path) -> Callable[[bytes], str]:
    """What `p2pfl-net status` prints of a directory in which every file is made of these bytes."""
    state = StateDir(root)
    root.mkdir()
    files = (state.peers, state.events, state.aggregate_done, state.model, state.home)

    def decode(data: bytes) -> str:
        for path in files:
            path.write_bytes(data)
        return _printed(lambda: views.show_status(inspect.read_status(root), as_json=False))

    return decode


def _history(root: Path) -> Callable[[bytes], list[History]]:
    """What `p2pfl-train plot` reads, likewise; one good line stands before the bytes."""
    state = StateDir(root)
    root.mkdir()

    def decode(data: bytes) -> list[History]:
        state.metrics.write_bytes(b'{"time": 1, "cycle": 0}\n' + data)
        state.events.write_bytes(data)
        state.peers.write_bytes(data)
        return read_histories([root])

    return decode


def _tensors(folder: Path) -> list[Target]:
    path = folder / "tensors" / "model.safetensors"
    saved = json.dumps(
        {
            "contract": CONTRACT_VERSION,
            "optimiser": "SGD",
            "numbers": {"0": {"step": 1.0}},
            "task": "5a" * 32,
            "version": 1,
            "cycle": 1,
            "batches": 1,
            "round": 1,
            "data": {},
        }
    )
    digest = weights_digest([("a", "F32", (2, 2), [bytes(16)]), ("b", "I64", (), [bytes(8)])])
    manifest = replace(MANIFEST, weights=digest).encode()
    model = safetensors({METADATA_KEY: manifest}, {"a": ("F32", [2, 2]), "b": ("I64", [])})
    trainer = safetensors({checkpoint.METADATA_KEY: saved}, {"0.momentum_buffer": ("F32", [3])})
    return [
        Target(
            "tensor file's header", lambda data: parse_header(io.BytesIO(data), len(data)), _WRONG, (model,)
        ),
        Target("published model", _at(path, lambda at: read_header(at).manifest()), _WRONG, (model,)),
        Target("weights digest", _at(path, file_weights_digest), _WRONG, (model,)),
        Target("mapped tensors", _at(path, _verified), (WeightsRefused, StateError), (model,)),
        Target("trainer.safetensors", _at(path, checkpoint.load), _WRONG, (trainer,)),
    ]


def _verified(path: Path) -> bool:
    """As the trainer does with a fetched model, up to the digest."""
    file = TensorFile.open(path)
    file.verify(file.manifest())
    return True


def safetensors(metadata: dict[str, str], tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file with zeros in its tensors."""
    sizes = {"F32": 4, "I64": 8}
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + sizes[dtype]
        for length in shape:
            end = position + (end - position) * length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(position)
