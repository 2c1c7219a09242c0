"""From a stored example to a model input: a JSON value that all peers share, and the function it means.

    {}                                         as it is (tables)
    {"mean": [m…], "std": [s…]}                (x - m) / s
    {"scale": 255, "mean": [m…], "std": [s…]}  (x / 255 - m) / s, for images stored as uint8

The constants are fixed for a data set and never computed from private examples: the value is part of
the task digest, and peers with different examples must agree on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from p2pfl_train.errors import DataError
from p2pfl_train.task import Preprocess

PIXEL_SCALE = 255
"""The largest value of a uint8 pixel."""


def image_preprocessing(mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """For images stored as uint8; `mean` and `std` a channel, of pixels in 0…1."""
    return {"scale": PIXEL_SCALE, "mean": list(mean), "std": list(std)}


def check_preprocessing(value: Mapping[str, Any], input_shape: Sequence[int]) -> None:
    """Raises `DataError` unless `value` is one of the three forms above and fits `input_shape`."""
    unknown = sorted(set(value) - {"scale", "mean", "std"})
    if unknown:
        raise DataError(
            f"preprocessing {unknown[0][:40]!r} is not known here: "
            "a task of a user's own function is joined with --data module:function"
        )
    if ("mean" in value) != ("std" in value):
        raise DataError("preprocessing needs mean and std together")
    if value.get("scale", PIXEL_SCALE) != PIXEL_SCALE or isinstance(value.get("scale"), bool):
        raise DataError(f"preprocessing scale must be {PIXEL_SCALE}")
    for name in ("mean", "std"):
        numbers = value.get(name, [])
        if not isinstance(numbers, list) or not all(_is_finite(number) for number in numbers):
            raise DataError(f"preprocessing {name} must be a list of finite numbers")
        if name in value and len(numbers) not in (1, input_shape[0]):
            raise DataError(
                f"preprocessing {name} has {len(numbers)} numbers: give one, or one for each of the "
                f"{input_shape[0]} channels or features"
            )
    if any(number < 1e-12 for number in value.get("std", [])):
        raise DataError("preprocessing std must be above zero")


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30 and math.isfinite(value)


def expects_pixels(value: Mapping[str, Any]) -> bool:
    """Whether the stored examples must be uint8 (the value has a scale) or float32."""
    return "scale" in value


def preprocess_function(value: Mapping[str, Any], input_shape: Sequence[int]) -> Preprocess:
    """The function on a stored batch of shape (batch, *input_shape). Raises `DataError`.

    Both forms are one multiplication and one addition: x·a + b with a = 1 / (scale·std) and
    b = -mean / std.
    """
    check_preprocessing(value, input_shape)
    if not value:
        return _as_it_is
    std = torch.tensor(value.get("std", [1.0]), dtype=torch.float64)
    mean = torch.tensor(value.get("mean", [0.0]), dtype=torch.float64)
    shape = (-1, *[1] * (len(input_shape) - 1))
    factor = (1 / (value.get("scale", 1) * std)).float().reshape(shape)
    offset = (-mean / std).float().reshape(shape)

    def normalise(x: Tensor) -> Tensor:
        scaled: Tensor = x * factor.to(x.device)
        return scaled.add_(offset.to(x.device))

    return normalise


def _as_it_is(x: Tensor) -> Tensor:
    return x
