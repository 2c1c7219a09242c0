"""The loop, run for real on the digits, with a daemon that keeps the contract."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from p2pfl_state import atomic, taskfile
from p2pfl_state.errors import DirectoryInUse, UnknownContract
from p2pfl_state.layout import StateDir
from p2pfl_state.lock import ProcessLock
from p2pfl_state.manifest import file_weights_digest, read_header
from p2pfl_state.wait import FolderWatch
from rich.console import Console
from torch import Tensor, nn

from p2pfl_train import checkpoint, learner, loop, weights
from p2pfl_train.config import (
    EvaluationOptions,
    ExchangeOptions,
    OptimiserOptions,
    RunOptions,
    StopOptions,
    TrainingOptions,
)
from p2pfl_train.errors import ModelError, NetworkDown, WeightsRefused
from p2pfl_train.exchange import Exchange
from p2pfl_train.learner import Learner
from p2pfl_train.report import CycleRecord, Report
from p2pfl_train.startup import TaskSource, make_learner
from p2pfl_train.task import Task
from p2pfl_train.tasks import TaskOptions, build_task
from p2pfl_train.tensors import digest_of, stored_tensors
from tests.train.fake_daemon import FakeDaemon, Offer, peer_id

torch.set_num_threads(1)

DIGITS = TaskOptions(data="digits", shard="1/3")
QUICK = TrainingOptions(local_steps=2)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "own")


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser state is written at each publication, however fast they come."""
    monkeypatch.setattr(learner, "SAVE_S", 0.0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """Another peer that has run and stopped."""
    other = StateDir(tmp_path_factory.mktemp("other") / "peer")
    with FakeDaemon(other):
        run(other, cycles=20)
    return other


def options(state: StateDir, cycles: int | None = 3, **changes: Any) -> RunOptions:
    return replace(RunOptions(state.root, training=QUICK, stop=StopOptions(cycles)), **changes)


def run(
    state: StateDir,
    cycles: int = 3,
    source: TaskOptions = DIGITS,
    stop: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> str:
    """Runs the loop in this process and returns what it said."""
    said = io.StringIO()
    loop.run(options(state, cycles, **changes), TaskSource(source), Console(file=said, width=200), stop)
    return said.getvalue()


def lines(state: StateDir) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of the cycles, and the final ones."""
    every = list(atomic.read_json_lines(state.metrics))
    return [line for line in every if "final" not in line], [line for line in every if "final" in line]


def offering(*states: StateDir) -> Callable[[Any], Sequence[Offer]]:
    return lambda request: [(peer_id(i + 1), other.model) for i, other in enumerate(states)]


def test_a_lone_peer_learns_publishes_and_stops(state: StateDir) -> None:
    with FakeDaemon(state) as daemon:
        run(state, cycles=4, evaluation=EvaluationOptions(every_cycles=2))
        cycles, finals = lines(state)
    assert [line["cycle"] for line in cycles] == [1, 2, 3, 4]
    assert [line["version"] for line in cycles] == [1, 2, 3, 4]
    assert [line["accuracy_trained"] is None for line in cycles] == [True, False, True, False]
    assert all(line["accuracy_averaged"] is None and line["models"] == 0 for line in cycles)
    assert all(math.isfinite(line["loss"]) and line["seconds_training"] > 0 for line in cycles)
    assert not any(line["failed"] for line in cycles + finals)
    assert len(finals) == 1
    assert finals[0]["accuracy_trained"] > 0.2
    manifest = read_header(state.model).manifest()
    assert file_weights_digest(state.model) == manifest.weights
    assert (manifest.version, manifest.parents) == (4, ())
    task = taskfile.read_task(state.task)
    assert task is not None
    assert manifest.task == task.digest
    assert daemon.requests[0].want_task
    assert daemon.requests[0].fan_out == 1
    assert daemon.requests[0].task == task.digest


def test_the_last_average_is_published_and_measured(state: StateDir, published: StateDir) -> None:
    with FakeDaemon(state, offering(published)):
        run(state, cycles=3)
    cycles, finals = lines(state)
    manifest = read_header(state.model).manifest()
    final = finals[0]
    assert final["models"] == 1
    assert final["answered"]
    assert manifest.version == final["version"] == cycles[-1]["version"] + 1
    theirs = read_header(published.model).manifest()
    assert manifest.parents
    assert {parent.weights for parent in manifest.parents} == {theirs.weights}
    assert {parent.peer_id for parent in manifest.parents} == {peer_id(1)}
    assert final["accuracy_trained"] is not None
    assert final["accuracy_averaged"] is not None
    saved = checkpoint.load(state.trainer_state)
    assert saved is not None
    assert saved.counters.version == manifest.version


def test_the_average_of_the_last_cycle_is_kept_when_the_last_request_brings_nothing(
    state: StateDir, published: StateDir
) -> None:
    offers = offering(published)
    with FakeDaemon(state, lambda request: offers(request) if request.round == 2 else []):
        run(state, cycles=1, exchange=ExchangeOptions(blocking=True))
    (cycle,), (final,) = lines(state)
    assert (cycle["models"], final["models"]) == (1, 0)
    assert final["version"] == cycle["version"] + 1 == 2
    assert final["accuracy_averaged"] is not None
    assert final["accuracy_trained"] is not None
    manifest = read_header(state.model).manifest()
    theirs = read_header(published.model).manifest()
    assert [parent.weights for parent in manifest.parents] == [theirs.weights]


def test_a_newcomer_starts_with_the_networks_weights(state: StateDir, published: StateDir) -> None:
    with FakeDaemon(state, offering(published)), Exchange(state, 1) as own_exchange:
        own_exchange.wait_for_boot()
        made = make_learner(state, build_task(DIGITS), None, own_exchange, CycleRecord(), QUICK)
    assert digest_of(made.tensors) == read_header(published.model).manifest().weights


def test_peers_that_start_alone_start_alike(tmp_path: Path) -> None:
    digests = set()
    for number in (1, 2):
        own, source = StateDir(tmp_path / str(number)), replace(DIGITS, shard=f"{number}/3")
        torch.manual_seed(number)
        with FakeDaemon(own), Exchange(own, 1) as own_exchange:
            own_exchange.wait_for_boot()
            made = make_learner(own, build_task(source), None, own_exchange, CycleRecord(), QUICK)
        digests.add(digest_of(made.tensors))
    assert len(digests) == 1


def test_training_never_waits_for_a_daemon_that_never_answers(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FINAL_DEADLINE_S", 0.01)
    monkeypatch.setattr(loop, "LATE_S", 0.0)
    with FakeDaemon(state) as daemon:
        run(state, cycles=1)
        daemon.silent = True
        run(state, cycles=6, exchange=ExchangeOptions(deadline_s=86400.0))
    cycles, finals = lines(state)
    assert len(cycles) == 1 + 6
    assert [line["asked"] for line in cycles[1:]] == [True] + [False] * 5
    assert all(line["seconds_waiting"] == 0 for line in cycles[1:])
    assert not finals[-1]["answered"]


def test_blocking_waits_for_each_answer(state: StateDir, published: StateDir) -> None:
    with FakeDaemon(state, offering(published)):
        run(
            state,
            cycles=3,
            exchange=ExchangeOptions(blocking=True),
            evaluation=EvaluationOptions(every_cycles=1),
        )
    cycles, _ = lines(state)
    for line in cycles[:-1]:  # the request of the last cycle is the final one
        assert line["asked"]
        assert line["answered"]
        assert line["models"] == 1
        assert line["seconds_waiting"] > 0
        assert line["accuracy_averaged"] is not None


def test_every_round_without_a_model_counts_as_failed(state: StateDir) -> None:
    with FakeDaemon(state, candidates=3) as daemon:
        run(state, cycles=4, exchange=ExchangeOptions(blocking=True))
        asked = len(daemon.requests)
    cycles, finals = lines(state)
    # the request for initial weights is no round of a cycle
    assert asked == sum(line["asked"] for line in cycles + finals) + 1
    assert all(line["failed"] for line in cycles if line["asked"])
    assert finals[0]["failed"]
    assert "refused the connection" in finals[0]["failure"]


def test_requests_come_as_often_as_wished(state: StateDir, published: StateDir) -> None:
    with FakeDaemon(state, offering(published)):
        every = exchange_every(cycles=2)
        run(state, cycles=5, exchange=every)
    cycles, _ = lines(state)
    assert [line["asked"] for line in cycles[1:]] == [True, False, True, False]


def exchange_every(cycles: int) -> ExchangeOptions:
    return ExchangeOptions(every=replace(ExchangeOptions().every, cycles=cycles), blocking=True)


def test_a_refused_model_is_told_and_training_goes_on(
    state: StateDir, published: StateDir, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    data = bytearray(published.model.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    with FakeDaemon(state, lambda request: [(peer_id(1), bad), (peer_id(2), published.model)]) as daemon:
        run(state, cycles=3, exchange=ExchangeOptions(blocking=True))
    cycles, _ = lines(state)
    assert [(line["models"], line["refused"]) for line in cycles[1:-1]] == [(1, 1)]
    assert [refusal.peer_id for refusal in daemon.requests[-1].refused] == [peer_id(1)]


def test_a_restart_goes_on_with_version_round_and_cycle(state: StateDir) -> None:
    with FakeDaemon(state) as daemon:
        run(state, cycles=3)
        first_rounds = [request.round for request in daemon.requests]
        run(state, cycles=2)
        rounds = [request.round for request in daemon.requests]
        assert len({request.instance for request in daemon.requests}) == 2
    cycles, _ = lines(state)
    assert [line["cycle"] for line in cycles] == [1, 2, 3, 4, 5]
    assert [line["version"] for line in cycles] == [1, 2, 3, 4, 5]
    assert rounds == sorted(set(rounds))
    assert len(rounds) > len(first_rounds)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_restart_trains_as_if_there_had_been_none(tmp_path: Path, name: str) -> None:
    """Weights, momentum and the order of the batches: two lives of two cycles are one of four."""
    optimiser = OptimiserOptions(name="adam" if name == "adam" else "sgd", learning_rate=0.01)
    training = replace(QUICK, optimiser=optimiser)
    digests = []
    for lives in ([4], [2, 2]):
        own = StateDir(tmp_path / str(len(lives)))
        with FakeDaemon(own):
            for cycles in lives:
                run(own, cycles=cycles, training=training)
        digests.append(read_header(own.model).manifest().weights)
    assert digests[0] == digests[1]


def test_weights_win_where_the_trainers_file_is_behind_or_damaged(state: StateDir) -> None:
    with FakeDaemon(state):
        run(state, cycles=2)
        old = state.trainer_state.read_bytes()
        run(state, cycles=2)
        state.trainer_state.write_bytes(old)
        run(state, cycles=1)
        assert lines(state)[0][-1]["version"] == lines(state)[0][-1]["cycle"] == 5
        for damage in (b"", old[: len(old) // 2], b"\x80\x04" + bytes(64)):
            before = read_header(state.model).manifest().version
            state.trainer_state.write_bytes(damage)
            run(state, cycles=1)
            assert lines(state)[0][-1]["version"] == before + 1


def test_a_trainers_file_of_another_contract_is_refused_and_kept(state: StateDir) -> None:
    with FakeDaemon(state):
        run(state, cycles=1)
        newer = state.trainer_state.read_bytes().replace(b'\\"contract\\": 1,', b'\\"contract\\": 9,')
        state.trainer_state.write_bytes(newer)
        with pytest.raises(UnknownContract, match="contract version 9"):
            run(state, cycles=1)
        assert state.trainer_state.read_bytes() == newer


def test_a_published_model_that_cannot_be_used_is_kept_and_said(state: StateDir) -> None:
    with FakeDaemon(state):
        run(state, cycles=1)
        whole = state.model.read_bytes()
        for damaged in (whole[:-4], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
            state.model.write_bytes(damaged)
            with pytest.raises(WeightsRefused, match=r"delete model\.safetensors"):
                run(state, cycles=1)
            assert state.model.read_bytes() == damaged
        state.model.write_bytes(whole)
        with pytest.raises(WeightsRefused, match="another task"):
            run(state, cycles=1, source=replace(DIGITS, model="bank"))
        run(state, cycles=1)


def test_one_directory_has_one_trainer(state: StateDir) -> None:
    state.root.mkdir()
    held = ProcessLock(state.trainer_lock)
    held.acquire()
    with pytest.raises(DirectoryInUse):
        run(state)
    held.release()


def test_a_loss_that_is_never_a_number_ends_with_a_clear_error(state: StateDir) -> None:
    with FakeDaemon(state):
        run(state, cycles=1)
        good = state.model.read_bytes()
        wild = TrainingOptions(local_steps=20, optimiser=OptimiserOptions(learning_rate=1e9))
        with pytest.raises(WeightsRefused, match="lower --lr"):
            run(state, cycles=9, training=wild)
        assert state.model.read_bytes() == good


class Stumbling:
    """A loss that is NaN in the steps that it is told."""

    def __init__(self, bad_steps: set[int]) -> None:
        self.step = 0
        self.bad_steps = bad_steps

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        self.step += 1
        loss = nn.functional.cross_entropy(output, targets)
        return loss * math.nan if self.step in self.bad_steps else loss


def run_task(state: StateDir, task: Task, cycles: int) -> tuple[Learner, str]:
    """The loop on a task that is made here."""
    said = io.StringIO()
    chosen = options(state, cycles, evaluation=EvaluationOptions(every_cycles=10**6, final=False))
    with FakeDaemon(state), Exchange(state, 1) as own_exchange:
        own_exchange.wait_for_boot()
        with Report(state.metrics, Console(file=said, width=200), "own") as report:
            record = CycleRecord()
            made = make_learner(state, task, None, own_exchange, record, QUICK)
            loop.Loop(chosen, made, own_exchange, report, lambda: False).run(peers=None)
    return made, said.getvalue()


def test_after_a_nan_training_goes_on_from_the_published_weights(state: StateDir) -> None:
    # two steps a cycle: cycles 3 and 5 stumble, never three in a row
    task = replace(build_task(DIGITS), loss=Stumbling({5, 8}))
    made, said = run_task(state, task, cycles=6)
    cycles, _ = lines(state)
    assert [line["loss"] is None for line in cycles] == [False, False, True, False, True, False]
    assert [line["version"] for line in cycles] == [1, 2, 2, 3, 3, 4]
    assert said.count("going back to the last good model") == 2
    assert read_header(state.model).manifest().version == 4
    assert weights.load_published(state.model, made.model).version == 4


def test_a_nan_in_the_first_cycle_starts_again_from_the_seed(state: StateDir) -> None:
    task = replace(build_task(DIGITS), loss=Stumbling({1, 2}))
    run_task(state, task, cycles=3)
    assert [line["version"] for line in lines(state)[0]] == [0, 0, 1]


def test_a_model_that_cannot_train_is_a_clear_error(state: StateDir) -> None:
    def broken(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets[:-1])

    with pytest.raises(ModelError, match="cannot train"):
        run_task(state, replace(build_task(DIGITS), loss=broken), cycles=1)


def test_a_model_that_makes_training_diverge_costs_cycles_and_not_the_run(
    state: StateDir, published: StateDir, tmp_path: Path
) -> None:
    huge = tmp_path / "huge.safetensors"
    made = learner.fresh_model(build_task(DIGITS))
    with torch.no_grad():
        for tensor in stored_tensors(made).values():
            tensor.fill_(1e30)
    weights.save_model(huge, made, read_header(published.model).manifest())
    with FakeDaemon(state) as daemon:
        run(state, cycles=1)
        daemon.offers = lambda request: [(peer_id(1), huge)]
        said = run(state, cycles=8, exchange=ExchangeOptions(blocking=True))
    cycles, _ = lines(state)
    assert said.count("going back to the last good model") >= 3
    assert len(cycles) == 1 + 8
    diverged = [line["loss"] is None for line in cycles]
    assert not any(first and second for first, second in itertools.pairwise(diverged))
    assert not any(line["models"] for line, bad in zip(cycles, diverged, strict=True) if bad)


def test_a_nan_in_the_first_cycle_starts_again_from_what_the_network_gave(
    state: StateDir, published: StateDir
) -> None:
    with FakeDaemon(state, offering(published)), Exchange(state, 1) as own_exchange:
        own_exchange.wait_for_boot()
        made = make_learner(state, build_task(DIGITS), None, own_exchange, CycleRecord(), QUICK)
    with torch.no_grad():
        for tensor in made.tensors.values():
            tensor.zero_()
    made.recover()
    assert digest_of(made.tensors) == read_header(published.model).manifest().weights


class InPlace(torch.autograd.Function):
    """Its backward fails, as that of an in-place operation does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("modified by an inplace operation")


def no_backward(output: Tensor, targets: Tensor) -> Tensor:
    applied: Tensor = InPlace.apply(nn.functional.cross_entropy(output, targets))
    return applied


def no_scalar(output: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, targets, reduction="none")


@pytest.mark.parametrize("loss", [no_backward, no_scalar])
def test_a_loss_that_cannot_be_learned_from_is_a_clear_error(
    state: StateDir, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    with pytest.raises(ModelError, match="cannot train"):
        run_task(state, replace(build_task(DIGITS), loss=loss), cycles=1)


def test_a_model_that_cannot_be_built_is_a_clear_error(state: StateDir) -> None:
    def broken() -> nn.Module:
        raise KeyError("width")

    with pytest.raises(ModelError, match="cannot be built: KeyError: 'width'"):
        run_task(state, replace(build_task(DIGITS), build_model=broken), cycles=1)


def test_a_target_accuracy_ends_the_run(state: StateDir) -> None:
    with FakeDaemon(state):
        chosen = options(
            state,
            evaluation=EvaluationOptions(every_cycles=1),
            stop=StopOptions(cycles=500, target_accuracy=0.4),
        )
        loop.run(chosen, TaskSource(DIGITS), Console(file=io.StringIO()), lambda: False)
    cycles, _ = lines(state)
    assert len(cycles) < 500
    assert cycles[-1]["accuracy_trained"] >= 0.4
    assert all(line["accuracy_trained"] < 0.4 for line in cycles[:-1])


def test_a_lost_daemon_does_not_stop_training(state: StateDir) -> None:
    with FakeDaemon(state) as first:
        looks = iter(range(10**6))

        def stop() -> bool:
            look = next(looks)
            if look == 12:
                first.stop(leave_marker=True)
            return len(list(atomic.read_json_lines(state.metrics))) >= 12 if look > 12 else False

        run(state, cycles=10**6, stop=stop)
    cycles, finals = lines(state)
    assert len(cycles) >= 12
    assert finals[-1]["final"]
    with FakeDaemon(state):
        run(state, cycles=1)
    assert lines(state)[0][-1]["version"] == cycles[-1]["version"] + 1


def test_a_peer_without_data_receives_the_task_and_the_average(
    state: StateDir, published: StateDir, tmp_path: Path
) -> None:
    second = StateDir(tmp_path / "second")
    with FakeDaemon(second, offering(published)):
        run(second, cycles=2)
    daemon = FakeDaemon(state, offering(published, second), task=published.task)
    with daemon:
        run(state, cycles=1, source=replace(DIGITS, data=None, shard=None))
    assert daemon.requests[0].task is None
    assert daemon.requests[0].want_task
    manifest = read_header(state.model).manifest()
    assert manifest.samples == 0
    assert len(manifest.parents) == 2
    assert lines(state)[0][0]["models"] == 2
    received = stored_tensors(build_task(DIGITS).build_model())
    file = weights.TensorFile.open(state.model)
    weights.copy_into(file, received)
    sources = [weights.load_tensors(other.model)[0] for other in (published, second)]
    for name, tensor in received.items():
        low = torch.minimum(sources[0][name], sources[1][name]) - 1e-6
        high = torch.maximum(sources[0][name], sources[1][name]) + 1e-6
        assert bool(((tensor >= low) & (tensor <= high)).all()), name


def test_a_network_without_a_task_is_not_waited_for_for_ever(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pfl_train.startup.JOIN_PAUSE_S", 0.0)
    with FakeDaemon(state), pytest.raises(NetworkDown, match="--receive-timeout"):
        run(
            state,
            source=replace(DIGITS, data=None, shard=None),
            exchange=ExchangeOptions(receive_timeout_s=0.01),
        )


def test_a_stop_before_the_network_is_up_is_clean(state: StateDir) -> None:
    run(state, stop=lambda: True)
    assert not state.model.exists()


def trainer(state: StateDir, *arguments: str) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "p2pfl_train", "run", "--state", str(state.root), "--data", "digits"]
    return subprocess.Popen(
        [*command, "--local-steps", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(state: StateDir, condition: Callable[[], bool]) -> None:
    with FolderWatch(state.root) as watch:
        found = watch.wait_until(lambda: True if condition() else None, 60)
    assert found, "the trainer did not come so far"


def test_sigterm_averages_once_more_and_exits_cleanly(state: StateDir, published: StateDir) -> None:
    with FakeDaemon(state, offering(published)):
        process = trainer(state)
        wait_for(state, lambda: len(lines(state)[0]) >= 3)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    cycles, finals = lines(state)
    assert finals[0]["models"] == 1
    assert read_header(state.model).manifest().version == finals[0]["version"] > cycles[-1]["version"]


def test_a_second_interrupt_stops_at_once_and_nothing_published_is_lost(state: StateDir) -> None:
    with FakeDaemon(state) as daemon:
        process = trainer(state, "--deadline", "3600")
        wait_for(state, lambda: len(lines(state)[0]) >= 2)
        daemon.silent = True
        process.send_signal(signal.SIGINT)
        # the last request, which nobody answers, is what the second signal finds it waiting for
        assert process.stdout is not None
        while "stopping" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output == ""
    assert file_weights_digest(state.model) == read_header(state.model).manifest().weights


def in_step(state: StateDir, step: str) -> bool:
    """Whether the trainer is seen in a step of its round."""
    names = set(os.listdir(state.root))
    if step == "model being written":
        return f".{state.model.name}.tmp" in names and state.model.name in names
    if step == "model replaced":
        return state.model.name in names and state.trainer_state.name not in names
    if step == "trainer's file being written":
        return f".{state.trainer_state.name}.tmp" in names
    assert step == "request written"
    return state.trainer_state.name in names and len(lines(state)[0]) >= 1 and state.aggregate.exists()


@pytest.mark.parametrize(
    "step", ["model being written", "model replaced", "trainer's file being written", "request written"]
)
def test_a_kill_at_any_step_leaves_a_directory_from_which_a_restart_goes_on(
    state: StateDir, published: StateDir, step: str
) -> None:
    with FakeDaemon(state, offering(published)) as daemon:
        process = trainer(state)
        wait_for(state, lambda: in_step(state, step) or process.poll() is not None)
        assert process.poll() is None
        process.kill()
        process.communicate(timeout=60)
        before = read_header(state.model).manifest()
        assert file_weights_digest(state.model) == before.weights
        highest = max(request.round for request in daemon.requests)
        asked = len(daemon.requests)
        run(state, cycles=1)
        after = lines(state)[0][-1]
        assert after["version"] == before.version + 1
        assert after["cycle"] >= before.version + 1
        assert all(request.round > highest for request in daemon.requests[asked:])
    assert not list(state.root.glob(".*.tmp"))


def test_every_line_of_metrics_is_json_with_the_fields_of_the_contract(
    state: StateDir, published: StateDir
) -> None:
    with FakeDaemon(state, offering(published)):
        run(state, cycles=3)
    for text in state.metrics.read_text().splitlines():
        line = json.loads(text)
        for name in ("time", "cycle", "version", "loss", "accuracy_trained", "accuracy_averaged", "models"):
            assert name in line
        assert all(isinstance(line[name], bool) for name in ("asked", "answered", "failed"))
        parts = ("training", "waiting", "averaging", "publishing", "evaluating")
        assert all(line[f"seconds_{part}"] >= 0 for part in parts)
    answered = [json.loads(text) for text in state.metrics.read_text().splitlines()]
    assert any(line["collection_seconds"] is not None and line["network_peers"] == 1 for line in answered)


@pytest.mark.parametrize(("patience_s", "measured"), [(0.0, False), (1e9, True)])
def test_after_a_signal_the_last_measurement_must_be_quick(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, patience_s: float, measured: bool
) -> None:
    monkeypatch.setattr(loop, "FINAL_EVALUATION_S", patience_s)
    with FakeDaemon(state):
        run(
            state,
            stop=lambda: len(lines(state)[0]) >= 2 if state.metrics.exists() else False,
            evaluation=EvaluationOptions(every_cycles=1),
        )
    assert (lines(state)[1][0]["accuracy_trained"] is not None) == measured


def test_the_pace_of_a_cycle_tells_what_its_steps_will_take() -> None:
    pace = loop.Pace(steps=4, started_at_s=100.0)
    assert pace.step_done(102.0) == pytest.approx(3 * 2.0)
    assert pace.step_done(103.0) == pytest.approx(2 * 1.5)
    assert pace.step_done(106.0) == pytest.approx(1 * 2.0)
    assert pace.step_done(108.0) == 0


@pytest.mark.parametrize(("lead_s", "steps_before"), [(0.0, 5), (1e9, 1)])
def test_a_request_is_made_when_the_rest_of_the_cycle_takes_as_long_as_a_round(
    state: StateDir,
    published: StateDir,
    monkeypatch: pytest.MonkeyPatch,
    lead_s: float,
    steps_before: int,
) -> None:
    monkeypatch.setattr(loop, "FIRST_LEAD_S", lead_s)
    monkeypatch.setattr(loop, "LEAD_GAIN", 0.0)
    done: list[int] = []
    asked_after: list[int] = []
    step_done, ask, poll = loop.Pace.step_done, Exchange.ask, Exchange.poll

    def count(pace: loop.Pace, now_s: float) -> float:
        left_s = step_done(pace, now_s)
        done.append(pace.done)
        return left_s

    def note(exchange: Exchange, *wish: Any) -> int:
        asked_after.append(done[-1] if done else 0)
        return ask(exchange, *wish)

    def poll_until_answered(exchange: Exchange) -> None:
        """An answer, verified too, before the next step, so that the test does not depend on speed."""
        poll(exchange)
        while (current := exchange._outstanding) is not None and current.answer is None:
            exchange._watch.wait_changed(0.05)
            poll(exchange)
        if current is not None and current.checking is not None:
            current.checking.result()

    monkeypatch.setattr(loop.Pace, "step_done", count)
    monkeypatch.setattr(Exchange, "ask", note)
    monkeypatch.setattr(Exchange, "poll", poll_until_answered)
    with FakeDaemon(state, offering(published)):
        run(state, cycles=3, training=TrainingOptions(local_steps=5))
    cycles, _ = lines(state)
    assert asked_after == [0, *[steps_before] * 3, 5]  # initial weights, three cycles, the last average
    assert all(line["asked"] and line["answered"] and line["models"] == 1 for line in cycles)
    assert all(line["seconds_waiting"] == 0 for line in cycles)
