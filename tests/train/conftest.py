"""What several files of this room need."""

from __future__ import annotations

import sys

import pytest
from p2pfl_state.layout import StateDir

from p2pfl_train import __main__ as command
from tests.train.fake_daemon import FakeDaemon
from tests.train.running import run


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
