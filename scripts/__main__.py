"""The entry of all scripts: `python -m scripts run | demo | paper | attack | …`, as the Makefile calls it.

Signals are taken first and the rest is imported after, so that Ctrl-C is clean at any time.
"""

from __future__ import annotations

import importlib
import sys

from scripts.signals import StopSignals

MODULES = {
    "run": "scripts.run_pair",
    "demo": "scripts.demo",
    "paper": "scripts.paper",
    "launch": "scripts.launch",
    "stop": "scripts.launch",
    "detached": "scripts.detached",
    "attack": "scripts.attack",
    "liar": "scripts.liar",
}


def main() -> int:
    """Runs one command; a mistake becomes one line and the exit code that `failures.py` tells."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in MODULES:
        sys.stderr.write(f"scripts: name one of {', '.join(MODULES)}\n")
        return 2
    with StopSignals() as signals:
        from p2pfl_state.errors import StateError

        from p2pfl_net.errors import NetError
        from p2pfl_train.errors import TrainError
        from scripts.failures import EXIT_STATE, ScriptFailed

        try:
            status: int = importlib.import_module(MODULES[name]).main(name, sys.argv[2:], signals)
        except (ScriptFailed, NetError, TrainError) as error:
            sys.stderr.write(f"{name}: {error}\n")
            return error.exit_code
        except StateError as error:
            sys.stderr.write(f"{name}: {error}\n")
            return EXIT_STATE
    return status


if __name__ == "__main__":
    sys.exit(main())
