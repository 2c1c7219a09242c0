"""All input and output of tensor files: safetensors, and nothing else.

What is read is data: the header is checked before a byte of it is believed, and the tensors must be
those of our own model. Reading is by a private memory map, so a file of any size costs no memory.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile
from p2pfl_state.manifest import (
    METADATA_KEY,
    Header,
    Manifest,
    TensorInfo,
    parse_header,
    weights_digest,
)
from torch import Tensor, nn

from p2pfl_train.errors import WeightsRefused
from p2pfl_train.tensors import (
    DTYPES,
    FORMAT_NAMES,
    Layout,
    bytes_of,
    digest_of,
    is_finite,
    layout_of,
    stored_tensors,
)

PIECE_BYTES = 1 << 20
"""What is worked on at once: it stays in the processor's cache. Measured best of 0.25 to 4 MiB."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replaces `path` atomically by a safetensors file.

    The widest types come first, so that every tensor is aligned. Written here and not by the
    safetensors library, for a full disk must reach us as the `OSError` that it is. Raises
    `DirectoryUnusable`; `path` then is as it was.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": FORMAT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic.replacing(path) as draft, open(draft, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            file.write(bytes_of(tensors[name]))


def save_model(path: Path, model: nn.Module, manifest: Manifest) -> Manifest:
    """Publishes a model's weights as `path` and returns the manifest with their digest filled in.

    Raises `WeightsRefused` for NaN or Inf (nothing is written), `DirectoryUnusable`, `ModelError`.
    """
    tensors = stored_tensors(model)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise WeightsRefused(f"the model's tensor {name!r} holds NaN or Inf: it is not published")
    complete = replace(manifest, weights=digest_of(tensors))
    save_tensors(path, tensors, {METADATA_KEY: complete.encode(), "format": "pt"})
    return complete


@dataclass(frozen=True)
class TensorFile:
    """A mapped safetensors file whose header has been checked.

    The map is private and follows no later change of the name; the contract is that files of a state
    directory are replaced by a rename, never cut short in place.
    """

    path: Path
    header: Header
    _map: mmap.mmap
    _tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Raises `WeightsRefused` for a file that is missing, truncated or not safetensors."""
        try:
            with open(path, "rb") as file:
                header = parse_header(file, file.seek(0, 2))
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise WeightsRefused(f"{path} is missing") from None
        except MalformedFile as error:
            raise WeightsRefused(f"{path.name}: {error}") from error
        except OSError as error:
            raise atomic.unusable(path, error) from error
        return cls(path, header, mapped, {tensor.name: tensor for tensor in header.tensors})

    @property
    def layout(self) -> Layout:
        return {tensor.name: (tensor.dtype, tensor.shape) for tensor in self.header.tensors}

    def manifest(self) -> Manifest:
        """Raises `WeightsRefused` when the file carries none that can be read."""
        try:
            return self.header.manifest()
        except MalformedFile as error:
            raise WeightsRefused(f"{self.path.name}: {error}") from error

    def piece(self, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of a flattened tensor, count > 0; a view of the file."""
        info = self._tensors[name]
        dtype = DTYPES[info.dtype]
        offset = info.start + start * dtype.itemsize
        if offset % dtype.itemsize:  # the format does not promise alignment; torch wants it
            aligned = bytearray(self._map[offset : offset + count * dtype.itemsize])
            return torch.frombuffer(aligned, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A flattened tensor in pieces of `PIECE_BYTES`; what was read leaves memory again."""
        info = self._tensors[name]
        step = PIECE_BYTES // DTYPES[info.dtype].itemsize
        count = (info.end - info.start) // DTYPES[info.dtype].itemsize
        for start in range(0, count, step):
            yield self.piece(name, start, min(step, count - start))
            self.forget()

    def forget(self) -> None:
        """Lets the pages that were read leave this process's memory; the next read maps them again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def verify(self, manifest: Manifest) -> None:
        """Checks that all weights are finite and have the manifest's digest, in one pass.

        Raises `WeightsRefused`.
        """
        by_name = sorted(self.header.tensors, key=lambda tensor: tensor.name)
        digest = weights_digest((t.name, t.dtype, t.shape, self._checked_pieces(t.name)) for t in by_name)
        if digest != manifest.weights:
            raise WeightsRefused(f"{self.path.name}: the weights are not those that the manifest names")

    def _checked_pieces(self, name: str) -> Iterable[memoryview]:
        # A negative variance is no number of a batch-norm layer: its square root would be NaN.
        variance = name.rpartition(".")[2] == "running_var"
        for piece in self.pieces(name):
            if not is_finite(piece):
                raise WeightsRefused(f"{self.path.name}: tensor {name[:80]!r} holds NaN or Inf")
            if variance and bool((piece < 0).any()):
                raise WeightsRefused(f"{self.path.name}: tensor {name[:80]!r} is a negative variance")
            yield bytes_of(piece)


def open_checked(path: Path, expected: Layout, manifest: Manifest) -> TensorFile:
    """Opens a model file that came from somebody else, and checks everything there is to check.

    Its names, types and shapes must be those of `expected`, its own manifest must name the same
    weights as `manifest`, all numbers must be finite, and the digest must be right. Raises
    `WeightsRefused` with a one-line reason.
    """
    file = TensorFile.open(path)
    _check_layout(file, expected)
    if file.manifest().weights != manifest.weights:
        raise WeightsRefused(f"{path.name}: the file's manifest is not the one that was announced")
    file.verify(manifest)
    return file


def _check_layout(file: TensorFile, expected: Layout) -> None:
    found = file.layout
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        name, what = (missing[0], "lacks") if missing else (unknown[0], "has an unknown")
        raise WeightsRefused(f"{file.path.name}: another architecture, it {what} tensor {name[:80]!r}")
    for name, wanted in expected.items():
        if found[name] != wanted:
            raise WeightsRefused(
                f"{file.path.name}: tensor {name[:80]!r} is {found[name][0]} {list(found[name][1])}, "
                f"here it is {wanted[0]} {list(wanted[1])}"
            )


def load_published(path: Path, model: nn.Module) -> Manifest:
    """Copies a model file's weights into `model` and returns its manifest.

    Everything is checked before the first number changes. Raises `WeightsRefused`.
    """
    tensors = stored_tensors(model)
    file = TensorFile.open(path)
    manifest = file.manifest()
    copy_into(open_checked(path, layout_of(tensors), manifest), tensors)
    return manifest


def copy_into(file: TensorFile, tensors: Mapping[str, Tensor]) -> None:
    """Copies the file's tensors over those in memory, which must have the same layout."""
    for name, tensor in tensors.items():
        if tensor.numel():
            tensor.copy_(file.piece(name, 0, tensor.numel()).view(tensor.shape))
            file.forget()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of our own file, copied to memory, and its metadata. Raises `WeightsRefused`."""
    file = TensorFile.open(path)
    unknown = sorted({dtype for dtype, _ in file.layout.values()} - DTYPES.keys())
    if unknown:
        raise WeightsRefused(f"{path.name}: tensors of type {unknown[0]} are not known here")
    tensors = {name: torch.empty(shape, dtype=DTYPES[dtype]) for name, (dtype, shape) in file.layout.items()}
    copy_into(file, tensors)
    return tensors, file.header.metadata
