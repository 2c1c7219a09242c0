"""The command `p2pfl-net`."""

from __future__ import annotations

import sys

import typer
from p2pfl_state.errors import StateError

from p2pfl_net.cli import app
from p2pfl_net.errors import NetError

STATE_EXIT_CODE = 3


def main() -> None:
    """Runs the command line; a mistake of the user's becomes one line and an exit code."""
    try:
        app()
    except NetError as error:
        typer.echo(f"p2pfl-net: {error}", err=True)
        sys.exit(error.exit_code)
    except StateError as error:
        typer.echo(f"p2pfl-net: {error}", err=True)
        sys.exit(STATE_EXIT_CODE)


if __name__ == "__main__":
    main()
