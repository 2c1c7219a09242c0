"""Which models are fetched from whom, and when a round ends."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest

from p2pfl_net.core.candidates import choose_task
from p2pfl_net.core.collect import Collector
from p2pfl_net.core.events import (
    Ask,
    CancelFetch,
    CollectionDone,
    FailureKind,
    Fetch,
    FetchFailed,
    FetchFinished,
    FetchId,
    FetchProgressed,
    ModelPublished,
    Note,
    Output,
)
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import Ping, Sender, Status
from p2pfl_net.core.params import Params
from tests.core.network import Network, Peer

TASK = TaskDigest("7" * 64)
OTHER_TASK = TaskDigest("8" * 64)
PARAMS = Params()
BAD = FailureKind.INVALID
MATURE_S = PARAMS.stall_s
"""When the pace of a fetch counts, in a round that is long."""


def peers(count: int) -> dict[PeerId, tuple[Address, ...]]:
    return {PeerId(f"{n:064x}"): (Address("10.0.0.1", 8000 + n),) for n in range(count)}


class Rounds:
    """A collector whose outputs are kept by kind."""

    def __init__(self, count: int, *, fan_out: int = 2, deadline_s: float = 10.0, seed: int = 0) -> None:
        self.collector = Collector(PARAMS, Random(seed))
        self.fetches: list[Fetch] = []
        self.cancelled: list[FetchId] = []
        self.done: list[CollectionDone] = []
        self.notes: list[Note] = []
        ask = Ask(1, fan_out, deadline_s, TASK)
        self.take(self.collector.ask(ask, TASK, peers(count), count, 0.0))

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Fetch():
                    self.fetches.append(output)
                case CancelFetch():
                    self.cancelled.append(output.fetch)
                case CollectionDone():
                    self.done.append(output)
                case Note():
                    self.notes.append(output)
                case _:
                    raise AssertionError(output)

    def finish(self, number: int, now: float = 0.0) -> None:
        self.take(self.collector.finished(FetchFinished(self.fetches[number].fetch), now))

    def fail(self, number: int, kind: FailureKind = BAD, now: float = 0.0, reason: str = "broken") -> None:
        self.take(self.collector.failed(FetchFailed(self.fetches[number].fetch, kind, reason), now))

    def progress(self, number: int, received: int, now: float) -> None:
        event = FetchProgressed(self.fetches[number].fetch, received, 100)
        self.take(self.collector.progressed(event, now))

    def tick(self, now: float) -> None:
        self.take(self.collector.tick(now))


# the choice ----------------------------------------------------------------------------------------


def chi_square_limit(cells: int) -> float:
    """Far beyond what chance gives: mean plus six standard deviations of the distribution."""
    freedom = cells - 1
    return freedom + 6 * math.sqrt(2 * freedom)


def test_every_peer_and_every_pair_is_equally_likely() -> None:
    count, fan_out, rounds = 8, 3, 6000
    random = Random(2026)
    single: Counter[PeerId] = Counter()
    pairs: Counter[tuple[PeerId, ...]] = Counter()
    for number in range(rounds):
        outputs = Collector(PARAMS, random).ask(
            Ask(number, fan_out, 9.0, TASK), TASK, peers(count), count, 0.0
        )
        chosen = sorted(output.peer_id for output in outputs if isinstance(output, Fetch))
        assert len(chosen) == fan_out
        single.update(chosen)
        pairs.update(combinations(chosen, 2))
    for counts, cells in ((single, count), (pairs, math.comb(count, 2))):
        expected = counts.total() / cells
        assert len(counts) == cells
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < chi_square_limit(cells)


def test_also_through_whole_nodes_and_over_rounds() -> None:
    network = Network(6)
    chain = network.chain(6)
    for peer in chain:
        network.handle(peer, ModelPublished(TASK, 1))
    network.run(5)
    asker, others = chain[0], {peer.id for peer in chain[1:]}
    counts: Counter[PeerId] = Counter()
    for number in range(600):
        asker.outputs.clear()
        network.handle(asker, Ask(number, 2, 5.0, TASK))
        assert network.run_until(lambda: bool(asker.of(CollectionDone)), 1.0) is not None
        counts.update(output.peer_id for _, output in asker.outputs if isinstance(output, Fetch))
    assert set(counts) == others
    expected = counts.total() / len(others)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < chi_square_limit(len(others))


def test_the_substitutes_are_as_uniform_as_the_first_choice() -> None:
    counts: Counter[PeerId] = Counter()
    for seed in range(3000):
        rounds = Rounds(5, fan_out=1, seed=seed)
        rounds.fail(0)
        counts[rounds.fetches[1].peer_id] += 1
    assert sum((n - 600) ** 2 / 600 for n in counts.values()) < chi_square_limit(5)


# the course of a round -----------------------------------------------------------------------------


def test_a_round_ends_as_soon_as_it_has_what_was_wanted() -> None:
    rounds = Rounds(5, fan_out=2)
    rounds.finish(1, 0.5)
    assert rounds.done == []
    rounds.finish(0, 0.7)
    fetched = (rounds.fetches[1].fetch, rounds.fetches[0].fetch)
    assert rounds.done == [CollectionDone(1, fetched, (), 5, 5, 0.7, drawn=2, drawable=5)]
    assert len(rounds.fetches) == 2
    assert rounds.collector.wakeup() is None


def test_who_fails_is_replaced_and_named() -> None:
    rounds = Rounds(3, fan_out=2)
    rounds.fail(0, reason="gone")
    assert len(rounds.fetches) == 3
    rounds.finish(1)
    rounds.finish(2)
    assert rounds.done[0].failed == ((rounds.fetches[0].peer_id, "gone"),)
    assert len(rounds.done[0].fetched) == 2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_with_too_few_candidates_the_round_ends_when_all_were_tried(count: int) -> None:
    rounds = Rounds(count, fan_out=5)
    for number in range(count):
        assert rounds.done == []
        rounds.fail(number, now=1.0)
    (done,) = rounds.done
    assert (done.fetched, len(done.failed), done.candidates) == ((), count, count)


def test_a_stalled_peer_gets_a_substitute_and_may_still_win() -> None:
    rounds = Rounds(3, fan_out=1)
    rounds.progress(0, 60, 1.0)
    assert rounds.collector.wakeup() == 1.0 + PARAMS.stall_s
    rounds.tick(1.0 + PARAMS.stall_s)
    assert len(rounds.fetches) == 2
    assert rounds.cancelled == []
    rounds.finish(0, 3.5)
    assert rounds.done[0].fetched == (rounds.fetches[0].fetch,)
    assert rounds.done[0].failed == ()
    assert rounds.cancelled == [rounds.fetches[1].fetch]


def test_a_peer_that_would_miss_the_deadline_gets_a_substitute() -> None:
    rounds = Rounds(3, fan_out=1)
    rounds.progress(0, 10, MATURE_S)  # 20 s in all, 10 are allowed
    assert len(rounds.fetches) == 2
    rounds.finish(1, 2.2)
    assert rounds.done[0].fetched == (rounds.fetches[1].fetch,)
    assert rounds.cancelled == [rounds.fetches[0].fetch]


def test_a_pace_counts_once_it_has_been_measured_for_a_while() -> None:
    rounds = Rounds(3, fan_out=1)
    rounds.progress(0, 1, 0.9 * MATURE_S)
    assert len(rounds.fetches) == 1


def test_a_peer_that_catches_up_frees_no_third_start() -> None:
    rounds = Rounds(4, fan_out=1)
    rounds.progress(0, 10, MATURE_S)
    rounds.progress(0, 90, 3.0)
    rounds.fail(1, now=3.1)
    assert len(rounds.fetches) == 2, "the first is on time again"


def test_one_substitute_at_a_time_shows_whether_somebody_is_faster() -> None:
    rounds = Rounds(20, fan_out=3)
    for number in range(3):
        rounds.progress(number, 10, MATURE_S)
    assert len(rounds.fetches) == 4, "it is on trial"
    rounds.progress(3, 50, 2 * MATURE_S)
    assert len(rounds.fetches) == 5, "it is faster: so the next may be too"


def test_when_the_substitute_is_late_as_well_it_is_our_link() -> None:
    rounds = Rounds(20, fan_out=3)
    for number in range(3):
        rounds.progress(number, 10 + number, MATURE_S)
    rounds.progress(3, 1, 2 * MATURE_S)
    assert len(rounds.fetches) == 4, "one more would only make all of them slower"
    assert rounds.fetches[2].fetch not in rounds.cancelled, "the most advanced goes on"
    assert {rounds.fetches[0].fetch, rounds.fetches[3].fetch} <= set(rounds.cancelled)


def test_never_more_than_twice_the_fan_out_at_once() -> None:
    rounds = Rounds(20, fan_out=3)
    for number in range(6):
        rounds.tick(PARAMS.stall_s * (number + 1))
        assert len(rounds.fetches) - len(rounds.cancelled) <= 6


def test_a_large_fan_out_runs_in_as_many_fetches_as_there_are_threads() -> None:
    rounds = Rounds(200, fan_out=100)
    assert len(rounds.fetches) == PARAMS.max_fetches
    rounds.finish(0, 0.5)
    assert len(rounds.fetches) == PARAMS.max_fetches + 1


def test_when_all_are_silent_the_longest_silent_makes_room() -> None:
    rounds = Rounds(9, fan_out=1)
    rounds.tick(2.0)
    rounds.tick(4.0)
    assert rounds.cancelled == [rounds.fetches[0].fetch]
    assert len(rounds.fetches) == 3
    rounds.finish(2, 4.5)
    assert rounds.done[0].failed == ((rounds.fetches[0].peer_id, "no byte for 4 s"),)


def test_late_ones_that_fell_silent_make_room_without_waiting_for_an_event() -> None:
    rounds = Rounds(9, fan_out=1)
    rounds.progress(0, 10, MATURE_S)
    rounds.progress(1, 1, MATURE_S + 0.5)
    assert len(rounds.fetches) == 2
    for _ in range(2):
        wakeup = rounds.collector.wakeup()
        assert wakeup is not None
        rounds.tick(wakeup)
    assert rounds.cancelled == [rounds.fetches[0].fetch]
    assert len(rounds.fetches) == 3


def test_what_has_come_is_not_thrown_away_for_a_gap_like_those_before() -> None:
    rounds = Rounds(9, fan_out=1, deadline_s=60.0)
    for number in range(1, 5):
        rounds.progress(0, 10 * number, 1.9 * number)
    rounds.tick(4 * 1.9 + 2 * PARAMS.stall_s)
    assert len(rounds.fetches) == 1


def test_at_the_deadline_it_is_answered_with_what_there_is() -> None:
    rounds = Rounds(4, fan_out=3)
    rounds.finish(0, 1.0)
    rounds.progress(1, 50, 4.9)
    rounds.progress(2, 50, 4.9)
    rounds.progress(1, 90, 9.5)
    rounds.tick(10.0)
    (done,) = rounds.done
    assert done.fetched == (rounds.fetches[0].fetch,)
    assert rounds.fetches[1].peer_id in dict(done.failed)
    assert set(rounds.cancelled) >= {fetch.fetch for fetch in rounds.fetches[1:3]}


def test_a_busy_peer_is_asked_again_when_nobody_else_is_left() -> None:
    rounds = Rounds(1, fan_out=1)
    for attempt in range(3):
        now = attempt * PARAMS.busy_retry_s
        rounds.fail(attempt, FailureKind.BUSY, now)
        assert rounds.done == []
        wakeup = rounds.collector.wakeup()
        assert wakeup == now + PARAMS.busy_retry_s
        rounds.tick(wakeup)
        assert len(rounds.fetches) == attempt + 2
    rounds.finish(3, 1.0)
    assert rounds.done[0].failed == ()
    assert rounds.collector.offences.counts.total() == 0


def test_a_busy_peer_waits_behind_those_not_yet_tried() -> None:
    rounds = Rounds(2, fan_out=1)
    rounds.fail(0, FailureKind.BUSY, 0.1)
    assert rounds.fetches[1].peer_id != rounds.fetches[0].peer_id
    rounds.finish(1, 0.2)
    assert rounds.done[0].failed == ((rounds.fetches[0].peer_id, "broken"),)


def test_a_new_request_gives_the_old_one_up_without_an_answer() -> None:
    rounds = Rounds(4, fan_out=2)
    old = [fetch.fetch for fetch in rounds.fetches]
    rounds.take(rounds.collector.ask(Ask(2, 1, 5.0, TASK), TASK, peers(4), 4, 1.0))
    assert rounds.cancelled == old
    rounds.finish(0, 1.1)
    rounds.fail(1, now=1.2)
    assert rounds.done == []
    rounds.finish(2, 1.3)
    assert [(done.round, done.fetched) for done in rounds.done] == [(2, (rounds.fetches[2].fetch,))]
    assert rounds.collector.offences.counts.total() == 0, (
        "what became of a cancelled fetch counts for nothing"
    )


def test_a_stop_cancels_everything_and_answers_nothing() -> None:
    rounds = Rounds(4)
    rounds.take(rounds.collector.stop())
    assert len(rounds.cancelled) == 2
    rounds.finish(0)
    assert rounds.done == []
    assert rounds.collector.wakeup() is None


def test_offences_are_counted_by_peer() -> None:
    rounds = Rounds(3, fan_out=1)
    culprit = rounds.fetches[0].peer_id
    rounds.fail(0, FailureKind.INVALID)
    rounds.fail(1, FailureKind.UNREACHABLE)
    ask = Ask(2, 1, 5.0, TASK, refused=((culprit, "has NaN"),))
    rounds.take([*rounds.collector.offences.judge(ask, 1.0)])
    assert rounds.collector.offences.counts == {culprit: 2}
    assert Note("model_refused", {"peer": culprit, "reason": "has NaN"}) in rounds.notes


# the task ------------------------------------------------------------------------------------------


def test_a_newcomer_takes_the_task_of_somebody_who_has_one() -> None:
    assert choose_task(TASK, [], Random(0)) == TASK
    assert choose_task(None, [], Random(0)) is None
    assert {choose_task(None, [TASK, OTHER_TASK], Random(seed)) for seed in range(20)} == {TASK, OTHER_TASK}


def published(network: Network, tasks: list[TaskDigest | None]) -> list[Peer]:
    chain = network.chain(len(tasks))
    for peer, task in zip(chain, tasks, strict=True):
        network.handle(peer, ModelPublished(task, 1))
    network.run(3)
    return chain


@pytest.mark.parametrize(
    ("asked", "candidates"),
    [(TASK, 2), (OTHER_TASK, 1), (TaskDigest("9" * 64), 0)],
    ids=["two", "one", "none"],
)
def test_only_peers_that_publish_the_task_are_candidates(asked: TaskDigest, candidates: int) -> None:
    network = Network(8)
    chain = published(network, [None, TASK, TASK, OTHER_TASK, None])
    network.handle(chain[0], Ask(1, 5, 5.0, asked))
    network.run(1)
    (done,) = chain[0].of(CollectionDone)
    assert isinstance(done, CollectionDone)
    assert (done.candidates, len(done.fetched), done.peers) == (candidates, candidates, 4)


def suspect(network: Network, asker: Peer, *others: Peer) -> None:
    """A member says to `asker` that these do not answer."""
    told = tuple(replace(peer.node.membership.me, status=Status.SUSPECT) for peer in others)
    sender = Sender(others[0].node.membership.me)
    network.call(asker, Ping(sender, asker.id, network.address(asker), told), others[0].machine.lan[0])


def test_whom_only_others_suspect_stays_in_the_draw() -> None:
    """Else one slanderer would decide whose models are averaged."""
    network = Network(8)
    asker, *others = published(network, [None, TASK, TASK, TASK])
    suspect(network, asker, *others[:2])
    network.handle(asker, Ask(1, 3, 5.0, TASK))
    network.run(1)
    (done,) = asker.of(CollectionDone)
    assert isinstance(done, CollectionDone)
    assert (done.candidates, len(done.fetched), done.drawn, done.drawable) == (3, 3, 3, 3)


@pytest.mark.parametrize(("fan_out", "drawable"), [(2, 8), (8, 8), (9, 9), (12, 12), (16, 16)])
@pytest.mark.parametrize("last", ["reserve", "suspects"])
def test_once_those_that_come_last_are_asked_nobody_was_drawn_at_random(
    fan_out: int, drawable: int, last: str
) -> None:
    """The others have all been asked by then, and they may have been the liars."""
    everyone = peers(16)
    come_last = sorted(everyone)[8:]
    collector = Collector(PARAMS, Random(0))
    outputs = collector.ask(
        Ask(1, fan_out, 9.0, TASK), TASK, everyone, 40, 0.0, members=30,
        reserve=come_last if last == "reserve" else (), suspects=come_last if last == "suspects" else (),
    )  # fmt: skip
    while not any(isinstance(output, CollectionDone) for output in outputs):
        fetch = next(output for output in outputs if isinstance(output, Fetch))
        outputs.remove(fetch)
        if last == "reserve" or fetch.peer_id in come_last:
            outputs += collector.finished(FetchFinished(fetch.fetch), 0.0)
        else:
            outputs += collector.failed(FetchFailed(fetch.fetch, BAD, "broken"), 0.0)
    (done,) = [output for output in outputs if isinstance(output, CollectionDone)]
    drawn = fan_out
    if last == "suspects":  # nobody else brings anything, so all others are asked, and then they
        drawn = drawable = 8 + min(fan_out, 8)
    assert (done.drawn, done.drawable, done.undecided) == (drawn, drawable, 30 - drawable)


def test_a_round_says_how_many_were_asked_and_who_may_come_yet() -> None:
    network = Network(8)
    asker, *others = published(network, [None, TASK, TASK, TASK, OTHER_TASK, None, None])
    network.kill(others[0])
    network.handle(asker, Ask(1, 2, 5.0, TASK))
    network.run(6)
    (done,) = asker.of(CollectionDone)
    assert isinstance(done, CollectionDone)
    assert len(done.fetched) == 2
    assert 2 <= done.drawn <= 3
    assert (done.drawable, done.undecided) == (3, 2)


@pytest.mark.parametrize("asked", [TASK, None])
@pytest.mark.parametrize(("suspected", "candidates"), [(1, 2), (2, 1), (3, 3)])
def test_suspects_are_asked_when_there_is_nobody_else(
    asked: TaskDigest | None, suspected: int, candidates: int
) -> None:
    network = Network(8)
    asker, *others = published(network, [None, TASK, TASK, TASK])
    suspect(network, asker, *others[:suspected])
    for peer in others[:suspected]:
        asker.node.membership.table.witness(peer.id, 0, refused=False)  # our own probe has failed too
    network.handle(asker, Ask(1, 5, 5.0, asked))
    network.run(1)
    (done,) = asker.of(CollectionDone)
    assert isinstance(done, CollectionDone)
    assert (done.candidates, len(done.fetched), done.peers) == (candidates, candidates, 3)


@pytest.mark.parametrize("silent", [False, True], ids=["fail", "are silent"])
def test_suspects_are_asked_when_all_others(silent: bool) -> None:
    """And not before: who is suspected may well be dead, and cost the rest of the time."""
    network = Network(8)
    asker, lost, *others = published(network, [None, TASK, TASK, TASK])
    suspect(network, asker, lost)
    asker.node.membership.table.witness(lost.id, 0, refused=False)
    for peer in others:
        if silent:
            peer.frozen = True
        else:
            network.kill(peer)
    network.handle(asker, Ask(1, 1, 10.0, TASK))
    assert lost.id not in [output.peer_id for output in asker.of(Fetch) if isinstance(output, Fetch)]
    network.run(10)
    (done,) = asker.of(CollectionDone)
    assert isinstance(done, CollectionDone)
    assert (done.candidates, len(done.fetched)) == (3, 1)


def test_one_task_alone_when_none_is_asked_for() -> None:
    network = Network(8)
    chain = published(network, [None, TASK, TASK, OTHER_TASK])
    network.handle(chain[0], Ask(1, 5, 5.0, None))
    network.run(1)
    fetches = [output for output in chain[0].of(Fetch) if isinstance(output, Fetch)]
    assert len({fetch.task for fetch in fetches}) == 1


def test_who_froze_is_replaced_within_the_deadline() -> None:
    network = Network(8)
    chain = published(network, [None] + [TASK] * 5)
    for peer in chain[1:4]:
        peer.frozen = True
    network.handle(chain[0], Ask(1, 2, 20.0, TASK))
    network.run(20)
    (done,) = chain[0].of(CollectionDone)
    assert isinstance(done, CollectionDone)
    assert len(done.fetched) == 2


def test_a_stopping_peer_begins_no_round() -> None:
    network = Network(8)
    chain = published(network, [None, TASK])
    chain[1].machine.silent = True
    network.stop(chain[0])
    assert chain[0].alive
    network.handle(chain[0], Ask(1, 1, 5.0, TASK))
    network.run(3)
    assert chain[0].of(Fetch) == []
