"""The trainer's side of the contract against a daemon that keeps it, is late, or dies."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from p2pfl_state import atomic, markers
from p2pfl_state.errors import UnknownContract
from p2pfl_state.layout import StateDir
from p2pfl_state.markers import AggregateAnswer, BootDone, Refusal, new_instance

from p2pfl_train.aggregate import Checked
from p2pfl_train.errors import NetworkDown
from p2pfl_train.exchange import BOOT_PATIENCE_S, LATE_S, LIVENESS_S, Exchange, Outcome, Wish, next_round
from tests.train.fake_daemon import FakeDaemon, peer_id

WISH = Wish(fan_out=3, deadline_s=5.0, task="a" * 64)


class Clock:
    """Seconds that pass only when told; `on_read` makes each look at the clock cost some."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.on_read_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.on_read_s
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def exchange(state: StateDir, clock: Clock) -> Iterator[Exchange]:
    with Exchange(state, 1, clock=clock) as made:
        yield made


def until(condition: Callable[[], bool], exchange: Exchange, clock: Clock) -> None:
    """Polls, a liveness period of the test's clock at a time, until the condition holds."""
    for _ in range(2000):
        if condition():
            return
        clock.advance(LIVENESS_S / 1000)
        exchange.poll()
        exchange._watch.wait_changed(0.02)
    pytest.fail("the condition never came true")


def answered(exchange: Exchange) -> Outcome:
    outcome = exchange.wait()
    assert outcome is not None
    return outcome


def test_a_request_is_answered_and_the_next_has_a_higher_round(state: StateDir, exchange: Exchange) -> None:
    with FakeDaemon(state) as daemon:
        exchange.wait_for_boot()
        for number in (1, 2, 3):
            assert exchange.ready
            assert exchange.ask(WISH) == number
            assert not exchange.ready
            outcome = answered(exchange)
            assert (outcome.round, outcome.failure) == (number, None)
            assert outcome.answer is not None
        assert [request.round for request in daemon.requests] == [1, 2, 3]
        assert [request.delete_below for request in daemon.requests] == [1, 2, 3]
        assert {request.fan_out for request in daemon.requests} == {3}
        assert exchange.take() is None


def test_no_daemon_within_its_time_is_a_clear_error(
    state: StateDir, exchange: Exchange, clock: Clock
) -> None:
    clock.on_read_s = BOOT_PATIENCE_S / 3
    with pytest.raises(NetworkDown, match="p2pfl-net serve --port PORT --state"):
        exchange.wait_for_boot()


def test_a_marker_without_a_living_daemon_means_nothing(
    state: StateDir, exchange: Exchange, clock: Clock
) -> None:
    markers.write_boot_done(state, BootDone(new_instance(), peer_id(0), "127.0.0.1:1", 0))
    clock.on_read_s = BOOT_PATIENCE_S / 3
    with pytest.raises(NetworkDown):
        exchange.wait_for_boot()


def test_while_a_daemon_lives_its_own_patience_counts(
    state: StateDir, exchange: Exchange, clock: Clock
) -> None:
    """A daemon that boots far longer than 15 s is waited for; only our own stop ends the wait."""
    daemon = FakeDaemon(state)
    daemon._lock.acquire()
    clock.on_read_s = BOOT_PATIENCE_S
    looks = iter(range(5))
    exchange.wait_for_boot(stop=lambda: next(looks, None) is None)
    assert not exchange.ready
    daemon._lock.release()


@pytest.mark.parametrize("late_s", [0.5, 1.5])
def test_a_round_has_failed_a_second_after_its_deadline(
    state: StateDir, exchange: Exchange, clock: Clock, late_s: float
) -> None:
    with FakeDaemon(state, silent=True):
        exchange.wait_for_boot()
        exchange.ask(WISH)
        clock.advance(WISH.deadline_s + late_s)
        outcome = exchange.take()
        if late_s <= LATE_S:
            assert outcome is None
            assert not exchange.ready
        else:
            assert outcome is not None
            assert outcome.answer is None
            assert outcome.failure is not None
            assert "deadline" in outcome.failure
            assert exchange.ready


