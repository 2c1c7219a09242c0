"""The command `p2pfl-net`."""

from __future__ import annotations

import os
import signal
import sys

from p2pfl_state.errors import StateError

from p2pfl_net import cli
from p2pfl_net.errors import NetError

STATE_EXIT_CODE = 3


def main() -> None:
    """Runs the command line; a mistake of the user's becomes one line and an exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C library logs to stderr what we say in one line
    try:
        cli.run()
        sys.stdout.flush()
    except NetError as error:
        cli.say(str(error))
        sys.exit(error.exit_code)
    except StateError as error:
        cli.say(str(error))
        sys.exit(STATE_EXIT_CODE)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
