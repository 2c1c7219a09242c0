"""A model that is code is shown to the person at the terminal, and runs only if that one says so."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from p2pfl_state.layout import StateDir

from p2pfl_train import consent, models
from p2pfl_train.consent import QUESTION, escaped, shown
from p2pfl_train.errors import SourceNotAccepted
from p2pfl_train.task import Architecture
from tests.processes import QUIET, ROOT, TORCH_PATIENCE_S, wait_for_trainer
from tests.train.command_line import call
from tests.train.fake_daemon import FakeDaemon
from tests.train.running import offering

SOURCE = """
from pathlib import Path
from torch import nn

Path({trap!r}).touch()

class Net(nn.Sequential):
    def __init__(self, hidden=64):
        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""

ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes standard input the terminal of the new session, as a shell's."""


class Typed:
    """`p2pfl-train` at a terminal: what it shows there, and what a person types."""

    def __init__(self, popen: subprocess.Popen[bytes], keyboard: int) -> None:
        self._popen = popen
        self._keyboard = keyboard
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def wait_question(self) -> None:
        wait_for_trainer(self._asked, what="the question")

    def _asked(self) -> bool:
        assert self._look(), f"ended without a question:\n{self.screen}"
        return QUESTION in self.screen

    def end(self) -> int:
        """Reads all that is still shown; the exit code."""
        while self._look():
            pass
        return self._popen.wait(TORCH_PATIENCE_S)

    def _look(self) -> bool:
        """Reads what is there; whether the terminal is still open at the other end."""
        try:
            more = os.read(self._keyboard, 1 << 16)
        except OSError:  # what Linux says when nobody has the terminal open any more
            return False
        self.screen += more.decode()
        return bool(more)