def test_a_late_answer_is_not_taken_for_the_next_round(
    state: StateDir, exchange: Exchange, clock: Clock
) -> None:
    with FakeDaemon(state, silent=True) as daemon:
        exchange.wait_for_boot()
        exchange.ask(WISH)
        until(lambda: len(daemon.requests) == 1, exchange, clock)
        clock.advance(WISH.deadline_s + 2)
        assert exchange.take() is not None
        exchange.ask(WISH)
        until(lambda: len(daemon.requests) == 2, exchange, clock)
        daemon.answer(daemon.requests[0])
        assert exchange.take() is None
        daemon.answer(daemon.requests[1])
        assert answered(exchange).round == 2


def test_an_answer_to_another_life_is_not_taken(state: StateDir, exchange: Exchange) -> None:
    with FakeDaemon(state, silent=True):
        exchange.wait_for_boot()
        exchange.ask(WISH)
        markers.write_answer(state, AggregateAnswer(new_instance(), 1, (), (), 0, 0, 0.1))
        assert exchange.take() is None
        assert not exchange.ready


def test_no_models_is_a_failure_only_when_a_peer_had_one(state: StateDir, exchange: Exchange) -> None:
    with FakeDaemon(state, candidates=0) as daemon:
        exchange.wait_for_boot()
        exchange.ask(WISH)
        assert answered(exchange).failure is None
        daemon.candidates = 2
        exchange.ask(WISH)
        failure = answered(exchange).failure
        assert failure is not None
        assert "refused the connection" in failure


@pytest.mark.parametrize("killed", [True, False])
def test_a_lost_daemon_drops_the_request_and_the_next_life_is_asked(
    state: StateDir, exchange: Exchange, clock: Clock, killed: bool
) -> None:
    first = FakeDaemon(state, silent=True)
    with first:
        exchange.wait_for_boot()
        exchange.ask(WISH)
        first.stop(leave_marker=killed)
    clock.advance(LIVENESS_S)
    outcome = exchange.take()
    assert outcome is not None
    assert outcome.failure == "the daemon was lost"
    assert not exchange.ready
    with FakeDaemon(state):
        clock.advance(LIVENESS_S)
        exchange.poll()
        assert exchange.ready
        exchange.ask(WISH)
        assert answered(exchange).round == 2


def test_a_daemon_replaced_between_two_looks_counts_as_lost(
    state: StateDir, exchange: Exchange, clock: Clock
) -> None:
    with FakeDaemon(state, silent=True):
        exchange.wait_for_boot()
        exchange.ask(WISH)
    with FakeDaemon(state, silent=True):
        clock.advance(LIVENESS_S)
        outcome = exchange.take()
        assert outcome is not None
        assert outcome.failure == "the daemon was lost"
        clock.advance(LIVENESS_S)
        exchange.poll()
        assert exchange.ready


def test_what_was_refused_is_told_with_the_next_request_once(state: StateDir, exchange: Exchange) -> None:
    refusal = Refusal(peer_id(3), "d" * 64, "tensor 'a' holds NaN or Inf")
    with FakeDaemon(state) as daemon:
        exchange.wait_for_boot()
        exchange.ask(WISH, lambda answer: Checked((), (refusal,)))
        assert answered(exchange).checked.refusals == (refusal,)
        for _ in range(2):
            exchange.ask(WISH)
            answered(exchange)
        assert [request.refused for request in daemon.requests] == [(), (refusal,), ()]


def test_rounds_grow_over_restarts(state: StateDir) -> None:
    assert next_round(state, 0) == 1
    assert next_round(state, 7) == 8
    with Exchange(state, 12) as exchange, FakeDaemon(state):
        exchange.wait_for_boot()
        exchange.ask(WISH)
        answered(exchange)
    assert next_round(state, 7) == 13
    atomic.remove(state.aggregate)
    assert next_round(state, 7) == 13
    assert next_round(state, 40) == 41


