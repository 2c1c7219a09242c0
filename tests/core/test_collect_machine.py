"""The collector against a naive model of it, under every order of events that hypothesis thinks of."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
    Note,
    Output,
)
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.params import Params
from p2pfl_net.core.trust import Trust

TASK = TaskDigest("7" * 64)
PARAMS = Params(stall_s=2.0, busy_retry_s=0.25)


@dataclass
class Open:
    """What the model knows of one fetch under way."""

    peer: PeerId
    started: float
    heard: float
    began: bool = False
    gap: float = 0.0
    abandoned: bool = False

    def silent(self, now: float) -> bool:
        return now >= self.heard + max(PARAMS.stall_s, 3 * self.gap)


@dataclass
class Round:
    """What the model knows of the round under way."""

    number: int
    fan_out: int
    deadline: float
    candidates: set[PeerId]
    tried: set[PeerId] = field(default_factory=set)
    busy: dict[PeerId, float] = field(default_factory=dict)
    done: list[FetchId] = field(default_factory=list)
    given_up: int = 0
    struck: int = 0
    """Peers that were tried and are no longer allowed."""

    @property
    def missing(self) -> int:
        return self.fan_out - self.given_up - len(self.done)


def done_by(current: Round | None) -> float:
    return 0.0 if current is None else current.deadline


fan_outs = st.integers(1, 4)
counts = st.integers(0, 9)
deadlines = st.sampled_from([0.5, 3.0, 20.0])


class CollectorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.collector = Collector(PARAMS, Random(0))
        self.now = 0.0
        self.round: Round | None = None
        self.last_round = 0
        self.open: dict[FetchId, Open] = {}
        self.ended: list[FetchId] = []
        self.peer_of: dict[FetchId, PeerId] = {}

    # what happens ----------------------------------------------------------------------------------

    @precondition(lambda self: self.round is None)
    @rule(fan_out=fan_outs, candidates=counts, deadline_s=deadlines)
    def begin(self, fan_out: int, candidates: int, deadline_s: float) -> None:
        self.ask(fan_out, candidates, deadline_s)

    @precondition(lambda self: self.round is not None)
    @rule(fan_out=fan_outs, candidates=counts, deadline_s=deadlines, impatience=st.integers(0, 9))
    def begin_again(self, fan_out: int, candidates: int, deadline_s: float, impatience: int) -> None:
        if impatience == 9:  # seldom, or no round would ever be seen to its end
            self.ask(fan_out, candidates, deadline_s)

    def ask(self, fan_out: int, candidates: int, deadline_s: float) -> None:
        self.last_round += 1
        addresses = {PeerId(f"{n:064x}"): (Address("10.0.0.1", 8000 + n),) for n in range(candidates)}
        abandoned = set(self.open)
        for known in self.open.values():
            known.abandoned = True
        deadline = self.now + deadline_s
        self.round = Round(self.last_round, fan_out, deadline, set(addresses))
        event = Ask(self.last_round, fan_out, deadline_s, TASK)
        self.take(self.collector.ask(event, TASK, addresses, candidates, self.now))
        assert not abandoned & set(self.open), "a new request cancels what ran for the old one"

    @precondition(lambda self: self.open)
    @rule(data=st.data(), received=st.integers(0, 100))
    def progress(self, data: st.DataObject, received: int) -> None:
        fetch = self.draw_open(data)
        assert self.round is not None
        known = self.open[fetch]
        if known.began:
            known.gap = max(known.gap, self.now - known.heard)
        known.began, known.heard = True, self.now
        self.take(self.collector.progressed(FetchProgressed(fetch, received, 100), self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        fetch = self.draw_open(data)
        assert self.round is not None
        self.end(fetch)
        self.round.done.append(fetch)
        self.take(self.collector.finished(FetchFinished(fetch), self.now))

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(), kind=st.sampled_from([FailureKind.BUSY, FailureKind.INVALID, FailureKind.UNREACHABLE])
    )
    def fail(self, data: st.DataObject, kind: FailureKind) -> None:
        fetch = self.draw_open(data)
        assert self.round is not None
        peer = self.open[fetch].peer
        self.end(fetch)
        if kind is FailureKind.BUSY:
            self.round.busy[peer] = self.now + PARAMS.busy_retry_s
        self.take(self.collector.failed(FetchFailed(fetch, kind, "broken"), self.now))

    @precondition(lambda self: self.round is not None and self.round.candidates)
    @rule(data=st.data())
    def one_is_revoked(self, data: st.DataObject) -> None:
        current = self.round
        assert current is not None
        peer = data.draw(st.sampled_from(sorted(current.candidates)))
        running = [fetch for fetch, known in self.open.items() if known.peer == peer]
        came = [fetch for fetch in current.done if self.peer_of[fetch] == peer]
        current.done = [fetch for fetch in current.done if fetch not in came]
        current.candidates.discard(peer)
        current.busy.pop(peer, None)
        current.struck += peer in current.tried
        current.tried.discard(peer)
        for fetch in running:
            self.end(fetch)
        outputs = self.collector.trust_changed(Trust(revoked=frozenset([peer])), self.now)
        dropped = [CancelFetch(fetch) for fetch in running + came]
        assert all(output in outputs for output in dropped), "neither on its way nor answered"
        self.take([output for output in outputs if output not in dropped])

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), which=st.integers(0, 2))
    def late_news(self, data: st.DataObject, which: int) -> None:
        fetch = data.draw(st.sampled_from(self.ended))
        outputs = (
            self.collector.progressed(FetchProgressed(fetch, 1, 100), self.now),
            self.collector.finished(FetchFinished(fetch), self.now),
            self.collector.failed(FetchFailed(fetch, FailureKind.INVALID, "late"), self.now),
        )
        assert outputs == ([], [], []), which

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.5, 30.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while (wakeup := self.collector.wakeup()) is not None and wakeup <= until:
            self.now = max(self.now, wakeup)
            self.take(self.collector.tick(self.now))
            again = self.collector.wakeup()
            assert again is None or again > self.now, "it spins"
        self.now = until

    # what comes out --------------------------------------------------------------------------------

    def draw_open(self, data: st.DataObject) -> FetchId:
        return data.draw(st.sampled_from(sorted(self.open)))

    def end(self, fetch: FetchId) -> None:
        del self.open[fetch]
        self.ended.append(fetch)

    def take(self, outputs: list[Output]) -> None:
        lost = False
        for output in outputs:
            match output:
                case Fetch():
                    lost = self.settle(lost)
                    self.started(output)
                case CancelFetch():
                    assert output.fetch in self.open, "only what runs can be cancelled, and once"
                    known = self.open[output.fetch]
                    lost |= not known.abandoned and not known.silent(self.now)
                    self.end(output.fetch)
                case CollectionDone():
                    lost = self.settle(lost and self.now < done_by(self.round))
                    self.answered(output)
                case Note():
                    pass
                case _:
                    raise AssertionError(output)
        self.settle(lost)

    def settle(self, lost: bool) -> bool:
        """After some were given up for the rest: those that are left are all that will come."""
        if lost and self.round is not None:
            self.round.given_up += max(0, self.round.missing - self.heard())
        return False

    def heard(self) -> int:
        return sum(not known.silent(self.now) for known in self.open.values())

    def started(self, fetch: Fetch) -> None:
        current = self.round
        assert current is not None
        assert fetch.fetch not in self.open
        assert fetch.fetch not in self.ended
        assert fetch.peer_id in current.candidates
        assert fetch.peer_id not in {known.peer for known in self.open.values()}, "one fetch a peer"
        assert fetch.round == current.number
        assert 0 < fetch.timeout_s == current.deadline - self.now
        if fetch.peer_id in current.tried:
            assert current.busy.pop(fetch.peer_id) <= self.now, "only who was busy is asked again, and later"
            assert current.tried == current.candidates, "first those not yet tried"
        current.tried.add(fetch.peer_id)
        self.peer_of[fetch.fetch] = fetch.peer_id
        self.open[fetch.fetch] = Open(fetch.peer_id, self.now, self.now)

    def answered(self, done: CollectionDone) -> None:
        current = self.round
        assert current is not None
        assert done.round == current.number
        assert list(done.fetched) == current.done, "in the order in which they finished"
        assert not self.open, "nothing goes on after the answer"
        assert done.candidates == len(current.candidates)
        assert done.drawn >= len(current.tried), "also those who were overtaken"
        assert self.now <= current.deadline
        complete = current.missing <= 0
        exhausted = current.tried == current.candidates and not current.busy
        assert complete or exhausted or self.now == current.deadline
        failed = [peer for peer, _ in done.failed]
        assert len(set(failed)) == len(failed)
        assert not {self.peer_of[fetch] for fetch in done.fetched} & set(failed)
        if not complete:
            tried = len(current.tried) + current.struck
            assert len(failed) + len(done.fetched) == tried, "everybody tried is accounted for"
        self.round = None

    @invariant()
    def as_many_as_wanted_are_on_their_way(self) -> None:
        current = self.round
        assert (current is None) == (self.collector.wakeup() is None)
        if current is None:
            assert not self.open
            return
        assert self.now < current.deadline
        assert len(self.open) <= 2 * current.fan_out
        assert current.missing > 0
        if current.candidates - current.tried and len(self.open) < 2 * current.fan_out:
            assert self.heard() >= current.missing


TestCollector = CollectorMachine.TestCase
TestCollector.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
