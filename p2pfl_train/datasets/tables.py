"""Examples from an `.npz` with arrays `x` and `y`, or from a `.csv` with one example a row.

Labels are texts (their sorted names become the classes) or whole numbers. In a file that brings its
own `classes`, a number is always a position in them: whoever wrote both meant that. Otherwise, without
a given class list, numbers mean the classes "0" … their maximum; with one, a number names its class
where all classes are numbers, and is a position in the list otherwise. Nothing is ever unpickled.
"""

from __future__ import annotations

import array
import csv
import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from p2pfl_train.datasets.examples import (
    MAX_CLASS_NAME,
    MAX_CLASSES,
    MAX_DATA_BYTES,
    Examples,
    Indices,
    LabelledData,
    shown,
)
from p2pfl_train.datasets.preprocess import image_preprocessing
from p2pfl_train.errors import DataError

Array = npt.NDArray[Any]


def read_npz(path: Path, *, classes: Sequence[str] | None) -> LabelledData:
    """`x` of shape (n, …) and `y` of shape (n,); an array `classes` of texts may name the labels.

    uint8 of shape (n, h, w), (n, c, h, w) or (n, h, w, c) with 1 or 3 channels is taken for images,
    every other numeric `x` becomes float32 as it is. Raises `DataError`.
    """
    x, y, own_classes = _read_arrays(path)
    if x.ndim < 2 or not len(x):
        raise DataError(f"{path}: x has shape {x.shape}; it needs (examples, features…) and one example")
    if y.shape == (len(x), 1):
        y = y[:, 0]
    if y.shape != (len(x),):
        raise DataError(f"{path}: y has shape {y.shape}; it needs one label for each of {len(x)} examples")
    if own_classes:
        indices, names = _index(path, y, own_classes, positions=True)
    else:
        indices, names = _index(path, y, classes)
    labels = torch.from_numpy(indices)
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        images = _channels_first(path, x)
        half = [0.5] * images.shape[1]
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        return LabelledData(Examples(pixels, labels), names, str(path), image_preprocessing(half, half))
    return LabelledData(Examples(torch.from_numpy(_floats(path, x)), labels), names, str(path))


def _read_arrays(path: Path) -> tuple[Array, Array, list[str] | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_DATA_BYTES:
                raise DataError(f"{path} unpacks to more than {MAX_DATA_BYTES >> 30} GiB: split it")
        with np.load(path, allow_pickle=False) as arrays:
            for name in ("x", "y"):
                if name not in arrays:
                    raise DataError(
                        f"{path} has no array {name!r} (it has {shown(arrays.files) or 'none'}): "
                        "save it with numpy.savez(path, x=…, y=…)"
                    )
            names = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
            return arrays["x"], arrays["y"], names
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, KeyError, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects, which are never unpickled: save plain numeric arrays"
            ) from None
        raise DataError(f"{path} is not a readable .npz: {str(error).splitlines()[0]}") from None


def _channels_first(path: Path, x: Array) -> Array:
    if x.ndim == 3:
        return x[:, None]
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    if x.shape[1] in (1, 3):
        return x
    raise DataError(f"{path}: images in x have shape {x.shape[1:]}; they need 1 or 3 channels")


def _floats(path: Path, x: Array) -> npt.NDArray[np.float32]:
    if x.dtype.kind not in "buif":
        raise DataError(f"{path}: x has type {x.dtype}; it needs numbers")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which is refused just below
        floats = np.ascontiguousarray(x, dtype=np.float32)
    finite = np.isfinite(floats).reshape(len(floats), -1).all(axis=1)
    if not finite.all():
        raise DataError(f"{path}: x has NaN or infinite values, first in example {int(finite.argmin())}")
    return floats


def _index(
    path: Path, y: Array, classes: Sequence[str] | None, *, positions: bool = False
) -> tuple[Indices, tuple[str, ...]]:
    """Class indices for `y`, and the ordered names they index. Raises `DataError`.

    `positions`: whole numbers are positions in `classes`, also where these are numbers themselves.
    """
    if y.dtype.kind == "U":
        return _index_names(path, [str(name) for name in y], classes)
    if y.dtype.kind == "f":
        whole = np.isfinite(y) & (np.floor(y) == y) & (np.abs(y) < 2**31)
        if not whole.all():
            row = int(whole.argmin())
            raise DataError(f"{path}: label {y[row]} of example {row} is not a whole number")
    elif y.dtype.kind not in "bui":
        raise DataError(f"{path}: labels have type {y.dtype}; they need whole numbers or texts")
    elif y.dtype == np.uint64 and len(y) and int(y.max()) >= MAX_CLASSES:
        raise DataError(f"{path}: label {int(y.max())} is out of range")
    return _index_numbers(path, y.astype(np.int64), classes, positions)