def test_waiting_can_be_given_up_and_the_request_stays(state: StateDir, exchange: Exchange) -> None:
    with FakeDaemon(state, silent=True) as daemon:
        exchange.wait_for_boot()
        exchange.ask(WISH)
        assert exchange.wait(lambda: bool(daemon.requests)) is None
        assert not exchange.ready
        daemon.answer(daemon.requests[0])
        assert answered(exchange).round == 1


def test_a_pause_ends_when_told(exchange: Exchange) -> None:
    looks = iter(range(2))
    exchange.pause(1e6, lambda: next(looks, None) is None)


def stands_still_for_a_verification(thread: threading.Thread) -> bool:
    """Whether a thread is seen waiting for the result of another."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code is not Future.result.__code__:
        frame = frame.f_back
    return frame is not None


def test_who_takes_an_answer_waits_for_its_verification_and_this_is_counted(
    state: StateDir, exchange: Exchange, clock: Clock
) -> None:
    main = threading.current_thread()

    def check(answer: AggregateAnswer) -> Checked:
        while not stands_still_for_a_verification(main):
            pass
        clock.advance(4.0)
        return Checked()

    with FakeDaemon(state):
        exchange.wait_for_boot()
        exchange.ask(WISH, check)
        answered(exchange)
    assert exchange.waited_s == pytest.approx(4.0)


def test_a_verification_that_ended_while_training_went_on_is_no_wait(
    state: StateDir, exchange: Exchange, clock: Clock
) -> None:
    def check(answer: AggregateAnswer) -> Checked:
        clock.advance(4.0)
        return Checked()

    with FakeDaemon(state):
        exchange.wait_for_boot()
        number = exchange.ask(WISH, check)
        current = exchange._outstanding
        assert current is not None
        until(lambda: current.checking is not None and current.checking.done(), exchange, clock)
        clock.on_read_s = 1.0  # any look at the clock while waiting would be seen
        outcome = exchange.take()
    assert outcome is not None
    assert outcome.round == number
    assert exchange.waited_s == 0.0


DAMAGED = pytest.mark.parametrize(
    "damage", [b"", b"\0" * 40, b'{"contract": 1, "instance'], ids=["empty", "zeros", "cut short"]
)


@DAMAGED
def test_a_damaged_marker_counts_for_nothing_but_an_unknown_contract_stops(
    state: StateDir, damage: bytes
) -> None:
    state.aggregate.write_bytes(damage)
    assert next_round(state, 7) == 8
    state.aggregate.write_bytes(b'{"contract": 999}')
    with pytest.raises(UnknownContract):
        next_round(state, 7)


@DAMAGED
def test_a_damaged_answer_of_an_earlier_life_is_no_answer(
    state: StateDir, exchange: Exchange, damage: bytes
) -> None:
    state.aggregate_done.write_bytes(damage)
    with FakeDaemon(state, silent=True) as daemon:
        exchange.wait_for_boot()
        exchange.ask(WISH)
        assert exchange.wait(lambda: bool(daemon.requests)) is None
        daemon.answer(daemon.requests[0])
        assert answered(exchange).round == 1


def test_an_answer_of_an_unknown_contract_stops(state: StateDir, exchange: Exchange) -> None:
    with FakeDaemon(state, silent=True):
        exchange.wait_for_boot()
        exchange.ask(WISH)
        state.aggregate_done.write_bytes(b'{"contract": 999}')
        with pytest.raises(UnknownContract):
            exchange.take()


@DAMAGED
def test_a_damaged_boot_marker_is_waited_past(state: StateDir, exchange: Exchange, damage: bytes) -> None:
    """A daemon that has its lock removes the marker of its last life a moment later."""
    with FakeDaemon(state):
        good = state.boot_done.read_bytes()
        state.boot_done.write_bytes(damage)
        exchange.poll()
        assert not exchange.ready
        state.boot_done.write_bytes(good)
        exchange.wait_for_boot()
        assert exchange.ready
