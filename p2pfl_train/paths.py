"""Paths as a person types them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: Path) -> Path:
    """With `~` as the shell has it; a `~name` of no user stays as it is, and is then not found."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path
