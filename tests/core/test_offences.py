"""Who is put aside, for how long, and what ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl_net.core.events import (
    Ask,
    CollectionDone,
    FailureKind,
    Fetch,
    FetchFailed,
    FetchFinished,
    ModelPublished,
    Note,
)
from p2pfl_net.core.ids import PeerId, TaskDigest
from p2pfl_net.core.offences import Offences
from p2pfl_net.core.params import Params
from tests.core.network import Network, Peer

PARAMS = Params()
LIMIT = PARAMS.offences_in_a_row
TASK = TaskDigest("7" * 64)
PEER, OTHER = PeerId("a" * 64), PeerId("b" * 64)


def request(*refused: PeerId) -> Ask:
    return Ask(1, 1, 10.0, TASK, refused=tuple((peer_id, "has NaN") for peer_id in refused))


def good(offences: Offences, now: float = 0.0) -> None:
    """A model that was answered and not refused."""
    offences.answered([PEER])
    assert offences.judge(request(), now) == []


def put_aside(offences: Offences, now: float = 0.0) -> float:
    """Offends until the peer is put aside; for how long."""
    while not (notes := offences.offend(PEER, "broken", now)):
        pass
    (note,) = notes
    assert (note.event, note.fields["peer"], note.fields["reason"]) == ("peer_put_aside", PEER, "broken")
    seconds = note.fields["seconds"]
    assert isinstance(seconds, float)
    return seconds


def test_some_in_a_row_put_a_peer_aside_and_nobody_else() -> None:
    offences = Offences(PARAMS)
    for _ in range(LIMIT - 1):
        assert offences.offend(PEER, "broken", 0.0) == []
        assert not offences.is_aside(PEER, 0.0)
    assert put_aside(offences) == PARAMS.aside_s
    assert offences.counts == {PEER: LIMIT}
    assert offences.is_aside(PEER, PARAMS.aside_s - 0.01)
    assert not offences.is_aside(PEER, PARAMS.aside_s)
    assert not offences.is_aside(OTHER, 0.0)


def test_who_offends_again_when_it_is_back_stays_away_twice_as_long_up_to_a_day() -> None:
    offences, now, told = Offences(PARAMS), 0.0, []
    for _ in range(12):
        told.append(put_aside(offences, now))
        now += told[-1]
    assert told == [min(600.0 * 2**n, 86_400.0) for n in range(12)]
    assert offences.counts == {PEER: LIMIT + 11}, "one is enough, once the row is full"


def test_what_comes_of_fetches_under_way_makes_it_no_longer() -> None:
    offences = Offences(PARAMS)
    put_aside(offences, 0.0)
    for _ in range(10):
        assert offences.offend(PEER, "broken", 1.0) == []
    assert not offences.is_aside(PEER, PARAMS.aside_s)


def test_a_good_model_ends_the_row() -> None:
    offences = Offences(PARAMS)
    for _ in range(5):
        for _ in range(LIMIT - 1):
            assert offences.offend(PEER, "broken", 0.0) == []
        good(offences)
    put_aside(offences, 0.0)
    good(offences, PARAMS.aside_s)
    assert put_aside(offences, PARAMS.aside_s) == PARAMS.aside_s, "it begins anew"


def test_a_model_is_good_only_when_the_next_request_does_not_refuse_it() -> None:
    offences = Offences(PARAMS)
    offences.answered([PEER, OTHER])
    notes = []
    for _ in range(LIMIT):
        notes += offences.judge(request(PEER), 0.0)
        offences.answered([PEER])
    assert [note.event for note in notes] == ["model_refused"] * LIMIT + ["peer_put_aside"]
    assert offences.is_aside(PEER, 0.0)
    assert not offences.is_aside(OTHER, 0.0)


def test_who_refuses_to_serve_is_asked_ever_more_rarely_until_it_serves() -> None:
    offences, now, waited = Offences(PARAMS), 0.0, []
    for _ in range(8):
        offences.refuses(PEER, now)
        offences.refuses(PEER, now)  # of another fetch under way
        assert (offences.is_asked(PEER, now), offences.is_aside(PEER, now)) == (False, False)
        assert offences.is_asked(OTHER, now)
        pause_s = next(s for s in range(1, 100) if offences.is_asked(PEER, now + s))
        waited.append(pause_s)
        now += pause_s
    assert waited == [2, 4, 8, 16, 20, 20, 20, 20]
    offences.serves(PEER)
    offences.refuses(PEER, now)
    assert offences.is_asked(PEER, now + PARAMS.forbidden_s)


def test_the_number_of_offenders_is_bounded() -> None:
    offences = Offences(replace(PARAMS, max_peers=5))
    for number in range(50):
        for _ in range(LIMIT):
            offences.offend(PeerId(f"{number:064x}"), "broken", 0.0)
    assert len(offences.counts) == 5


@given(st.lists(st.tuples(st.sampled_from(["bad", "good"]), st.sampled_from([0.0, 1.0, 601.0, 5000.0]))))
def test_as_one_who_reads_the_whole_history(history: list[tuple[str, float]]) -> None:
    """The naive reader forgets all before the last good model, and then counts."""
    offences, now = Offences(PARAMS), 0.0
    row: list[float] = []
    for what, pause in history:
        now += pause
        if what == "good":
            good(offences, now)
            row = []
        else:
            offences.offend(PEER, "broken", now)
            row.append(now)
        until, times = 0.0, 0
        for place, at in enumerate(row):
            if place + 1 >= LIMIT and at >= until:
                until = at + min(600.0 * 2**times, 86_400.0)
                times += 1
        for later in (0.0, 599.0, 600.0, 1200.0, 90_000.0):
            assert offences.is_aside(PEER, now + later) == (now + later < until)


# through whole nodes -------------------------------------------------------------------------------


def asker_and_liar() -> tuple[Network, Peer, Peer]:
    network = Network(8)
    asker, liar = network.chain(2)
    network.handle(liar, ModelPublished(TASK, 1))
    network.run(3)
    return network, asker, liar


def candidates_of(network: Network, asker: Peer, *refused: PeerId) -> int:
    network.handle(asker, request(*refused))
    network.run(1)
    done = asker.of(CollectionDone)[-1]
    assert isinstance(done, CollectionDone)
    return done.candidates


def test_who_is_put_aside_is_no_candidate_until_its_time_is_over() -> None:
    network, asker, liar = asker_and_liar()
    found = [candidates_of(network, asker)]
    found += [candidates_of(network, asker, liar.id) for _ in range(LIMIT)]
    assert found == [1] * LIMIT + [0], "the request that refuses the last one finds it gone"
    (view,) = asker.node.peer_list().peers
    assert (view.offences, view.is_aside) == (LIMIT, True)
    network.run(PARAMS.aside_s)
    assert candidates_of(network, asker) == 1
    (view,) = asker.node.peer_list().peers
    assert (view.offences, view.is_aside) == (LIMIT, False)


@pytest.mark.parametrize("kind", [FailureKind.FORBIDDEN, FailureKind.INVALID])
def test_a_refusal_to_serve_is_no_offence(kind: FailureKind) -> None:
    _, asker, _ = asker_and_liar()
    for number in range(LIMIT + 1):
        now = 10.0 + number * PARAMS.forbidden_max_s
        outputs = asker.node.handle(Ask(number, 1, 10.0, TASK), now)
        for fetch in [output for output in outputs if isinstance(output, Fetch)]:
            asker.node.handle(FetchFailed(fetch.fetch, kind, "no"), now)
    (view,) = asker.node.peer_list().peers
    is_offence = kind is FailureKind.INVALID
    assert (view.offences, view.is_aside) == (LIMIT if is_offence else 0, is_offence)


def test_a_model_that_came_is_not_yet_a_good_one() -> None:
    _, asker, _ = asker_and_liar()
    notes: list[Note] = []
    refused: tuple[tuple[PeerId, str], ...] = ()
    for number in range(LIMIT + 1):
        outputs = asker.node.handle(Ask(number, 1, 10.0, TASK, refused=refused), 10.0)
        notes += [output for output in outputs if isinstance(output, Note)]
        for fetch in [output for output in outputs if isinstance(output, Fetch)]:
            asker.node.handle(FetchFinished(fetch.fetch), 10.0)
            refused = ((fetch.peer_id, "has NaN"),)
    assert [note.event for note in notes] == ["model_refused"] * LIMIT + ["peer_put_aside"]
