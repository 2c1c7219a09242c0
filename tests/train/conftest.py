"""What several files of this room need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from p2pfl_state.layout import StateDir

from p2pfl_train import __main__ as command
from p2pfl_train.tasks import TaskOptions
from tests.train.fake_daemon import FakeDaemon
from tests.train.running import run
from tests.train.simulating import SMALL, next_number


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """A peer that has learned the digits."""
    state = StateDir(tmp_path_factory.mktemp("cli") / "peer")
    with FakeDaemon(state), pytest.MonkeyPatch.context() as patch:
        arguments = ["--state", str(state.root), "--data", "digits", "--cycles", "30", "--seed", "3"]
        patch.setattr(sys, "argv", ["p2pfl-train", "run", *arguments])
        with pytest.raises(SystemExit) as caught:
            command.main()
    assert caught.value.code == 0
    return state


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """Another peer that has run on a third of the digits and stopped."""
    other = StateDir(tmp_path_factory.mktemp("other") / "peer")
    with FakeDaemon(other):
        run(other, cycles=20)
    return other


@pytest.fixture
def model_file(tmp_path: Path) -> Callable[[str], TaskOptions]:
    """The digits with a model of a file of its own."""

    def made(text: str) -> TaskOptions:
        path = tmp_path / f"own_model_{next_number()}.py"
        path.write_text("import torch\nfrom torch import nn\n" + text)
        return replace(SMALL, model=f"{path}:Own", model_arguments={})

    return made
