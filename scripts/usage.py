"""A command line whose mistakes are one line, as those of the project's other commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

from scripts.failures import EXIT_USAGE


class Parser(argparse.ArgumentParser):
    """Without abbreviations, and without the usage text before an error."""

    def __init__(self, prog: str, description: str | None, epilog: str) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see --help\n")
