"""`evaluate` and `predict` as a person types them, on what a run has published."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from p2pfl_state.layout import StateDir
from PIL import Image

from p2pfl_train import __main__ as command
from tests.train.command_line import Capture, call, fails
from tests.train.fake_daemon import FakeDaemon

torch.set_num_threads(1)


@pytest.mark.parametrize("threads", [0, -1, 2**31, 99999999999999])
@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_threads_that_no_machine_runs_are_one_line(
    capsys: Capture, trained: StateDir, name: str, threads: int
) -> None:
    images = ["a.png"] if name == "predict" else []
    assert "--threads" in fails(capsys, 2, name, "--state", trained.root, *images, "--threads", threads)


def test_the_published_model_recognises_the_digits(capsys: Capture, trained: StateDir) -> None:
    code, out, _ = call(capsys, "evaluate", "--state", trained.root, "--json")
    assert code == 0
    measured = json.loads(out)
    assert measured["accuracy"] > 0.9
    assert measured["examples"] == sum(map(sum, measured["confusion"])) > 300
    assert len(measured["class_accuracies"]) == len(measured["classes"]) == 10
    final = json.loads(trained.metrics.read_text().splitlines()[-1])
    assert measured["accuracy"] == pytest.approx(final["accuracy_trained"])
    code, table, _ = call(capsys, "evaluate", "--state", trained.root)
    assert code == 0
    assert f"{measured['accuracy']:.4f}" in table


def test_predict_names_the_class_of_an_image(capsys: Capture, trained: StateDir, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    paths, wanted = [], []
    for index in range(8):
        pixels = np.rint(bunch.images[index] * (255 / 16)).astype(np.uint8)
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
        wanted.append(str(bunch.target[index]))
    code, out, _ = call(capsys, "predict", "--state", trained.root, "--json", *paths)
    assert code == 0
    results = [json.loads(line) for line in out.splitlines()]
    assert sum(result["class"] == label for result, label in zip(results, wanted, strict=True)) >= 7
    for result in results:
        assert sum(result["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)
        assert result["probability"] == max(result["probabilities"].values())
    code, out, _ = call(capsys, "predict", "--state", trained.root, paths[0])
    assert code == 0
    assert str(paths[0]) in out
    (tmp_path / "no.png").write_text("no image")
    assert "no.png" in fails(capsys, 6, "predict", "--state", trained.root, tmp_path / "no.png")


def test_a_directory_without_a_model_is_exit_code_8(capsys: Capture, tmp_path: Path) -> None:
    assert "nothing is published" in fails(capsys, 8, "evaluate", "--state", tmp_path)


def test_a_damaged_model_is_exit_code_8(capsys: Capture, trained: StateDir, tmp_path: Path) -> None:
    copy = StateDir(tmp_path)
    copy.task.write_bytes(trained.task.read_bytes())
    data = trained.model.read_bytes()
    for damaged in (data[:-1], data[:-1] + bytes([data[-1] ^ 4])):
        copy.model.write_bytes(damaged)
        fails(capsys, 8, "predict", "--state", copy.root, "x.png")


def test_evaluate_needs_labelled_data(capsys: Capture, trained: StateDir, tmp_path: Path) -> None:
    """A directory without the trainer's own file does not say which data it was."""
    copy = StateDir(tmp_path)
    copy.task.write_bytes(trained.task.read_bytes())
    copy.model.write_bytes(trained.model.read_bytes())
    assert "--data" in fails(capsys, 6, "evaluate", "--state", copy.root)
    code, out, _ = call(capsys, "evaluate", "--state", copy.root, "--data", "digits", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] > 0.9


