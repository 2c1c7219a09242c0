"""`p2pfl-train` called in this process, as a person types it."""

from __future__ import annotations

import sys

import pytest

from p2pfl_train import __main__ as command

Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["p2pfl-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command.main()
    code = caught.value.code
    assert isinstance(code, int)
    out, err = capsys.readouterr()
    return code, out, err


def fails(capsys: Capture, code: int, *arguments: object) -> str:
    """The one line that a wrong call prints."""
    found, _, err = call(capsys, *arguments)
    assert found == code, err
    assert err.startswith("p2pfl-train: ")
    assert err.count("\n") == 1, err
    return err
