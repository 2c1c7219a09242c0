"""The loop, run for real on the digits, with a daemon that keeps the contract."""

from __future__ import annotations

import io
import json
import math
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
from rich.console import Console

from p2pfl_train import checkpoint, learner, loop, pace
from p2pfl_train.config import (
    EvaluationOptions,
    ExchangeOptions,
    OptimiserOptions,
    StopOptions,
    TrainingOptions,
)
from p2pfl_train.errors import WeightsRefused
from p2pfl_train.exchange import Exchange
from p2pfl_train.startup import TaskSource
from tests.train.fake_daemon import FakeDaemon, peer_id
from tests.train.running import DIGITS, QUICK, lines, offering, options, run

torch.set_num_threads(1)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "own")


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser state is written at each publication, however fast they come."""
    monkeypatch.setattr(learner, "SAVE_S", 0.0)


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
    assert manifest.previous is not None
    assert (manifest.previous.version, manifest.previous.peer_id) == (3, None)
    task = taskfile.read_task(state.task)
    assert task is not None
    assert manifest.task == task.digest
    assert {request.task for request in daemon.requests} == {task.digest}


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
    assert [line["asked"] for line in cycles[1:]] == [1] + [0] * 5
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
        said = run(state, cycles=4, exchange=ExchangeOptions(blocking=True))
        asked = len(daemon.requests)
    cycles, finals = lines(state)
    assert [line["asked"] for line in cycles + finals] == [2, 1, 1, 1, 1]  # the start asked too
    assert [line["failed"] for line in cycles + finals] == [2, 1, 1, 1, 1]
    assert asked == 6
    assert "round 3 failed: none of 3 peers gave its model" in said
    assert "refused the connection" in finals[0]["failure"]


def test_requests_come_as_often_as_wished(state: StateDir, published: StateDir) -> None:
    with FakeDaemon(state, offering(published)):
        every = exchange_every(cycles=2)
        run(state, cycles=5, exchange=every)
    cycles, _ = lines(state)
    assert [line["asked"] for line in cycles[1:]] == [1, 0, 1, 0]


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


def test_every_line_of_metrics_is_json_with_the_fields_of_the_contract(
    state: StateDir, published: StateDir
) -> None:
    with FakeDaemon(state, offering(published)):
        run(state, cycles=3)
    for text in state.metrics.read_text().splitlines():
        line = json.loads(text)
        for name in ("time", "cycle", "version", "loss", "accuracy_trained", "accuracy_averaged", "models"):
            assert name in line
        assert all(type(line[name]) is int for name in ("asked", "answered", "failed"))
        parts = ("starting", "training", "waiting", "averaging", "publishing", "evaluating")
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
    cycle = pace.Pace(steps=4, started_at_s=100.0)
    assert cycle.step_done(102.0) == pytest.approx(3 * 2.0)
    assert cycle.step_done(103.0) == pytest.approx(2 * 1.5)
    assert cycle.step_done(106.0) == pytest.approx(1 * 2.0)
    assert cycle.step_done(108.0) == 0


@pytest.mark.parametrize(("lead_s", "steps_before"), [(0.0, 5), (1e9, 1)])
def test_a_request_is_made_when_the_rest_of_the_cycle_takes_as_long_as_a_round(
    state: StateDir,
    published: StateDir,
    monkeypatch: pytest.MonkeyPatch,
    lead_s: float,
    steps_before: int,
) -> None:
    monkeypatch.setattr(pace, "FIRST_LEAD_S", lead_s)
    monkeypatch.setattr(pace, "LEAD_GAIN", 0.0)
    done: list[int] = []
    asked_after: list[int] = []
    step_done, ask, poll = pace.Pace.step_done, Exchange.ask, Exchange.poll

    def count(cycle: pace.Pace, now_s: float) -> float:
        left_s = step_done(cycle, now_s)
        done.append(cycle.done)
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

    monkeypatch.setattr(pace.Pace, "step_done", count)
    monkeypatch.setattr(Exchange, "ask", note)
    monkeypatch.setattr(Exchange, "poll", poll_until_answered)
    with FakeDaemon(state, offering(published)):
        run(state, cycles=3, training=TrainingOptions(local_steps=5))
    cycles, _ = lines(state)
    assert asked_after == [0, *[steps_before] * 3, 5]  # initial weights, three cycles, the last average
    assert all(line["asked"] and line["answered"] and line["models"] == 1 for line in cycles)
    assert all(line["seconds_waiting"] == 0 for line in cycles)