def test_evaluate_finds_the_data_again_from_another_folder(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", x=np.random.default_rng(0).random((40, 3)), y=np.arange(40) % 2)
    state = StateDir(tmp_path / "peer")
    with FakeDaemon(state):
        assert call(capsys, "run", "--state", state.root, "--data", "own.npz", "--cycles", "1")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = call(capsys, "evaluate", "--state", state.root, "--json")
    assert code == 0, err
    assert json.loads(out)["examples"] == 8


OWN_MODEL = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, hidden: int = 64) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""


def test_a_model_of_ones_own_is_evaluated_with_the_arguments_of_its_run(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(OWN_MODEL)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("a.png")
    state = StateDir(tmp_path / "peer")
    with FakeDaemon(state):
        line = ["run", "--state", state.root, "--data", "digits", "--model", "mynet.py:Net"]
        assert call(capsys, *line, "--model-arg", "hidden=16", "--cycles", "1")[0] == 0
    evaluate, predict = ["evaluate", "--state", state.root], ["predict", "--state", state.root, "a.png"]
    for start in (evaluate, predict):
        code, _, err = call(capsys, *start, "--model", "mynet.py:Net")
        assert code == 0, err
        assert "--model FILE.py:Class" in fails(capsys, 7, *start)
        assert "leave --model out" in fails(capsys, 2, *start, "--model", "mlp")
    Path("mynet.py").write_text(OWN_MODEL + "# changed\n")
    told = fails(capsys, 2, *evaluate, "--model", "mynet.py:Net")
    remedy = re.search(r"--accept-arch [0-9a-f]{64}", told)
    assert remedy is not None
    assert call(capsys, *evaluate, *remedy[0].split())[0] == 0


def test_a_model_of_ones_own_that_fails_on_an_image_is_one_line(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forward = "    def forward(self, x):\n        assert len(x) > 1, 'one is not enough'\n"
    Path("mynet.py").write_text(OWN_MODEL + forward + "        return super().forward(x)\n")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("a.png")
    state = StateDir(tmp_path / "peer")
    model = ["--model", "mynet.py:Net"]
    with FakeDaemon(state):
        line = ["run", "--state", state.root, "--data", "digits", *model, "--cycles", "1"]
        code, _, err = call(capsys, *line, "--no-final-evaluation", "--evaluate-every", "2")
    assert code == 0, err
    told = fails(capsys, 7, "predict", "--state", state.root, *model, "a.png")
    assert "cannot classify a.png: AssertionError: one is not enough" in told


def test_numbers_of_their_own_scale_are_no_images(capsys: Capture, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "scans.npz", x=x, y=np.arange(40) % 2)
    state = StateDir(tmp_path / "peer")
    line = ["run", "--state", state.root, "--data", tmp_path / "scans.npz", "--cycles", "1"]
    with FakeDaemon(state):
        assert call(capsys, *line)[0] == 0
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    assert "not on the pixels" in fails(capsys, 6, "predict", "--state", state.root, tmp_path / "a.png")


def test_class_names_are_printed_as_they_are(capsys: Capture, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.random((40, 3)), y=np.arange(40) % 2, classes=["[/x]", "cat [old]"])
    state = StateDir(tmp_path / "peer")
    line = ["run", "--state", state.root, "--data", tmp_path / "a.npz", "--cycles", "1"]
    with FakeDaemon(state):
        assert call(capsys, *line)[0] == 0
    code, out, _ = call(capsys, "evaluate", "--state", state.root)
    assert code == 0
    assert "[/x]" in out
    assert "cat [old]" in out


def test_the_accuracy_of_each_class_fits_any_terminal(
    capsys: Capture, trained: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, has_matrix in ((80, True), (40, False)):
        monkeypatch.setattr(command, "LOG_WIDTH", width)
        code, out, _ = call(capsys, "evaluate", "--state", trained.root)
        assert code == 0
        assert "…" not in out
        assert ("column: predicted" in out) is has_matrix
        rows = [line.split() for line in out.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
        assert [row[0] for row in rows] == list("0123456789")
        assert all(0.5 < float(row[-1]) <= 1 for row in rows)
