"""What a published model says of itself: canonical JSON under one safetensors metadata key.

A reader needs no torch: a safetensors file begins with a little-endian 64-bit length and that many
bytes of JSON (https://github.com/huggingface/safetensors#format). Everything here is bounded and
checked before it is believed, for the file may come from the network.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from p2pfl_state.atomic import unusable
from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import MAX_COUNT, Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION

METADATA_KEY = "p2pfl"
MAX_HEADER_BYTES = 4 << 20
"""Room for `MAX_TENSORS` with long names; the safetensors library itself allows 100 MB."""
MAX_TENSORS = 20_000
MAX_RANK = 16
MAX_PARENTS = 512
MAX_MANIFEST_BYTES = 256 << 10
MAX_BRACKETS = 3 * MAX_TENSORS + MAX_MANIFEST_BYTES
"""In a header: three a tensor, and the manifest's. A value read takes up to a hundred times its text."""
MAX_COMMAS = 8 * MAX_TENSORS + MAX_MANIFEST_BYTES
MAX_MANIFEST_FIELDS = 128
MAX_MANIFEST_NESTING = 32
"""Half of what a marker may have: a manifest from the network becomes part of one."""

DTYPE_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element, by the name that the format gives a type."""


@dataclass(frozen=True)
class Parent:
    """A model that went into this one."""

    peer_id: str
    version: int
    weights: str

    def to_json(self) -> dict[str, Any]:
        return {"peer_id": self.peer_id, "version": self.version, "weights": self.weights}

    @classmethod
    def read(cls, value: Any) -> Parent:
        fields = Fields(value, "manifest parents")
        return cls(fields.digest("peer_id"), fields.integer("version"), fields.digest("weights"))


@dataclass(frozen=True)
class Previous:
    """The version from which a publisher went on."""

    version: int
    weights: str
    peer_id: str | None = None
    """Whose it is; None: the publisher's own."""

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "weights": self.weights, "peer_id": self.peer_id}

    @classmethod
    def read(cls, value: Any) -> Previous:
        fields = Fields(value, "manifest previous")
        return cls(fields.integer("version"), fields.digest("weights"), fields.digest_or_none("peer_id"))


@dataclass(frozen=True)
class Manifest:
    """What the publisher says of one version of its model."""

    version: int
    """Counts this peer's publications, from 1, over restarts."""
    samples: int
    """Training examples behind the model: its weight in an average, clamped by the receiver."""
    task: str
    """Digest of the task."""
    weights: str
    """Digest of the tensors, see `weights_digest`."""
    parents: tuple[Parent, ...] = ()
    """Models of others that went into it since."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers by name, the publisher's own measurements."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    previous: Previous | None = None
    """None: it began anew, from the task's seed."""

    def to_json(self) -> dict[str, Any]:
        return {
            **self.extra,
            **({} if self.previous is None else {"previous": self.previous.to_json()}),
            "contract": CONTRACT_VERSION,
            "version": self.version,
            "samples": self.samples,
            "task": self.task,
            "weights": self.weights,
            "parents": [parent.to_json() for parent in self.parents],
            "metrics": dict(self.metrics),
        }

    def encode(self) -> str:
        """The canonical JSON text: sorted keys, no spaces."""
        return canonical_json(self.to_json())

    @classmethod
    def read(cls, value: Any) -> Manifest:
        """Raises `MalformedFile`."""
        if isinstance(value, dict) and len(value) > MAX_MANIFEST_FIELDS:
            raise MalformedFile(f"manifest has more than {MAX_MANIFEST_FIELDS} fields")
        fields = Fields(value, "manifest")
        fields.contract()
        metrics = fields.mapping("metrics")
        for name, number in metrics.items():
            known_type = isinstance(number, int | float) and not isinstance(number, bool)
            # the comparison also refuses NaN, and whole numbers that no float can hold
            if not known_type or not abs(number) <= sys.float_info.max:
                raise MalformedFile(f"manifest: metric {name[:40]!r} is not a finite number")
        return cls(
            version=fields.integer("version"),
            samples=fields.integer("samples"),
            task=fields.digest("task"),
            weights=fields.digest("weights"),
            parents=tuple(Parent.read(v) for v in fields.items("parents", limit=MAX_PARENTS)),
            previous=fields.optional("previous", Previous.read),
            metrics=metrics,
            extra=fields.extra,
        )

    @classmethod
    def decode(cls, text: str | bytes) -> Manifest:
        """Raises `MalformedFile`, also when its canonical text would be too large to pass on."""
        data = text.encode() if isinstance(text, str) else text
        if len(data) <= MAX_MANIFEST_BYTES:
            manifest = cls.read(parse_object(data, "manifest", nesting=MAX_MANIFEST_NESTING))
            if len(manifest.encode()) <= MAX_MANIFEST_BYTES:
                return manifest
        raise MalformedFile(f"manifest is larger than {MAX_MANIFEST_BYTES} bytes")


