"""Which models to fetch from whom: one round at a time, in parallel, with replacements.

The subset is uniform over the candidates: they are shuffled once and taken in that order. A peer that
fails is replaced by the next; one that is slow keeps its fetch, but the next is asked beside it, and
whoever finishes first counts; one that has gone silent is given up when there is no room beside it. A
round is always answered, at its deadline at the latest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

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


@dataclass(slots=True)
class _Active:
    """A fetch under way."""

    peer_id: PeerId
    started: float
    progressed_at: float
    slow: bool = False


@dataclass(slots=True)
class _Round:
    ask: Ask
    task: TaskDigest
    started: float
    deadline: float
    addresses: Mapping[PeerId, tuple[Address, ...]]
    peers: int
    untried: list[PeerId]
    """Shuffled; taken from the end."""
    busy: list[tuple[float, PeerId]] = field(default_factory=list)
    """When to ask a busy peer again, soonest first."""
    active: dict[FetchId, _Active] = field(default_factory=dict)
    done: list[FetchId] = field(default_factory=list)
    failed: dict[PeerId, str] = field(default_factory=dict)


class Collector:
    """The rounds of one peer."""

    def __init__(self, params: Params, random: Random) -> None:
        self._params = params
        self._random = random
        self._round: _Round | None = None
        self._last_fetch = 0
        self.offences: Counter[PeerId] = Counter()
        """How often a peer's model was invalid here or refused by the trainer."""
        self._out: list[Output] = []

    def wakeup(self) -> float | None:
        """When `tick` is due."""
        current = self._round
        if current is None:
            return None
        times = [current.deadline]
        crowded = self._is_crowded(current)
        times.extend(
            active.progressed_at + self._params.stall_s
            for active in current.active.values()
            if crowded or not active.slow
        )
        if current.busy and self._has_room(current):
            times.append(current.busy[0][0])
        return min(times)

    def ask(
        self,
        event: Ask,
        task: TaskDigest | None,
        candidates: Mapping[PeerId, tuple[Address, ...]],
        peers: int,
        now: float,
    ) -> list[Output]:
        """Begins a round over `candidates` (peer to addresses). An unfinished one is given up: only the
        latest request of the one trainer counts."""
        for peer_id, reason in event.refused[: self._params.max_refusals_noted]:
            self._offend(peer_id)
            self._out.append(Note("model_refused", {"peer": peer_id, "reason": reason}))
        if self._round is not None:
            self._cancel_all(self._round)
            self._round = None
        if task is None:
            self._out.append(CollectionDone(event.round, (), (), 0, peers, 0.0))
            return self._take_outputs()
        order = sorted(candidates)
        self._random.shuffle(order)
        self._round = _Round(event, task, now, now + event.deadline_s, candidates, peers, order)
        self._advance(now)
        return self._take_outputs()

    def progressed(self, event: FetchProgressed, now: float) -> list[Output]:
        active = self._active(event.fetch)
        if active is None or self._round is None:
            return []
        active.progressed_at = now
        if event.received_bytes > 0:  # the header alone says nothing of the rate
            expected_s = (now - active.started) * event.size_bytes / event.received_bytes
            active.slow = active.started + expected_s > self._round.deadline
        self._advance(now)
        return self._take_outputs()

    def finished(self, event: FetchFinished, now: float) -> list[Output]:
        if self._active(event.fetch) is None or self._round is None:
            return []
        del self._round.active[event.fetch]
        self._round.done.append(event.fetch)
        self._advance(now)
        return self._take_outputs()

    def failed(self, event: FetchFailed, now: float) -> list[Output]:
        active = self._active(event.fetch)
        if active is None or self._round is None:
            return []
        del self._round.active[event.fetch]
        if event.kind is FailureKind.INVALID:
            self._offend(active.peer_id)
        if event.kind is FailureKind.BUSY:
            self._round.busy.append((now + self._params.busy_retry_s, active.peer_id))
        self._round.failed[active.peer_id] = event.reason
        self._out.append(Note("fetch_failed", {"peer": active.peer_id, "reason": event.reason}))
        self._advance(now)
        return self._take_outputs()

    def tick(self, now: float) -> list[Output]:
        current = self._round
        if current is not None:
            for active in current.active.values():
                if now >= active.progressed_at + self._params.stall_s:
                    active.slow = True
            self._advance(now)
        return self._take_outputs()

    def stop(self) -> list[Output]:
        """Cancels what is under way, without an answer: the next life of the daemon gives it."""
        if self._round is not None:
            self._cancel_all(self._round)
            self._round = None
        return self._take_outputs()

    def _active(self, fetch: FetchId) -> _Active | None:
        return None if self._round is None else self._round.active.get(fetch)

    def _offend(self, peer_id: PeerId) -> None:
        if peer_id in self.offences or len(self.offences) < self._params.max_peers:
            self.offences[peer_id] += 1

    def _wants_more(self, current: _Round) -> bool:
        """Whether one more fetch should run beside the slow ones."""
        wanted = current.ask.fan_out - len(current.done)
        return sum(not active.slow for active in current.active.values()) < wanted

    def _has_room(self, current: _Round) -> bool:
        """Whether one more fetch may start: up to twice the fan-out run at once."""
        return self._wants_more(current) and len(current.active) < 2 * current.ask.fan_out

    def _is_crowded(self, current: _Round) -> bool:
        """Whether an untried peer waits for one of the slow to make room."""
        full = len(current.active) >= 2 * current.ask.fan_out
        return full and bool(current.untried) and self._wants_more(current)

    def _make_room(self, current: _Round, now: float) -> bool:
        """Gives up the fetch that has been silent longest, if it stands in the way of an untried peer."""
        if not self._is_crowded(current):
            return False
        silent = [
            (active.progressed_at, fetch)
            for fetch, active in current.active.items()
            if now >= active.progressed_at + self._params.stall_s
        ]
        if not silent:
            return False
        fetch = min(silent)[1]
        peer_id = current.active.pop(fetch).peer_id
        reason = f"no byte for {self._params.stall_s:g} s"
        current.failed[peer_id] = reason
        self._out.append(CancelFetch(fetch))
        self._out.append(Note("fetch_failed", {"peer": peer_id, "reason": reason}))
        return True

    def _advance(self, now: float) -> None:
        """Starts what should run now, and ends the round when it is over."""
        current = self._round
        assert current is not None
        while now < current.deadline and (self._has_room(current) or self._make_room(current, now)):
            if current.untried:
                peer_id = current.untried.pop()
            elif current.busy and current.busy[0][0] <= now:
                _, peer_id = current.busy.pop(0)
            else:
                break
            self._fetch(current, peer_id, now)
        complete = len(current.done) >= current.ask.fan_out
        exhausted = not (current.active or current.untried or current.busy)
        if complete or exhausted or now >= current.deadline:
            self._end(current, now)

    def _fetch(self, current: _Round, peer_id: PeerId, now: float) -> None:
        self._last_fetch += 1
        fetch = FetchId(self._last_fetch)
        current.active[fetch] = _Active(peer_id, now, now)
        current.failed.pop(peer_id, None)
        addresses = current.addresses[peer_id]
        timeout_s = current.deadline - now
        self._out.append(Fetch(fetch, current.ask.round, peer_id, addresses, current.task, timeout_s))

    def _end(self, current: _Round, now: float) -> None:
        late = {active.peer_id: "too slow for the deadline" for active in current.active.values()}
        if len(current.done) >= current.ask.fan_out:
            late = {}
        failed = tuple({**current.failed, **late}.items())
        self._cancel_all(current)
        self._round = None
        self._out.append(
            CollectionDone(
                round=current.ask.round,
                fetched=tuple(current.done),
                failed=failed,
                candidates=len(current.addresses),
                peers=current.peers,
                seconds=now - current.started,
            )
        )

    def _cancel_all(self, current: _Round) -> None:
        self._out.extend(CancelFetch(fetch) for fetch in current.active)
        current.active.clear()

    def _take_outputs(self) -> list[Output]:
        outputs, self._out = self._out, []
        return outputs


def choose_task(
    wanted: TaskDigest | None, offered: Sequence[TaskDigest], random: Random
) -> TaskDigest | None:
    """The task to collect: the one asked for, or that of a random peer that offers one."""
    if wanted is not None:
        return wanted
    return random.choice(offered) if offered else None
