"""A command line whose mistakes are one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from p2pfl_net.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Without abbreviations, and without the usage text before an error."""

    def __init__(self, prog: str, description: str | None, epilog: str, **others: Any) -> None:
        """`others`: what a parser hands to those of its commands."""
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False, **others)

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see --help\n")


def positive(text: str) -> float:
    """For `add_argument(type=…)`."""
    number = _number(text)
    if number is None or not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive number below 1e9")
    return number


def whole(text: str) -> int:
    """For `add_argument(type=…)`."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to below 1e9")
    return int(text)


def share(text: str) -> float:
    """For `add_argument(type=…)`."""
    number = _number(text)
    if number is None or not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a share, from 0 to below 1, such as 0.05")
    return number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
