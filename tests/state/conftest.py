"""Disks to fill and to forbid."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import pytest

Mount = Callable[[str], None]
"""Mounts anew with these options, such as `remount,ro`."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A tmpfs of 256 KiB, and how to remount it."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True
        )

    try:
        mount("size=256k")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"mounting a tmpfs is not allowed here: {error.stderr.decode().strip()}")
    try:
        yield folder, mount
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def fill(folder: Path) -> Path:
    """Writes until nothing more fits; the file to delete for some room."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        for size_bytes in (4096, 1):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                _write_endlessly(file, size_bytes)
    return path


def _write_endlessly(file: FileIO, size_bytes: int) -> None:
    while True:
        file.write(bytes(size_bytes))