@contextmanager
def typed(*arguments: object, stderr: int | None = None) -> Iterator[Typed]:
    keyboard, terminal = pty.openpty()
    line = [sys.executable, "-c", ON_TERMINAL, sys.executable, "-m", "p2pfl_train", *map(str, arguments)]
    popen = subprocess.Popen(
        line,
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal if stderr is None else stderr,
        env={**os.environ, **QUIET},
        cwd=ROOT,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        yield Typed(popen, keyboard)
    finally:
        popen.kill()
        popen.wait()
        os.close(keyboard)


class Trap:
    """A peer that has published a model whose code leaves a trace where it runs."""

    def __init__(self, folder: Path) -> None:
        self.trace = folder / "executed"
        self.source = SOURCE.format(trap=str(self.trace))
        self.digest = hashlib.sha256(self.source.encode()).hexdigest()
        self.file = folder / "net.py"
        self.file.write_text(self.source)
        self.state = StateDir(folder / "peer")


@pytest.fixture
def trap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Trap:
    made = Trap(tmp_path)
    line = ["run", "--state", made.state.root, "--data", "digits", "--model", f"{made.file}:Net"]
    with FakeDaemon(made.state):
        assert call(capsys, *line, "--cycles", "1", "--no-final-evaluation")[0] == 0
    made.trace.unlink()
    return made


@pytest.mark.parametrize("answer", ["y\n", " YES \n"])
def test_a_yes_runs_it_this_once(trap: Trap, answer: str) -> None:
    with typed("evaluate", "--state", trap.state.root) as trainer:
        trainer.wait_question()
        assert not trap.trace.exists()
        trainer.type(answer)
        assert trainer.end() == 0, trainer.screen
    assert trap.trace.exists()
    assert f"Net, {len(trap.source.splitlines())} lines of Python, SHA-256 {trap.digest}" in trainer.screen
    assert f"--accept-arch {trap.digest}" in trainer.screen
    numbered = [re.fullmatch(r" *\d+ \| (.*)", line) for line in trainer.screen.splitlines()]
    assert [match[1] for match in numbered if match] == trap.source.splitlines()
    with typed("evaluate", "--state", trap.state.root) as trainer:
        trainer.wait_question()  # again
        trainer.type("n\n")
        assert trainer.end() == 7


@pytest.mark.parametrize(
    "answer", ["n\n", "\n", "yes please\n", "\x04", "\x03"], ids=["no", "nothing", "more", "end", "Ctrl-C"]
)
def test_whatever_else_is_a_no(trap: Trap, answer: str) -> None:
    with typed("evaluate", "--state", trap.state.root) as trainer:
        trainer.type("y\n")  # before anything was shown
        trainer.wait_question()
        trainer.type(answer)
        assert trainer.end() == 7, trainer.screen
    assert f"pass --accept-arch {trap.digest}" in trainer.screen
    assert "Traceback" not in trainer.screen
    assert not trap.trace.exists()


def test_predict_asks_too(trap: Trap, tmp_path: Path) -> None:
    with typed("predict", "--state", trap.state.root, tmp_path / "a.png") as trainer:
        trainer.wait_question()
        trainer.type("n\n")
        assert trainer.end() == 7
    assert not trap.trace.exists()


@pytest.mark.parametrize(
    ("answer", "code"), [("y\n", 0), ("n\n", 7), ("\x03", 0)], ids=["yes", "no", "Ctrl-C"]
)
def test_a_run_that_joins_asks_before_it_trains(trap: Trap, tmp_path: Path, answer: str, code: int) -> None:
    """Ctrl-C ends a run with 0 at any time."""
    state = StateDir(tmp_path / "joiner")
    with FakeDaemon(state, offering(trap.state), task=trap.state.task):
        line = ("run", "--state", state.root, "--data", "digits", "--join", "--cycles", "1")
        with typed(*line, "--no-final-evaluation") as trainer:
            trainer.wait_question()
            assert not trap.trace.exists()
            trainer.type(answer)
            assert trainer.end() == code, trainer.screen
    assert trap.trace.exists() is (answer == "y\n")
    assert state.model.exists() is (answer == "y\n")
    assert state.received_source.read_bytes() == trap.source.encode()


def test_without_a_person_nobody_is_asked_and_nothing_runs(trap: Trap) -> None:
    with typed("evaluate", "--state", trap.state.root, stderr=subprocess.DEVNULL) as trainer:
        trainer.type("y\ny\n")
        assert trainer.end() == 7
    assert QUESTION not in trainer.screen
    said = subprocess.run(
        [sys.executable, "-m", "p2pfl_train", "evaluate", "--state", trap.state.root],
        input="y\ny\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TORCH_PATIENCE_S,
    )
    assert (said.returncode, len(said.stderr.splitlines())) == (7, 1)
    assert not trap.trace.exists()


def test_a_terminal_that_is_not_ours_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of another job: the question would stop this one."""
    keyboard, terminal = pty.openpty()
    try:
        with os.fdopen(os.dup(terminal)) as stdin, os.fdopen(os.dup(terminal), "w") as stderr:
            monkeypatch.setattr(sys, "stdin", stdin)
            monkeypatch.setattr(sys, "stderr", stderr)
            assert stdin.isatty()
            assert not consent.is_given(SourceNotAccepted("Net", "0" * 64, "pass\n", "{}"))
    finally:
        os.close(terminal)
        os.close(keyboard)


# what is shown -------------------------------------------------------------------------------------


def lines_of(source: str) -> list[str]:
    text = shown(SourceNotAccepted("Net", "0" * 64, source, "{}"))
    assert all(" " <= character <= "~" or character in "\t\n" for character in text)
    matches = [re.fullmatch(r" *\d+ \| (.*)", line) for line in text.splitlines()]
    return [match[1] for match in matches if match]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("a = 1\n\tb = 2\n", ["a = 1", "\tb = 2"]),
        ("no end", ["no end"]),
        ("", []),
        ("\n\n", ["", ""]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("# comment\rimport os\n", ["# comment", "import os"]),
        ("x = '\x1b[2J\x1b]0;title\x07'", ["x = '<U+001B>[2J<U+001B>]0;title<U+0007>'"]),
        ("hidden()\x08\x08\x08\x7f", ["hidden()<U+0008><U+0008><U+0008><U+007F>"]),
        ("if a != '\u202e \u2066# no': run()\u2069", ["if a != '<U+202E> <U+2066># no': run()<U+2069>"]),
        ("s\u0441ope", ["s<U+0441>ope"]),
        ("\u05d0 = 1", ["<U+05D0> = 1"]),
        ("a\x0cb\x0bc\x85d\u2028e\u200bf\xa0g", ["a<U+000C>b<U+000B>c<U+0085>d<U+2028>e<U+200B>f<U+00A0>g"]),
        ("\ufeffa\x00", ["<U+FEFF>a<U+0000>"]),
        ("\U0001f600\U000e0041", ["<U+1F600><U+E0041>"]),
    ],
)
def test_nothing_hides_in_what_is_shown(source: str, lines: list[str]) -> None:
    assert lines_of(source) == lines


def test_long_code_is_shown_whole() -> None:
    source = "".join(f"x{number} = {number}\n" for number in range(20_000))
    assert lines_of(source) == source.splitlines()


def test_names_and_arguments_are_data_too() -> None:
    assert escaped("a\nRun this code? [y/N] y\x1b[A") == "a<U+000A>Run this code? [y/N] y<U+001B>[A"
    text = shown(SourceNotAccepted("N\u202e\n", "0" * 64, "pass", '{"a":"\x1b"}'))
    assert "N<U+202E><U+000A>, 1 lines" in text
    assert '{"a":"<U+001B>"}' in text


def test_the_text_that_is_shown_is_the_text_that_runs(tmp_path: Path) -> None:
    """Bytes could name an encoding in which a comment is code."""
    trace = tmp_path / "executed"
    model = "from torch import nn\ndef Net(): return nn.Linear(5, 3)\n"
    hidden = f"# coding: utf-7\n# harmless +AAo-open({str(trace)!r}, 'w')\n{model}"
    for source in (hidden, "\ufeff" + model):
        wanted = Architecture("Net", {}, source)
        assert wanted.source_digest is not None
        models.model_factory(wanted, (5,), 3, accepted=frozenset([wanted.source_digest]))()
    assert not trace.exists()
