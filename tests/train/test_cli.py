"""The command as a person types it: what it prints, and one line and an exit code for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import file_weights_digest, read_header

from p2pfl_train import exchange
from p2pfl_train.config import Every, RunOptions, TrainingOptions, parse_every
from p2pfl_train.errors import UsageError
from tests.train.command_line import Capture, call, fails
from tests.train.fake_daemon import FakeDaemon

torch.set_num_threads(1)


def test_help_is_quick_and_documents_the_exit_codes() -> None:
    program = (
        "import sys, p2pfl_train.__main__ as m\n"
        "try: m.app(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for word in ("Exit codes", "--fan-out", "--accept-arch", "--receive-timeout", "--target-accuracy"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, ["--shard", "11/10"], "shards of 10"),
        (2, ["--shard", "0/10"], "shards of 10"),
        (2, ["--optimizer", "magic"], "sgd or adam"),
        (2, ["--aggregate-every", "often"], "1 (cycles) or 2s"),
        (2, ["--local-steps", "3", "--local-epochs", "1"], "give one"),
        (2, ["--local-steps", "0"], "--local-steps"),
        (2, ["--batch-size", "0"], "--batch-size"),
        (2, ["--lr", "nan"], "--lr"),
        (2, ["--momentum", "1"], "--momentum"),
        (2, ["--fan-out", "1000"], "--fan-out"),
        (2, ["--deadline", "0"], "--deadline"),
        (2, ["--target-accuracy", "95"], "--target-accuracy"),
        (2, ["--channels", "2"], "--channels '2' must be 1 (gray) or 3 (colour)"),
        (2, ["--threads", 2**31], "--threads 2147483648 must be from 1 to"),
        (2, ["--local-steps", 2**31], "--local-steps 2147483648 must be from 1 to"),
        (2, ["--accept-arch", "abc"], "SHA-256"),
        (2, ["--model-arg", "hidden"], "--model-arg"),
        (6, ["--data", "nowhere"], "nowhere"),
        (7, ["--model", "gpt"], "unknown model"),
    ],
)
def test_wrong_options_are_one_line(
    capsys: Capture, tmp_path: Path, code: int, arguments: list[object], words: str
) -> None:
    start = ["run", "--state", tmp_path / "s", "--data", "digits", *arguments]
    assert words in fails(capsys, code, *start)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--state", "s", "--bogus"], "--bogus"),
        (["run", "--state", "s", "--lr", "abc"], "--lr"),
        (["run", "--state", "s", "--lr"], "--lr"),
        (["run"], "--state"),
        (["predict", "--state", "s"], "IMAGE"),
        (["evaluate", "--state", "s", "word"], "word"),
        (["fly"], "fly"),
        ([], "command"),
    ],
)
def test_what_is_no_command_line_is_one_line(capsys: Capture, arguments: list[str], words: str) -> None:
    line = fails(capsys, 2, *arguments)
    assert words in line
    assert line.endswith("; see --help\n")


@pytest.mark.parametrize("arguments", [[], ["run"], ["evaluate"], ["predict"], ["plot"]])
def test_help_is_printed(capsys: Capture, arguments: list[str]) -> None:
    code, out, err = call(capsys, *arguments, "--help")
    assert (code, err) == (0, "")
    assert "Usage: p2pfl-train" in out
    assert "Exit codes" in out


def test_without_a_daemon_the_exit_code_is_4(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BOOT_PATIENCE_S", 0.0)
    line = fails(capsys, 4, "run", "--state", tmp_path / "s", "--data", "digits")
    assert "p2pfl-net serve" in line


def test_a_directory_that_cannot_be_made_is_exit_code_3(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(capsys, 3, "run", "--state", tmp_path / "file" / "s", "--data", "digits")


def test_a_foreign_directory_is_exit_code_3(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "home.json").write_text('{"contract": 1, "host": "another", "inode": 1}')
    assert "another host" in fails(capsys, 3, "run", "--state", tmp_path, "--data", "digits")


def test_plot_draws_from_the_directory(capsys: Capture, trained: StateDir, tmp_path: Path) -> None:
    code, out, _ = call(capsys, "plot", trained.root, "--out", tmp_path / "plots")
    assert code == 0
    assert out.splitlines()
    assert all(Path(line).stat().st_size > 0 for line in out.splitlines())
    fails(capsys, 6, "plot", tmp_path / "missing")


def test_a_full_disk_is_one_line_and_the_published_model_stays(trained: StateDir, tmp_path: Path) -> None:
    """A file may grow to 100 KiB and the model needs more, which is as far as a full disk lets it come."""
    state = StateDir(tmp_path / "peer")
    state.root.mkdir()
    for source, target in ((trained.model, state.model), (trained.task, state.task)):
        target.write_bytes(source.read_bytes())
    before = state.model.read_bytes()
    assert len(before) > 100 * 1024
    arguments = f"run --state {state.root} --data digits --cycles 1"
    program = f"ulimit -f 100; exec {sys.executable} -m p2pfl_train {arguments}"
    with FakeDaemon(state):
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("p2pfl-train: ")
    assert done.stderr.count("\n") == 1
    assert state.model.read_bytes() == before
    assert not list(state.root.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("text", "period"), [("1", Every(cycles=1)), (" 20 ", Every(cycles=20)), ("0.5s", Every(seconds=0.5))]
)
def test_a_period_is_in_cycles_or_seconds(text: str, period: Every) -> None:
    assert parse_every(text) == period


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "1.5", "s", "2m", "1e3s", "nan"])
def test_other_periods_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--aggregate-every"):
        parse_every(text)


def test_the_default_options_are_valid(tmp_path: Path) -> None:
    RunOptions(tmp_path).check()
    assert TrainingOptions().local_steps == 10


def test_the_published_file_is_whole(trained: StateDir) -> None:
    assert file_weights_digest(trained.model) == read_header(trained.model).manifest().weights
