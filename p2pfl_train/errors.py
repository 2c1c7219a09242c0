"""Everything that a user of the trainer can do wrong, with the exit code that tells it.

    TrainError            one line: what is wrong and what to do
    ├── UsageError        2  an option, or options that do not go together
    │   └── TooFewModels  2  a rule of aggregation and too few models for its liars
    ├── DataError         6  the data is missing, empty, of a wrong shape or label
    ├── ModelError        7  an unknown architecture, or one that does not fit the data
    │   └── SourceNotAccepted  7  one that is code, and not accepted
    ├── NetworkDown       4  the daemon did not come up
    ├── WeightsRefused    8  a tensor file that does not fit: truncated, other shapes, NaN
    └── Unsafe            9  a plan under which liars may outvote the honest, or an accuracy below its bound

State-directory errors (exit 3) are `p2pfl_state.errors.StateError`.
"""

from __future__ import annotations


class TrainError(Exception):
    """A mistake outside this program. The text is one line with the remedy."""

    exit_code = 1


class UsageError(TrainError):
    """An option is wrong, or two do not go together."""

    exit_code = 2


class TooFewModels(UsageError):
    """A rule cannot withstand so many liars among so few models."""


class NetworkDown(TrainError):
    """No daemon came up on the state directory."""

    exit_code = 4


class DataError(TrainError):
    """The private data cannot be used as it is."""

    exit_code = 6


class ModelError(TrainError):
    """The architecture is unknown, cannot be built, or does not fit the data."""

    exit_code = 7


class SourceNotAccepted(ModelError):
    """The architecture is code that the operator has not accepted."""

    def __init__(self, name: str, digest: str, source: str, arguments: str) -> None:
        """`arguments`: of the model, as JSON."""
        super().__init__(
            f"the model {name[:80]!r} is Python code of SHA-256 {digest}, which is not accepted: "
            f"read it, and pass --accept-arch {digest} to run it"
        )
        self.name, self.digest, self.source, self.arguments = name, digest, source, arguments


class WeightsRefused(TrainError):
    """A tensor file is not weights of this task; what was there before is kept."""

    exit_code = 8


class Unsafe(TrainError):
    """What was asked can be done, and liars may win."""

    exit_code = 9


def one_line(error: Exception) -> str:
    """What somebody else's exception says, for the one line of ours."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
