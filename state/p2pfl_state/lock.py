"""Who lives: an exclusive OS lock per process, held for its life and gone with it.

The owner holds `flock(LOCK_EX)` through filelock. A probe asks for a shared lock and lets it go at
once, so that two probes never see each other, and an owner that starts in that instant only waits a
moment: it retries for `START_PATIENCE_S`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from p2pfl_state.atomic import unusable
from p2pfl_state.errors import DirectoryInUse

START_PATIENCE_S = 1.0
"""How long a starting owner retries; a guess far above the microseconds that a probe holds."""


class ProcessLock:
    """The exclusive lock that makes this process the directory's one daemon (or trainer)."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock  # most commands only look, as quickly as they can

        self._path = path
        self._lock = FileLock(path, thread_local=False)

    def acquire(self) -> None:
        """Takes the lock for the life of the process.

        Raises `DirectoryInUse` when a live process holds it, `DirectoryUnusable` when the file
        cannot be made.
        """
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=START_PATIENCE_S, poll_interval=0.02)
        except Timeout:
            kind = self._path.stem
            raise DirectoryInUse(
                f"{self._path.parent} is in use by another {kind}: stop it, or choose another --state DIR"
            ) from None
        except OSError as error:
            raise unusable(self._path, error) from error

    def release(self) -> None:
        """Gives the lock up; harmless when it is not held."""
        self._lock.release(force=True)


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock at `path`, without disturbing one that starts."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unusable(path, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise unusable(path, error) from error
    finally:
        os.close(handle)
    return False
