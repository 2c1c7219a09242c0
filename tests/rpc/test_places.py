"""Uploads and calls under way: whose turn it is, who has a place, and who loses it."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.limits import Pace
from p2pfl_net.rpc.opencalls import OpenCalls
from p2pfl_net.rpc.throttle import MAX_DEBT_S, MAX_UPLOADS, Throttle
from p2pfl_net.rpc.uploads import (
    LEAST_BYTES_S,
    MAX_ENDING,
    MAX_UPLOADS_OF_ADDRESS,
    MAX_UPLOADS_OF_PEER,
    SLOW_S,
    Uploads,
)
from p2pfl_net.wire.models import CHUNK_BYTES
from tests.processes import PATIENCE_S, wait_for

EASE = 1 + 1e-6
"""For what floating point rounds."""


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# turns of uploads ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 3000)), min_size=1, max_size=100))
def test_uploads_together_keep_to_their_pace(asked: list[tuple[float, int]]) -> None:
    """Each goes when it is told to: all in all no more than the rate, a burst, and the one that is larger."""
    pace, now, sent = Pace(1000.0, 500.0), 0.0, 0
    for pause_s, size_bytes in asked:
        now += pause_s
        now += pace.wait_s(size_bytes, now)
        assert pace.wait_s(size_bytes, now) <= 1e-6
        pace.take(size_bytes, now)
        sent += size_bytes
        assert sent <= (1000 * now + 500 + 3000) * EASE
        assert pace.wait_s(1, now) <= (size_bytes + 1) / 1000


def test_each_upload_gets_its_turn() -> None:
    """One that has just sent stands behind those who wait, whatever comes first to a processor."""
    throttle = Throttle(1e6)
    size = throttle.chunk_bytes
    sent: list[int] = []
    begin = threading.Barrier(3)

    def send(number: int) -> None:
        begin.wait()
        for _ in range(10):
            assert throttle.wait_turn(size, lambda: False)
            sent.append(number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(send, range(3)))
    assert len(sent) == 30
    middle = sent[6:24]
    assert {middle.count(number) for number in range(3)} <= {5, 6, 7}


def test_an_upload_that_ends_waits_no_longer_and_holds_up_nobody() -> None:
    throttle = Throttle(1.0)  # a chunk would take hours
    throttle.charge(10 * throttle.chunk_bytes)
    ended = [threading.Event() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(throttle.wait_turn, 1000, event.is_set) for event in ended]
        wait_for(lambda: len(throttle._waiting) == 3, what="three that wait")
        for event, turn in zip(ended, waiting, strict=True):
            event.set()
            throttle.wake()
            assert turn.result(PATIENCE_S) is False


def test_what_goes_out_of_turn_delays_uploads_within_a_bound() -> None:
    """As the headers for callers that only ask whether there is anything new."""
    clock = Clock()
    throttle = Throttle(1e6, clock)
    for _ in range(1000):
        throttle.charge(20_000)
    assert throttle._pace.wait_s(throttle.chunk_bytes, clock.now) <= MAX_DEBT_S + 1.0


# places of uploads ---------------------------------------------------------------------------------


class Reader:
    """The other end of a call, as far as it is looked at."""

    def __init__(self) -> None:
        self.cancelled = False
        self.callbacks = 0

    def cancel(self) -> None:
        self.cancelled = True

    def add_callback(self, callback: object) -> bool:
        self.callbacks += 1
        return True


def begin(
    places: Uploads, number: int, host: str, parts: int = 100, reader: Reader | None = None
) -> Generator[bytes]:
    """An upload to peer `number` that has sent its header."""
    context = cast(grpc.ServicerContext, reader or Reader())
    peer = PeerId(f"{number:064x}")
    made = places.run(context, peer, host, iter([b"header"] + parts * [bytes(CHUNK_BYTES)]))
    assert next(made) == b"header"
    assert isinstance(made, Generator)
    return made


def refused(places: Uploads, number: int, host: str) -> str:
    with pytest.raises(PeerFailed) as caught:
        begin(places, number, host)
    assert caught.value.kind is FailureKind.BUSY
    return str(caught.value)


def test_one_peer_has_a_few_places() -> None:
    places = Uploads(3600.0)
    running = [begin(places, 1, "127.0.0.1") for _ in range(MAX_UPLOADS_OF_PEER)]
    assert "to one peer" in refused(places, 1, "10.0.0.1")
    for upload in running[1:]:
        upload.close()
    running = [running[0], *(begin(places, n, "127.0.0.1") for n in range(2, 1 + MAX_UPLOADS))]
    assert "too many uploads" in refused(places, 99, "127.0.0.1")
    running.pop().close()
    begin(places, 99, "127.0.0.1")


def test_who_has_most_places_gives_one_to_a_newcomer() -> None:
    """As four names do that hold all places, each with readers that are just not slow."""
    places = Uploads(3600.0)
    readers = [Reader() for _ in range(MAX_UPLOADS)]
    running = [begin(places, number % 4, "127.0.0.1", reader=reader) for number, reader in enumerate(readers)]
    assert not any(reader.cancelled for reader in readers)
    honest = Reader()
    running.append(begin(places, 99, "127.0.0.1", reader=honest))
    assert [reader.cancelled for reader in readers].count(True) == 1
    for number in range(100, 100 + 2 * MAX_UPLOADS):  # none of those end
        with suppress(PeerFailed):
            running.append(begin(places, number, "127.0.0.1"))
    assert len(places._running) <= MAX_UPLOADS + MAX_ENDING
    assert not honest.cancelled


def test_the_address_that_has_most_places_gives_one_to_another() -> None:
    places = Uploads(3600.0)
    readers = [Reader() for _ in range(MAX_UPLOADS)]
    running = [
        begin(places, number, f"10.0.0.{number % 2}", reader=reader) for number, reader in enumerate(readers)
    ]
    running.append(begin(places, 99, "10.0.1.1"))
    assert [reader.cancelled for reader in readers].count(True) == 1


@pytest.mark.parametrize(("own", "other"), [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8:0:1::1")])
def test_one_address_leaves_places_to_others(own: str, other: str) -> None:
    places = Uploads(3600.0)
    running = [begin(places, n, own) for n in range(MAX_UPLOADS_OF_ADDRESS)]
    assert "to one address" in refused(places, 50, own)
    running += [begin(places, 51 + n, other) for n in range(MAX_UPLOADS - MAX_UPLOADS_OF_ADDRESS)]


def test_a_place_is_taken_from_who_takes_almost_nothing_and_from_nobody_else() -> None:
    clock = Clock()
    places = Uploads(3600.0, clock=clock)
    slow, steady = Reader(), [Reader() for _ in range(MAX_UPLOADS - 1)]
    trickle = begin(places, 0, "10.0.2.9", reader=slow)
    others = [begin(places, n + 1, f"10.0.0.{n}", reader=steady[n]) for n in range(MAX_UPLOADS - 1)]
    assert "too many" in refused(places, 99, "10.0.1.1")
    assert not slow.cancelled
    pause_s = CHUNK_BYTES / LEAST_BYTES_S
    assert pause_s < 2 * SLOW_S
    for _ in range(4):
        clock.now += 0.9 * pause_s
        for other in others:
            next(other)
    assert not any(reader.cancelled for reader in (slow, *steady))
    assert "too many" in refused(places, 99, "10.0.1.1")
    assert slow.cancelled
    assert not any(reader.cancelled for reader in steady)
    trickle.close()
    begin(places, 99, "10.0.1.1")


def test_who_once_was_slow_makes_up_for_it() -> None:
    clock = Clock()
    places = Uploads(3600.0, clock=clock)
    readers = [Reader() for _ in range(MAX_UPLOADS_OF_PEER)]
    running = [begin(places, 1, "10.0.0.1", reader=reader) for reader in readers]
    clock.now += 10 * SLOW_S
    for upload in running:
        next(upload)
    for _ in range(int(SLOW_S)):
        clock.now += 1.1
        next(running[0])
    refused(places, 1, "10.0.0.1")
    assert [reader.cancelled for reader in readers] == [False] + [True] * (MAX_UPLOADS_OF_PEER - 1)


def test_what_our_own_throttle_takes_is_not_held_against_the_reader() -> None:
    clock = Clock()

    class Waits(Throttle):
        def wait_turn(self, size_bytes: int, ended: object) -> bool:
            clock.now += 5 * SLOW_S
            return True

    places = Uploads(1e9, Waits(1.0), clock)
    readers = [Reader() for _ in range(MAX_UPLOADS_OF_PEER)]
    running = [begin(places, 1, "10.0.0.1", reader=reader) for reader in readers]
    for _ in range(3):
        next(running[0])
    refused(places, 1, "10.0.0.1")
    assert [reader.cancelled for reader in readers] == [False] + [True] * (MAX_UPLOADS_OF_PEER - 1)


def test_an_upload_ends_when_its_time_is_over_but_not_without_a_chunk() -> None:
    clock = Clock()
    upload = begin(Uploads(10.0, clock=clock), 1, "10.0.0.1")
    clock.now += 20.0
    assert len(next(upload)) == CHUNK_BYTES
    with pytest.raises(PeerFailed, match="an upload lasts at most 10 s here") as caught:
        next(upload)
    assert caught.value.kind is FailureKind.UNREACHABLE, "so that whoever fetches resumes"


# calls that stand still ----------------------------------------------------------------------------


def context_of(reader: Reader) -> grpc.ServicerContext:
    return cast(grpc.ServicerContext, reader)


def test_the_oldest_call_of_an_address_makes_room() -> None:
    calls = OpenCalls(max_open=5, max_of_source=3, clock=Clock())
    crowd = [Reader() for _ in range(4)]
    for reader in crowd:
        calls.enter(context_of(reader), "10.0.0.1")
    assert [reader.cancelled for reader in crowd] == [True, False, False, False]
    others = [Reader() for _ in range(3)]
    for number, reader in enumerate(others):
        calls.enter(context_of(reader), f"10.0.1.{number}")
    assert [reader.cancelled for reader in crowd] == [True, True, False, False]
    assert not any(reader.cancelled for reader in others)


def test_a_stream_has_its_own_time() -> None:
    clock = Clock()
    calls = OpenCalls(max_open=2, max_of_source=2, call_s=10.0, clock=clock)
    stream, call, late = Reader(), Reader(), Reader()
    calls.enter(context_of(stream), "10.0.0.1")
    calls.admit(context_of(stream), 100.0)
    calls.enter(context_of(call), "10.0.0.1")
    calls.enter(context_of(late), "10.0.0.1")
    assert not call.cancelled, "the stream holds no place of a call"
    calls.leave(context_of(late))
    clock.now += 50.0
    calls.end_overdue()
    assert (stream.cancelled, call.cancelled, late.cancelled) == (False, True, False)
    calls.settle(context_of(stream))
    clock.now += 11.0
    calls.end_overdue()
    assert stream.cancelled
    assert not calls._open
    assert not calls._waiting


def test_a_message_that_takes_long_makes_room_for_those_that_wait() -> None:
    calls = OpenCalls(max_receiving=2)
    slow, quick, waiting = Reader(), Reader(), Reader()
    for reader in (slow, quick, waiting):
        calls.enter(context_of(reader), "10.0.0.1")
    calls.wait_receiving(context_of(slow))
    calls.wait_receiving(context_of(quick))
    with ThreadPoolExecutor(1) as pool:
        turn = pool.submit(calls.wait_receiving, context_of(waiting))
        turn.result(PATIENCE_S)
        assert (slow.cancelled, quick.cancelled, waiting.cancelled) == (True, False, False)
        calls.received(context_of(quick))
        pool.submit(calls.wait_receiving, context_of(quick)).result(PATIENCE_S)
        ended = Reader()
        pool.submit(calls.wait_receiving, context_of(ended)).result(PATIENCE_S)  # it has no place any more
        assert not quick.cancelled