def canonical_json(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes, so a digest is of the value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its type by the format's name, its shape, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in bytes from the start of the file."""
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of a safetensors file."""

    tensors: tuple[TensorInfo, ...]
    """In the order of their bytes in the file."""
    metadata: Mapping[str, str]
    size_bytes: int
    """Size of the whole file."""

    def manifest(self) -> Manifest:
        """Raises `MalformedFile` when the file carries none."""
        text = self.metadata.get(METADATA_KEY)
        if text is None:
            raise MalformedFile("the file carries no p2pfl manifest")
        return Manifest.decode(text)


def read_header(path: Path) -> Header:
    """The header of the safetensors file at `path`.

    Raises `MalformedFile` when it is not one, `DirectoryUnusable` when it cannot be read;
    `FileNotFoundError` passes through.
    """
    try:
        with open(path, "rb") as file:
            return parse_header(file, file.seek(0, 2))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unusable(path, error) from error


def parse_header(file: BinaryIO, size_bytes: int) -> Header:
    """Reads and checks the header of an open safetensors file of `size_bytes`.

    The tensors must cover the data without gap or overlap, each with the size that its type and
    shape give, as the format demands. Raises `MalformedFile`.
    """
    file.seek(0)
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > MAX_HEADER_BYTES or 8 + length > size_bytes:
        raise MalformedFile("not a safetensors file, or a truncated one")
    data = file.read(length)
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS or data.count(b",") > MAX_COMMAS:
        raise MalformedFile("safetensors header: more values than the largest model has")
    value = parse_object(data, "safetensors header")
    metadata = value.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise MalformedFile("safetensors header: __metadata__ must hold texts")
    if len(value) > MAX_TENSORS:
        raise MalformedFile(f"safetensors header: more than {MAX_TENSORS} tensors")
    data_start = 8 + length
    tensors = sorted(
        (_read_tensor(name, entry, data_start) for name, entry in value.items()),
        key=lambda tensor: (tensor.start, tensor.end),
    )
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            raise MalformedFile(f"safetensors header: tensor {tensor.name[:80]!r} leaves a gap or overlaps")
        position = tensor.end
    if position != size_bytes:
        raise MalformedFile(f"safetensors file of {size_bytes} bytes, its header says {position}")
    return Header(tuple(tensors), metadata, size_bytes)


def _read_tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    fields = Fields(entry, f"safetensors header, tensor {name[:80]!r}")
    dtype = fields.text("dtype", limit=16)
    shape = fields.items("shape", limit=MAX_RANK)
    offsets = fields.items("data_offsets", limit=2)
    if fields.extra:
        raise MalformedFile(
            f"safetensors header, tensor {name[:80]!r}: a field that the format does not have"
        )
    if dtype not in DTYPE_SIZES:
        raise MalformedFile(f"safetensors header, tensor {name[:80]!r}: unknown type {dtype!r}")
    if not all(type(n) is int and 0 <= n <= MAX_COUNT for n in [*shape, *offsets]) or len(offsets) != 2:
        raise MalformedFile(f"safetensors header, tensor {name[:80]!r}: shape or offsets are not sizes")
    start, end = offsets
    if end - start != math.prod(shape) * DTYPE_SIZES[dtype]:
        raise MalformedFile(f"safetensors header, tensor {name[:80]!r}: size does not match its shape")
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + end)


def weights_digest(tensors: Iterable[tuple[str, str, tuple[int, ...], Iterable[bytes | memoryview]]]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names.

    `tensors` gives (name, the format's type name, shape, the little-endian bytes in pieces) and must
    be sorted by name. Each tensor's description goes in as its canonical JSON and a newline, so that
    no two lists of tensors give the same input.
    """
    digest = hashlib.sha256()
    for name, dtype, shape, pieces in tensors:
        digest.update(canonical_json({"name": name, "dtype": dtype, "shape": list(shape)}).encode() + b"\n")
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def file_weights_digest(path: Path) -> str:
    """The weights digest of the tensors in a safetensors file, in constant memory.

    Raises as `read_header` does.
    """
    try:
        with open(path, "rb") as file:  # opened once: the path may be replaced at any moment
            header = parse_header(file, file.seek(0, 2))
            by_name = sorted(header.tensors, key=lambda tensor: tensor.name)
            return weights_digest((t.name, t.dtype, t.shape, _pieces(file, t.start, t.end)) for t in by_name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unusable(path, error) from error


def _pieces(file: BinaryIO, start: int, end: int, piece_bytes: int = 1 << 20) -> Iterable[bytes]:
    file.seek(start)
    left = end - start
    while left > 0:
        piece = file.read(min(left, piece_bytes))
        if not piece:
            raise MalformedFile("the file became shorter while it was read")
        left -= len(piece)
        yield piece
