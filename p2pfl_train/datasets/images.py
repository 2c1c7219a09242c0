"""Images from a folder of class folders, read with Pillow into one uint8 tensor.

    pets/cat/1.png  pets/cat/2.jpg  pets/dog/1.png      classes: cat, dog

All images are brought to one size by stretching. They are gray unless one of them has colour, or as
`--channels` says: what this peer's images need, another's may not. A `classes.txt` in the folder, one
name a line, gives the order of the classes where this peer lacks one.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from p2pfl_train.datasets.examples import MAX_CLASSES, MAX_DATA_BYTES, Examples, LabelledData, shown
from p2pfl_train.datasets.preprocess import image_preprocessing
from p2pfl_train.errors import DataError

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
MAX_IMAGE_PIXELS = 64 << 20
"""A photograph has at most some 60 million pixels; a small file that says more is a decompression bomb."""
MAX_SIDE = 8192
CLASSES_FILE = "classes.txt"
MAX_CLASSES_FILE_BYTES = 1 << 20
_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_folder(folder: Path, *, image_size: tuple[int, int] | None, channels: int | None) -> LabelledData:
    """All images below `folder`; classes are its sorted folder names.

    `image_size` is (height, width), by default that of the first image; `channels` 1 or 3, by default
    what the images need. Raises `DataError`, which names the file that is wrong.
    """
    classes = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise DataError(f"{folder} has no class folders: put the images into one folder for each class")
    if len(classes) > MAX_CLASSES:
        raise DataError(f"{folder} has {len(classes)} class folders, more than {MAX_CLASSES}")
    files = [(path, label) for label, name in enumerate(classes) for path in _images_in(folder / name)]
    if not files:
        raise DataError(
            f"{folder}: no images in {shown(classes)}: put {', '.join(sorted(SUFFIXES))} files there"
        )
    height, width = image_size or _first_size(files[0][0])
    if channels is None:
        channels = 3 if any(_has_colour(path) for path, _ in files) else 1
    x = _allocate(folder, len(files), (channels, height, width))
    for row, (path, _) in enumerate(files):
        x[row] = read_image(path, (channels, height, width))
    y = torch.tensor([label for _, label in files], dtype=torch.int64)
    half = [0.5] * channels
    return LabelledData(Examples(x, y), tuple(classes), str(folder), image_preprocessing(half, half))


def read_classes_file(folder: Path) -> tuple[str, ...] | None:
    """The names in the folder's `classes.txt`, in order; None without one. Raises `DataError`."""
    path = folder / CLASSES_FILE
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CLASSES_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if len(data) > MAX_CLASSES_FILE_BYTES:
        raise DataError(f"{path} is larger than {MAX_CLASSES_FILE_BYTES} bytes")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_image(path: Path, input_shape: Sequence[int]) -> Tensor:
    """One image file as uint8 of shape `input_shape` (channels 1 or 3, height, width).

    Turned upright by its EXIF tag and stretched to size. Raises `DataError` for a file that is
    missing, broken, or too large to decode.
    """
    channels, height, width = input_shape
    try:
        with _opened(path) as image:
            upright = ImageOps.exif_transpose(image)
            converted = _convert(upright, channels)
            if converted.size != (width, height):
                converted = converted.resize((width, height), Image.Resampling.BILINEAR)
            pixels: npt.NDArray[np.uint8] = np.array(converted, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, zlib.error) as error:
        raise _broken(path, error) from None
    return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in _DEEP_MODES:  # Pillow would clip 16-bit values at 255 instead of scaling them
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray((deep.clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def _opened(path: Path) -> Image.Image:
    """Opens the file and reads only its header. Raises `DataError` for one with too many pixels."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns from its own, larger limit on; the check below is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError:
        raise DataError(
            f"{path} would decode to more than {MAX_IMAGE_PIXELS} pixels: make it smaller or remove it"
        ) from None
    if image.width * image.height > MAX_IMAGE_PIXELS:
        image.close()
        raise DataError(
            f"{path} would decode to {image.width} x {image.height} pixels: make it smaller or remove it"
        )
    return image


def _broken(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
        return DataError(f"{path} cannot be read: {error.strerror}")
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error).split("\n")[0]
    return DataError(f"{path} is a broken image file ({reason}): repair or remove it")


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode and (height, width) of the upright image. Raises `DataError`."""
    try:
        with _opened(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientations a quarter turn away
            size = (image.width, image.height) if turned else (image.height, image.width)
            if image.mode == "P" and _is_gray(image.getpalette() or []):
                return "L", size
            return image.mode, size
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, zlib.error) as error:
        raise _broken(path, error) from None


def _is_gray(palette: Sequence[int]) -> bool:
    """Whether a palette (red, green, blue of each entry in turn) has no colour."""
    return all(red == green == blue for red, green, blue in zip(*[iter(palette)] * 3, strict=False))


def _first_size(path: Path) -> tuple[int, int]:
    return _header(path)[1]


def _has_colour(path: Path) -> bool:
    return _header(path)[0] not in _GRAY_MODES


def _images_in(folder: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None


def _allocate(folder: Path, count: int, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"{folder}: images have 1 or 3 channels, the task wants {channels}")
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise DataError(f"an image size of {height} x {width} is not within 1 to {MAX_SIDE}")
    if count * channels * height * width > MAX_DATA_BYTES:
        raise DataError(
            f"{folder}: {count} images of {height} x {width} do not fit into {MAX_DATA_BYTES >> 30} GiB: "
            "pass a smaller --image-size"
        )
    return torch.empty((count, channels, height, width), dtype=torch.uint8)