def _index_names(
    path: Path, names: list[str], classes: Sequence[str] | None
) -> tuple[Indices, tuple[str, ...]]:
    present = sorted(set(names))
    order = list(classes) if classes is not None else present
    position = {name: index for index, name in enumerate(order)}
    for name in present:
        if name not in position:
            raise DataError(f"{path}: the label {name[:40]!r} is not among the classes {shown(order)}")
    return np.array([position[name] for name in names], dtype=np.int64), tuple(order)


def _index_numbers(
    path: Path, y: Indices, classes: Sequence[str] | None, positions: bool
) -> tuple[Indices, tuple[str, ...]]:
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise DataError(f"{path}: label {low} of example {int(y.argmin())} is negative: count from 0")
    if high >= MAX_CLASSES:
        raise DataError(f"{path}: label {high} of example {int(y.argmax())} is out of range")
    if classes is None:
        return y, tuple(str(label) for label in range(high + 1))
    if not positions and all(name.isdecimal() for name in classes):
        position = {int(name): index for index, name in enumerate(classes)}
    else:
        position = {index: index for index in range(len(classes))}
    present = np.unique(y)
    unknown = [int(label) for label in present if int(label) not in position]
    if unknown:
        row = int((y == unknown[0]).argmax())
        raise DataError(
            f"{path}: label {unknown[0]} of example {row} is out of range for the classes {shown(classes)}"
        )
    table = np.zeros(high + 1, dtype=np.int64)
    table[present] = [position[int(label)] for label in present]
    return table[y], tuple(classes)


def read_csv(path: Path, *, classes: Sequence[str] | None) -> LabelledData:
    """Comma-separated numbers with a label in the column named `label`, or else in the last one.

    The first row is a header when one of its cells is `label`, or no feature in it is a number.
    Raises `DataError` with the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            features, labels, width = _parse_rows(path, csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable .csv: {error}") from None
    x = np.frombuffer(features, dtype=np.float32).reshape(len(labels), width)
    y: Array = np.array(labels)
    if all(label.isdecimal() and len(label) < 10 for label in labels):
        y = np.array([int(label) for label in labels], dtype=np.int64)
    indices, names = _index(path, y, classes)
    examples = Examples(torch.from_numpy(x.copy()), torch.from_numpy(indices))
    return LabelledData(examples, names, str(path))


def _parse_rows(path: Path, rows: Iterable[list[str]]) -> tuple[array.array[float], list[str], int]:
    """Features row after row, labels, and the number of features in a row."""
    features: array.array[float] = array.array("f")
    labels: list[str] = []
    column, width = 0, 0
    for line, row in enumerate(rows, start=1):
        if not row:
            continue
        if not width:
            width = len(row)
            if width < 2:
                raise DataError(f"{path}: line {line} has {width} column; it needs features and a label")
            names = [cell.strip().lower() for cell in row]
            if "label" in names or not any(_is_number(cell) for cell in row[:-1]):
                column = names.index("label") if "label" in names else width - 1
                continue
            column = width - 1
        if len(row) != width:
            raise DataError(f"{path}: line {line} has {len(row)} columns, the first line has {width}")
        label = row[column].strip()
        if not 1 <= len(label) <= MAX_CLASS_NAME:
            raise DataError(f"{path}: line {line}: the label must be 1 to {MAX_CLASS_NAME} characters")
        labels.append(label)
        features.extend(_numbers(path, line, row, column))
        if len(features) * 4 > MAX_DATA_BYTES:
            raise DataError(f"{path} has more than {MAX_DATA_BYTES >> 30} GiB of features: split it")
    if not labels:
        raise DataError(f"{path} has no examples")
    return features, labels, width - 1


def _numbers(path: Path, line: int, row: list[str], label_column: int) -> list[float]:
    values = []
    for position, cell in enumerate(row):
        if position == label_column:
            continue
        value = float(cell) if _is_number(cell) else math.nan
        if not abs(value) <= 3.4e38:  # what float32 holds; NaN fails every comparison
            raise DataError(
                f"{path}: line {line}, column {position + 1}: {cell[:40]!r} is not a finite number "
                "(the label is the last column, or the one named label)"
            )
        values.append(value)
    return values


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
