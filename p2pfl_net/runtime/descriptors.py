"""File descriptors: connections of others must leave enough of them for the daemon's own files."""

from __future__ import annotations

import resource

OWN_DESCRIPTORS = 1024
"""For connections to others (`Connections`: 256 and 64), models that are read and written, and all else."""


def connections_with_room(wanted: int) -> int:
    """Raises the limit of this process as far as so many connections need and the system allows; how many of
    them there is room for then: half of all, where it is small."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OWN_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if allowed > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except (OSError, ValueError):  # a system that has another bound besides
            allowed = soft
    return min(wanted, max(allowed // 2, allowed - OWN_DESCRIPTORS))
