"""What ends a command of these scripts, and the exit code that tells it.

    ScriptFailed        1   one line: what is wrong and what to do
    ├── WrongUsage      2   an option, or options that do not go together
    ├── FolderInUse     3   the folder of an experiment cannot be used
    ├── CellFailed          a simulation of `make attack` ended without a result: its own exit code
    └── PairFailed  1x 2x   a process of a pair ended that should not have

The errors of the packages (`NetError`, `TrainError`, `StateError`) keep their exit codes.
"""

from __future__ import annotations

EXIT_STATE = 3
EXIT_USAGE = 2


class ScriptFailed(Exception):
    """The text is one line, with the remedy; for a dead process its last output follows."""

    exit_code = 1


class WrongUsage(ScriptFailed):
    """An option is wrong, or two do not go together."""

    exit_code = EXIT_USAGE


class FolderInUse(ScriptFailed):
    """Something runs in the folder, or it holds what is not ours to delete."""

    exit_code = EXIT_STATE


class CellFailed(ScriptFailed):
    """A simulation failed; the text is what it said."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class PairFailed(ScriptFailed):
    """A daemon or a trainer ended without being asked."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code
