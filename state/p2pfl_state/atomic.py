"""The only place that makes a file appear: temporary name, flush, fsync, rename, fsync the folder.

A reader sees the old content or the new, never a part, after a crash of the process or of the
machine. Appending to a jsonl file is the one other way to write, and its readers tolerate a torn
last line.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2pfl_state.errors import DirectoryUnusable, MalformedFile
from p2pfl_state.layout import temporary


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary name to write; on leaving without an error, it replaces `path`.

    `durable`: whether it must outlive a crash of the machine; what can be made again need not.
    Raises `DirectoryUnusable` when the disk is full or read-only; `path` then is as it was.
    """
    draft = temporary(path)
    try:
        draft.unlink(missing_ok=True)  # what a crash left, or another account laid there
        yield draft
        (settle if durable else settle_cached)(draft, path)
    except OSError as error:
        _discard(draft)
        raise unusable(path, error) from error
    except BaseException:
        _discard(draft)
        raise


def _discard(draft: Path) -> None:
    """Removes what was begun. Where that fails too (a read-only disk) the first error is the news."""
    with suppress(OSError):
        draft.unlink()


def settle(draft: Path, path: Path) -> None:
    """Syncs `draft` and renames it to `path` in the same folder. Raises `OSError`."""
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


def settle_cached(draft: Path, path: Path) -> None:
    """Renames `draft` to `path` without a sync: for what can be fetched again. Raises `OSError`."""
    os.replace(draft, path)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` durable. Raises `OSError`."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replaces `path` by `data` atomically. Raises `DirectoryUnusable`."""
    with replacing(path, durable=durable) as draft:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(handle, "wb") as file:
            file.write(data)


def encode_json(value: Mapping[str, Any]) -> bytes:
    """One line of JSON as every file of the contract has it."""
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Replaces `path` by one line of JSON atomically. Raises `DirectoryUnusable`."""
    write_bytes(path, encode_json(value), durable=durable)


def read_bounded(path: Path, limit_bytes: int) -> bytes | None:
    """The content of `path`, or None if it does not exist.

    Raises `MalformedFile` over `limit_bytes`, `DirectoryUnusable` when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, error) from error
    if len(data) > limit_bytes:
        raise MalformedFile(f"{path} is larger than {limit_bytes} bytes; remove it")
    return data


def remove(path: Path) -> None:
    """Removes `path` if it is there. Raises `DirectoryUnusable`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: OSError) -> DirectoryUnusable:
    """The one-line error for a failed write or read of `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DirectoryUnusable(f"no space left to write {path}: free some disk space and start again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return DirectoryUnusable(f"{path} cannot be written ({error.strerror}): choose another --state DIR")
    return DirectoryUnusable(f"{path}: {error.strerror or error}: choose another --state DIR")


class JsonLines:
    """Appends one JSON object a line, each at once. One writer a file; safe in one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - held for the life of the writer
            self._torn = self._ends_torn()
        except OSError as error:
            raise unusable(path, error) from error

    def _ends_torn(self) -> bool:
        """Whether a crash left half a line at the end. The next line then begins by ending it."""
        if self._file.seek(0, os.SEEK_END) == 0:
            return False
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) != b"\n"

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one line. Raises `DirectoryUnusable` when the disk is full; the line is lost then."""
        left = (b"\n" if self._torn else b"") + encode_json(record)
        try:
            while left:
                left = left[self._file.write(left) :]
                self._torn = bool(left)
        except OSError as error:
            raise unusable(self._path, error) from error

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a jsonl file, oldest first; torn or foreign lines are passed over."""
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield record
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable(path, error) from error
