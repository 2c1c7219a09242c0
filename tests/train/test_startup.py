"""From an empty directory to a peer that can learn, with a daemon that keeps the contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Previous, read_header

from p2pfl_train import weights
from p2pfl_train.config import (
    ExchangeOptions,
    RunOptions,
)
from p2pfl_train.errors import NetworkDown
from p2pfl_train.exchange import Exchange
from p2pfl_train.learner import Learner
from p2pfl_train.report import CycleRecord
from p2pfl_train.startup import load_initial, make_learner
from p2pfl_train.tasks import TaskOptions, build_task
from p2pfl_train.tensors import digest_of, stored_tensors
from tests.train.fake_daemon import FakeDaemon, peer_id
from tests.train.running import DIGITS, QUICK, lines, offering, run

torch.set_num_threads(1)

WAIT_S = 3600.0


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "own")


def started(
    daemon: FakeDaemon, source: TaskOptions = DIGITS, deadline_s: float = 10.0
) -> tuple[Learner, str, CycleRecord]:
    """A learner as it is before its first cycle, where its weights are from, and what that took."""
    record = CycleRecord()
    with daemon, Exchange(daemon.state, 1) as exchange:
        exchange.wait_for_boot()
        made = make_learner(daemon.state, build_task(source), None, QUICK)
        wanted = RunOptions(daemon.state.root, exchange=ExchangeOptions(deadline_s=deadline_s))
        origin = load_initial(made, exchange, record, wanted, lambda: False)
    return made, origin, record


def test_a_newcomer_starts_with_the_networks_weights(state: StateDir, published: StateDir) -> None:
    made, origin, record = started(FakeDaemon(state, offering(published)))
    theirs = read_header(published.model).manifest()
    assert digest_of(made.tensors) == theirs.weights
    assert origin == f"from peer {peer_id(1)[:16]}, its version {theirs.version}"
    assert (record.asked, record.answered, record.failed) == (1, 1, 0)
    with torch.no_grad():
        for tensor in made.tensors.values():
            tensor.zero_()
    made.recover()  # what a NaN in the first cycle does
    assert digest_of(made.tensors) == theirs.weights


def test_peers_that_start_alone_start_alike(tmp_path: Path) -> None:
    digests = set()
    for number in (1, 2):
        torch.manual_seed(number)
        source = replace(DIGITS, shard=f"{number}/3")
        made, origin, _ = started(FakeDaemon(StateDir(tmp_path / str(number))), source)
        assert origin == "from the task's seed (no peer of this task has published)"
        digests.add(digest_of(made.tensors))
    assert len(digests) == 1


def test_why_the_networks_weights_are_not_taken_is_told(
    state: StateDir, published: StateDir, tmp_path: Path
) -> None:
    _, origin, record = started(FakeDaemon(state, candidates=2))
    assert origin.startswith("from the task's seed (none of 2 peers gave its model")
    assert (record.asked, record.answered, record.failed) == (1, 1, 1)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(published.model.read_bytes()[:-1] + b"\x01")
    _, origin, record = started(FakeDaemon(state, lambda request: [(peer_id(7), bad)]))
    assert origin.startswith(f"from the task's seed (refused the model of peer {peer_id(7)[:16]}: ")
    assert record.refused == 1


def test_the_first_version_names_what_it_began_from(state: StateDir, published: StateDir) -> None:
    made, _, _ = started(FakeDaemon(state, offering(published)))
    made.publish({})
    given = read_header(published.model).manifest()
    first = read_header(state.model).manifest()
    assert first.previous == Previous(given.version, given.weights, peer_id(1))
    made.publish({})
    assert read_header(state.model).manifest().previous == Previous(1, first.weights)


@pytest.mark.parametrize(("deadline_s", "asked_s"), [(0.5, 3.0), (40.0, 40.0)])
def test_initial_weights_may_take_as_long_as_any_model(
    state: StateDir, deadline_s: float, asked_s: float
) -> None:
    daemon = FakeDaemon(state)
    made, _, _ = started(daemon, deadline_s=deadline_s)
    (request,) = daemon.requests
    assert (request.deadline_s, request.fan_out) == (asked_s, 1)
    assert request.task == made.counters.task
    assert not request.want_task, "it is known; a failed call for it must not cost the weights"


def test_the_first_line_tells_of_the_start(state: StateDir, published: StateDir) -> None:
    daemon = FakeDaemon(state, offering(published))
    with daemon:
        said = run(state, cycles=3)
    cycles, finals = lines(state)
    assert f"initial weights: from peer {peer_id(1)[:16]}" in said
    assert sum(line["asked"] for line in cycles + finals) == len(daemon.requests)
    assert cycles[0]["answered"] >= 1
    assert [line["seconds_starting"] > 0 for line in cycles + finals] == [True, False, False, False]


def test_a_peer_without_data_receives_the_task_and_the_average(
    state: StateDir, published: StateDir, tmp_path: Path
) -> None:
    second = StateDir(tmp_path / "second")
    with FakeDaemon(second, offering(published)):
        run(second, cycles=2)
    daemon = FakeDaemon(state, offering(published, second), task=published.task)
    with daemon:
        waiting = ExchangeOptions(receive_timeout_s=WAIT_S)
        run(state, cycles=1, source=replace(DIGITS, data=None, shard=None), exchange=waiting)
    assert daemon.requests[0].task is None
    assert daemon.requests[0].want_task
    # A model comes with the task, and may take all the time that there is.
    assert WAIT_S / 2 < daemon.requests[0].deadline_s <= WAIT_S
    manifest = read_header(state.model).manifest()
    assert manifest.samples == 0
    assert len(manifest.parents) == 2
    line = lines(state)[0][0]
    assert (line["models"], line["asked"], line["answered"]) == (2, 3, 3)
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
    told = r"within 0\.01 s \(none of 1 peers gave its model.*--receive-timeout"
    with FakeDaemon(state, candidates=1), pytest.raises(NetworkDown, match=told):
        run(
            state,
            source=replace(DIGITS, data=None, shard=None),
            exchange=ExchangeOptions(receive_timeout_s=0.01),
        )


def test_a_stop_before_the_network_is_up_is_clean(state: StateDir) -> None:
    run(state, stop=lambda: True)
    assert not state.model.exists()
