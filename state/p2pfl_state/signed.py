"""Which version this peer has signed last: it signs no other under the same number, and none below.

Written before the signature is given away, so after a crash the number counts as used. The file knows its own
inode and when it was written, and the disk knows it too: one that comes from a backup or a copy has others,
and then nobody can say which versions were signed since. A generous number of them is left out.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass

from p2pfl_state import atomic
from p2pfl_state.fields import Fields, parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

MAX_BYTES = 4096
WRITTEN_WITHIN_S = 10.0
"""Between the time in the file and that of its last change on disk, which no copy keeps. A guess: a busy
disk's longest sync."""
VERSIONS_A_SECOND = 10
"""More than any trainer publishes. A guess: each is a synced file."""
VERSIONS_LEFT_OUT = 1000
"""At least so many are left out after a restored backup, whatever the clock says."""


@dataclass(frozen=True)
class SignedVersion:
    """The high-water mark."""

    version: int
    manifest: str | None
    """SHA-256 of the manifest that was signed; None: no version up to this one is signed any more."""
    time: float
    """Unix seconds."""

    def allows(self, version: int, manifest: str) -> bool:
        """Whether this may be signed: it is newer, or the same again."""
        return version > self.version or (version, manifest) == (self.version, self.manifest)


def read(state: StateDir) -> SignedVersion | None:
    """The mark, None before the first signature. Raises `MalformedFile`, `DirectoryUnusable`."""
    found = _read(state)
    return None if found is None else found[0]


def write(state: StateDir, mark: SignedVersion) -> None:
    """Replaces the mark. Raises `DirectoryUnusable`."""
    value = {"contract": CONTRACT_VERSION, **asdict(mark)}
    with atomic.replacing(state.signed_version) as draft, open(draft, "wb") as file:
        file.write(atomic.encode_json({**value, "inode": os.fstat(file.fileno()).st_ino}))


def leave_out_earlier(state: StateDir) -> None:
    """Where nothing was signed here yet with a key that has signed elsewhere: no version that may have been
    is signed again. Raises `DirectoryUnusable`, `MalformedFile`."""
    if read(state) is None:
        now = time.time()
        write(state, SignedVersion(int(VERSIONS_A_SECOND * now), None, round(now, 3)))


def recover(state: StateDir) -> SignedVersion | None:
    """The mark at the start of a daemon; a new one, which is returned, where the file is a copy.

    Raises `MalformedFile`, `DirectoryUnusable`.
    """
    found = _read(state)
    if found is None:
        return None
    mark, inode = found
    try:
        status = state.signed_version.stat()
        if inode == status.st_ino and abs(status.st_ctime - mark.time) <= WRITTEN_WITHIN_S:
            return None
    except OSError as error:
        raise atomic.unusable(state.signed_version, error) from error
    now = time.time()
    unknown = max(VERSIONS_LEFT_OUT, int(VERSIONS_A_SECOND * max(0.0, now - mark.time)))
    later = SignedVersion(mark.version + unknown, None, round(now, 3))
    write(state, later)
    return later


def _read(state: StateDir) -> tuple[SignedVersion, int] | None:
    data = atomic.read_bounded(state.signed_version, MAX_BYTES)
    if data is None:
        return None
    what = state.signed_version.name
    fields = Fields(parse_object(data, what), what)
    fields.contract()
    mark = SignedVersion(fields.integer("version"), fields.digest_or_none("manifest"), fields.number("time"))
    return mark, fields.integer("inode", high=2**64)
