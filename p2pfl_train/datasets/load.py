"""Data by name or by path: what `--data` takes.

digits                       shipped inside scikit-learn, 1,797 images of 8 x 8
mnist, fashion-mnist, cifar10  in the data directory, downloaded there when missing
a folder                     of class folders with images, see `images.py`
file.npz, file.csv           see `tables.py`
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from p2pfl_train.datasets.examples import Examples, LabelledData, check_classes, relabel
from p2pfl_train.datasets.images import MAX_SIDE, read_classes_file, read_folder
from p2pfl_train.datasets.names import NAMES
from p2pfl_train.datasets.preprocess import image_preprocessing
from p2pfl_train.datasets.tables import read_csv, read_npz
from p2pfl_train.errors import DataError, UsageError
from p2pfl_train.paths import expanded

__all__ = ["NAMES", "Examples", "LabelledData", "load", "parse_classes", "parse_image_size"]

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class _Download:
    """A data set of torchvision; mean and std are those of its training images, in 0…1."""

    torchvision_class: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


_DOWNLOADS = {
    "mnist": _Download("MNIST", DIGITS, (0.1307,), (0.3081,)),
    "fashion-mnist": _Download("FashionMNIST", FASHION_CLASSES, (0.2860,), (0.3530,)),
    "cifar10": _Download("CIFAR10", CIFAR10_CLASSES, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def load(
    name_or_path: str,
    *,
    data_dir: Path,
    download: bool,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
) -> LabelledData:
    """The whole data set `name_or_path`, its labels in the order of `classes` where given.

    `image_size` (height, width) and `channels` count for folders of images alone. Raises `DataError`.
    """
    if classes is not None:
        check_classes(classes)
    if name_or_path == "digits":
        data = _load_digits()
    elif name_or_path in _DOWNLOADS:
        data = _load_torchvision(name_or_path, data_dir, download)
    else:
        data, classes = _load_path(name_or_path, image_size, channels, classes)
    return relabel(data, data.classes if classes is None else classes)


def _load_path(
    text: str, image_size: tuple[int, int] | None, channels: int | None, classes: Sequence[str] | None
) -> tuple[LabelledData, Sequence[str] | None]:
    path = expanded(Path(text))
    if not path.exists():
        raise DataError(f"{text}: no such file or folder, nor one of {', '.join(NAMES)}: check --data")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} cannot be read: check its permissions")
    if path.is_dir():
        order = read_classes_file(path) if classes is None else classes
        return read_folder(path, image_size=image_size, channels=channels), order
    if path.suffix.lower() == ".npz":
        return read_npz(path, classes=classes), classes
    if path.suffix.lower() == ".csv":
        return read_csv(path, classes=classes), classes
    raise DataError(f"{path} is no folder, .npz or .csv: convert it, or write a task in module:function")


def _load_digits() -> LabelledData:
    """The test part of UCI's optical digits as scikit-learn has it: values 0 to 16, here 0 to 255."""
    from sklearn.datasets import load_digits  # takes a second to import: only who uses it pays

    bunch: Any = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    examples = Examples(torch.from_numpy(pixels), torch.from_numpy(bunch.target.astype(np.int64)))
    return LabelledData(examples, DIGITS, "digits", image_preprocessing((0.3053,), (0.3760,)))


def _load_torchvision(name: str, data_dir: Path, download: bool) -> LabelledData:
    """The training part, which the dev split is taken from. Read without a network when it is there."""
    from torchvision import datasets

    known = _DOWNLOADS[name]
    source: Callable[..., Any] = getattr(datasets, known.torchvision_class)
    try:
        stored = source(root=str(data_dir), train=True, download=False)
    except RuntimeError:
        if not download:
            raise DataError(
                f"{name} is not in {data_dir}: allow its download, or name its folder with --data-dir"
            ) from None
        stored = _download(name, source, data_dir)
    except (ValueError, AssertionError, EOFError, OSError) as error:
        raise DataError(f"{name} in {data_dir} is damaged ({error}): remove it and start again") from None
    pixels = torch.as_tensor(stored.data)
    # MNIST gives (n, h, w), CIFAR (n, h, w, channels)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    examples = Examples(pixels, torch.as_tensor(stored.targets, dtype=torch.int64))
    return LabelledData(examples, known.classes, name, image_preprocessing(known.mean, known.std))


def _download(name: str, source: Callable[..., Any], data_dir: Path) -> Any:
    """Downloads into `data_dir`; of several peers that start at once, one downloads and all wait."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{name}.lock"):
            return source(root=str(data_dir), train=True, download=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[-120:]
        raise DataError(
            f"{name} could not be downloaded to {data_dir} (… {reason}): "
            "connect to the internet, or copy it there from another machine, or use --data digits"
        ) from None


def parse_classes(text: str) -> tuple[str, ...]:
    """The ordered class names in `cat,dog,horse`. Raises `UsageError`."""
    names = tuple(name.strip() for name in text.split(","))
    try:
        check_classes(names)
    except DataError as error:
        raise UsageError(f"--classes: {error}") from None
    return names


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Finite numbers between commas, as for `--mean` and `--std`. Raises `UsageError`."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{option} {text[:40]!r} must be numbers like 0.5 or 0.49,0.48,0.45")
    return numbers


def parse_image_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels from `32` or `32x48`. Raises `UsageError`."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 1 <= int(side[:9]) <= MAX_SIDE for side in sides):
        raise UsageError(f"--image-size {text[:40]!r} must be like 32 or 32x48 (height x width)")
    return int(sides[0]), int(sides[-1])


def parse_channels(text: str) -> int:
    """1 (gray) or 3 (colour). Raises `UsageError`."""
    if text not in ("1", "3"):
        raise UsageError(f"--channels {text[:40]!r} must be 1 (gray) or 3 (colour)")
    return int(text)
