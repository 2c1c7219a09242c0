"""Shows a person the code of a network's model before it runs, and asks.

What is shown is the very text that is hashed and run, in plain ASCII: a character that could move the cursor,
turn the direction of writing or look like another one is shown as its number.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
from typing import TextIO

from p2pfl_train.errors import SourceNotAccepted

QUESTION = "Run this code? [y/N] "
YES = ("y", "yes")
LOOK_S = 0.2
"""How long Ctrl-C may go unnoticed: one that comes just before a read would wait for its end."""
_LINE_END = re.compile(r"\r\n|\r|\n")
"""What ends a line for Python: a lone carriage return too, behind which code could hide in a comment."""


def is_given(wanted: SourceNotAccepted) -> bool:
    """Whether a person at this terminal has read the code and wants it to run, this once.

    Without a person, that is where standard input or error is no terminal or belongs to another job, nobody
    is asked: False.
    """
    if not _has_person(sys.stdin, sys.stderr):
        return False
    try:
        sys.stderr.write(shown(wanted))
        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before says nothing about this
        sys.stderr.write(QUESTION)
        sys.stderr.flush()
        while not select.select([sys.stdin], [], [], LOOK_S)[0]:
            pass
        answer = sys.stdin.readline()
    except (KeyboardInterrupt, UnicodeDecodeError):
        answer = ""
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    return answer.strip().lower() in YES


def shown(wanted: SourceNotAccepted) -> str:
    """The code with its lines numbered, and what is known of it: printable ASCII, tabs and line feeds."""
    lines = _LINE_END.split(wanted.source)
    if not lines[-1]:
        lines.pop()
    what = f"{escaped(wanted.name)}, {len(lines)} lines of Python, SHA-256 {wanted.digest}"
    width = len(str(len(lines)))
    text = [f"The network's model is code: {what}"]
    if not wanted.source.isascii():
        text.append("(what is not plain ASCII is shown by its number, as <U+00E9>)")
    text += [f"{number:{width}} | {escaped(line)}" for number, line in enumerate(lines, 1)]
    text += [
        f"End of {what}",
        f"It would be made with the arguments {escaped(wanted.arguments)}.",
        "It would run with all that you may do here: read your files, your data, use your network.",
        f"To accept it for good, answer no and pass --accept-arch {wanted.digest}",
    ]
    return "\n".join(text) + "\n"


def escaped(text: str) -> str:
    """`text` with nothing but printable ASCII and tabs in it."""
    return "".join(
        character if " " <= character <= "~" or character == "\t" else f"<U+{ord(character):04X}>"
        for character in text
    )


def _has_person(asked: TextIO, told: TextIO) -> bool:
    """Whether somebody can read and answer. A job in the background would be stopped by the question."""
    try:
        return asked.isatty() and told.isatty() and os.tcgetpgrp(asked.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # closed, or no terminal of ours
        return False
