"""Everything that can be wrong with a state directory.

    StateError                  one line: what is wrong and what to do
    ├── DirectoryUnusable       missing, not writable, full disk
    ├── DirectoryInUse          another live process of the same kind holds it
    ├── ForeignDirectory        it belongs to another host, or is a copy
    └── MalformedFile           a file in it is not what the contract says
        └── UnknownContract     written by a version we do not speak

`StateError` is what a command turns into a line on stderr and an exit code. Files that come from
the network are checked with the same readers: there a `MalformedFile` counts against the sender.
"""

from __future__ import annotations


class StateError(Exception):
    """Something about the state directory stops us. The text is one line with the remedy."""


class DirectoryUnusable(StateError):
    """The directory cannot be created, read or written."""


class DirectoryInUse(StateError):
    """Another live daemon (or trainer) holds the directory's lock."""


class ForeignDirectory(StateError):
    """The directory belongs to another host, or is a copy of one that exists elsewhere."""


class MalformedFile(StateError):
    """A file is truncated, not what the contract says, or larger than its bound."""


class UnknownContract(MalformedFile):
    """The file's contract version is one that this program does not know."""
