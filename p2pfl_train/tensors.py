"""What of a model is its weights: the tensors that are stored, sent and averaged."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise

import torch
from p2pfl_state.manifest import weights_digest
from torch import Tensor, nn

from p2pfl_train.errors import ModelError

assert sys.byteorder == "little", "tensor files are little-endian, and so must this machine be"

FORMAT_NAMES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
    torch.float64: "F64", torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip
"""The format's name of each type that a model may hold."""
DTYPES = {name: dtype for dtype, name in FORMAT_NAMES.items()}

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of each tensor to its type, by the format's name, and its shape."""


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that make up its weights, sorted by name; writing to them changes it.

    Parameters and persistent buffers. Tied tensors appear once, under the first of their names.
    Raises `ModelError` for state that a tensor file cannot hold, and for tensors that overlap without
    being the same: averaging in place would count their common part twice.
    """
    by_place: dict[tuple[object, ...], str] = {}
    stored: dict[str, Tensor] = {}
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, Tensor) or value.dtype not in FORMAT_NAMES or value.layout != torch.strided:
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"the model's state {name!r} is a {kind}, which a tensor file cannot hold: "
                "register it as a buffer of a plain type, or with persistent=False"
            )
        if value.device.type != "cpu":
            raise ModelError(f"the model's tensor {name!r} is not in main memory: build the model on the CPU")
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and by_place.setdefault(place, name) != name:
            continue
        stored[name] = value.detach()
    _refuse_overlaps(stored)
    return stored


def buffer_names(model: nn.Module) -> frozenset[str]:
    """Those of `stored_tensors` that are no parameters: running statistics, counters, tables."""
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(stored_tensors(model).keys() - learned)


def _refuse_overlaps(tensors: Mapping[str, Tensor]) -> None:
    ranges = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + _extent_bytes(tensor), name)
        for name, tensor in tensors.items()
        if tensor.numel()
    )
    for (_, end, first), (start, _, second) in pairwise(ranges):
        if start < end:
            raise ModelError(
                f"the model's tensors {first!r} and {second!r} share a part of their memory: "
                "register one of them, or a copy"
            )
    for name, tensor in tensors.items():
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise ModelError(f"the model's tensor {name!r} is an expanded view: register a copy of it")


def _extent_bytes(tensor: Tensor) -> int:
    """From the first byte of a tensor past its last, gaps of a strided view included."""
    last = sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """What a file of these tensors must declare."""
    return {name: (FORMAT_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def bytes_of(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a tensor, without a copy when it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The weights digest of tensors in memory, as `p2pfl_state.manifest` defines it."""
    return weights_digest(
        (name, FORMAT_NAMES[tensor.dtype], tuple(tensor.shape), [bytes_of(tensor)])
        for name, tensor in sorted(tensors.items())
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or Inf. One pass without a temporary (isfinite().all() makes one)."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    values = tensor.float() if tensor.element_size() == 1 else tensor
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) & torch.isfinite(high))
