"""Which models to fetch from whom: one round at a time, in parallel, with replacements.

The subset is uniform over the candidates: they are shuffled once and taken in that order. A peer that
fails is replaced by the next; one that is slow keeps its fetch, but another may be asked beside it, and
whoever finishes first counts; one that has gone silent is given up when there is no room beside it. What
is slow, and whose fault it is, `pace` says. A round is always answered, at its deadline at the latest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from p2pfl_net.core.offences import Offences
from p2pfl_net.core.pace import Pace, Transfer
from p2pfl_net.core.params import Params
from p2pfl_net.core.trust import Trust

NOT_TRUSTED = "its models are no longer taken here"


@dataclass(slots=True)
class _Round:
    ask: Ask
    task: TaskDigest
    pace: Pace
    addresses: Mapping[PeerId, tuple[Address, ...]]
    peers: int
    untried: list[PeerId]
    """Shuffled; taken from the end."""
    suspects: list[PeerId]
    """Likewise; untried as long as somebody else may bring a model."""
    busy: list[tuple[float, PeerId]] = field(default_factory=list)
    """When to ask a busy peer again, soonest first."""
    active: dict[FetchId, Transfer] = field(default_factory=dict)
    done: dict[FetchId, PeerId] = field(default_factory=dict)
    failed: dict[PeerId, str] = field(default_factory=dict)
    tried: set[PeerId] = field(default_factory=set)
    draw: frozenset[PeerId] = frozenset()
    """Those from whom the round draws before it turns to the reserve and the suspects."""
    members: int = 0
    """Live peers that may be of the task."""
    link_is_slow: bool = False
    """Whether somebody else was tried and was no faster."""
    most: int = 1
    """Fetches that may run at once."""
    given_up: int = 0
    """Models that the link cannot bring in time."""
    given_up_silent: int = 0
    """Fetches that made room for others."""
    ended_bytes: int = 0
    """What came of fetches that are over."""

    @property
    def missing(self) -> int:
        """How many models are still to come."""
        return self.ask.fan_out - self.given_up - len(self.done)

    @property
    def drawable(self) -> int:
        """From how many those who were asked were drawn at random.

        From no more than themselves, once the round has turned to those that come last: by then all the
        others have been asked, and all liars may be among them.
        """
        return len(self.draw if self.tried <= self.draw else self.tried)

    @property
    def is_full(self) -> bool:
        return len(self.active) >= self.most

    @property
    def heard_of(self) -> int:
        """Fetches under way that are not silent."""
        return sum(not transfer.silent for transfer in self.active.values())


class Collector:
    """The rounds of one peer."""

    def __init__(self, params: Params, random: Random) -> None:
        self._params = params
        self._random = random
        self._round: _Round | None = None
        self._last_fetch = 0
        self.offences = Offences(params)
        self._out: list[Output] = []

    def wakeup(self) -> float | None:
        """When `tick` is due."""
        current = self._round
        if current is None:
            return None
        times = [current.pace.deadline]
        crowded = self._is_crowded(current)
        for transfer in current.active.values():
            if not transfer.silent:
                times.append(transfer.silent_from(self._params.stall_s))
            elif crowded:
                times.append(self._gone_from(current, transfer))
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
        *,
        reserve: Collection[PeerId] = (),
        suspects: Collection[PeerId] = (),
        members: int = 0,
    ) -> list[Output]:
        """Begins a round over `candidates` (peer to addresses); those of the `reserve` come last, and
        `suspects` where nobody else brings anything. An unfinished one is given up: only the latest
        request of the one trainer counts. `members`: how many may be of the task."""
        if self._round is not None:
            self._cancel_all(self._round)
            self._round = None
        if task is None:
            self._out.append(CollectionDone(event.round, (), (), 0, peers, 0.0, undecided=members))
            return self._take_outputs()
        order = self._draw([peer_id for peer_id in candidates if peer_id not in suspects], reserve)
        last = self._draw(suspects, reserve)
        pace = Pace(now, now + event.deadline_s, self._params.stall_s)
        most = min(2 * event.fan_out, self._params.max_fetches)
        draw = frozenset(candidates).difference(reserve, suspects)
        self._round = _Round(
            event, task, pace, candidates, peers, order, last, draw=draw, members=members, most=most
        )
        self._advance(now)
        return self._take_outputs()

    def _draw(self, peer_ids: Collection[PeerId], reserve: Collection[PeerId]) -> list[PeerId]:
        """A random order, to be taken from the end; those of the `reserve` come last."""
        order = sorted(peer_id for peer_id in peer_ids if peer_id not in reserve)
        last = sorted(peer_id for peer_id in peer_ids if peer_id in reserve)
        self._random.shuffle(order)
        self._random.shuffle(last)
        return last + order

    def peer_of(self, fetch: FetchId) -> PeerId | None:
        """Whose model a fetch under way is to bring."""
        transfer = self._active(fetch)
        return None if transfer is None else transfer.peer_id

    def progressed(self, event: FetchProgressed, now: float) -> list[Output]:
        transfer = self._active(event.fetch)
        if transfer is None or self._round is None:
            return []
        transfer.progress(event.received_bytes, event.size_bytes, now)
        self._advance(now)
        return self._take_outputs()

    def finished(self, event: FetchFinished, now: float) -> list[Output]:
        if self._active(event.fetch) is None or self._round is None:
            return []
        transfer = self._round.active.pop(event.fetch)
        self._round.ended_bytes += transfer.size_bytes
        self._round.done[event.fetch] = transfer.peer_id
        self.offences.serves(transfer.peer_id)
        self._advance(now)
        return self._take_outputs()

    def failed(self, event: FetchFailed, now: float) -> list[Output]:
        transfer = self._active(event.fetch)
        if transfer is None or self._round is None:
            return []
        if event.kind is FailureKind.INVALID:
            self._out += self.offences.offend(transfer.peer_id, event.reason, now)
        if event.kind is FailureKind.FORBIDDEN:
            self.offences.refuses(transfer.peer_id, now)
        if event.kind is FailureKind.BUSY:
            self._round.busy.append((now + self._params.busy_retry_s, transfer.peer_id))
        self._drop(self._round, event.fetch, event.reason)
        self._advance(now)
        return self._take_outputs()

    def tick(self, now: float) -> list[Output]:
        current = self._round
        if current is not None:
            for transfer in current.active.values():
                transfer.silent = now >= transfer.silent_from(self._params.stall_s)
            self._advance(now)
        return self._take_outputs()

    def trust_changed(self, trust: Trust, now: float) -> list[Output]:
        """Strikes who is no longer allowed out of the round, also what it has brought already."""
        current = self._round
        if current is None:
            return []
        current.addresses = {peer: a for peer, a in current.addresses.items() if trust.allows(peer)}
        current.untried = [peer_id for peer_id in current.untried if trust.allows(peer_id)]
        current.suspects = [peer_id for peer_id in current.suspects if trust.allows(peer_id)]
        current.busy = [(at, peer_id) for at, peer_id in current.busy if trust.allows(peer_id)]
        for fetch, transfer in list(current.active.items()):
            if not trust.allows(transfer.peer_id):
                self._cancel(current, fetch, NOT_TRUSTED)
        for fetch, peer_id in list(current.done.items()):
            if not trust.allows(peer_id):
                del current.done[fetch]
                self._strike(current, peer_id, NOT_TRUSTED)
                self._out.append(CancelFetch(fetch))
        self._advance(now)
        return self._take_outputs()

    def stop(self) -> list[Output]:
        """Cancels what is under way, without an answer: the next life of the daemon gives it."""
        if self._round is not None:
            self._cancel_all(self._round)
            self._round = None
        return self._take_outputs()

    def _active(self, fetch: FetchId) -> Transfer | None:
        return None if self._round is None else self._round.active.get(fetch)

    def _has_room(self, current: _Round) -> bool:
        """Whether one more fetch may start: in place of one that failed or is silent, or on trial."""
        if current.is_full:
            return False
        return current.heard_of < current.missing or self._may_try_out(current)

    def _may_try_out(self, current: _Round) -> bool:
        """Whether a substitute may show if somebody is faster than those that come too late."""
        pace, transfers = current.pace, current.active.values()
        on_time = sum(not transfer.silent and not pace.is_late(transfer) for transfer in transfers)
        if not current.untried or on_time >= current.missing:
            return False
        return not current.link_is_slow and not any(map(pace.is_on_trial, transfers))

    def _is_crowded(self, current: _Round) -> bool:
        """Whether an untried peer waits for one of the silent to make room."""
        return current.is_full and bool(current.untried) and current.heard_of < current.missing

    def _make_room(self, current: _Round, now: float) -> bool:
        """Gives up the fetch that has been silent longest, if it stands in the way of an untried peer."""
        if not self._is_crowded(current):
            return False
        gone = [
            (transfer.progressed_at, fetch)
            for fetch, transfer in current.active.items()
            if transfer.silent and now >= self._gone_from(current, transfer)
        ]
        if not gone:
            return False
        progressed_at, fetch = min(gone)
        current.given_up_silent += 1
        self._cancel(current, fetch, f"no byte for {now - progressed_at:.3g} s")
        return True

    def _gone_from(self, current: _Round, transfer: Transfer) -> float:
        """When a silent fetch is not waited for any longer if another peer could have its place. The more
        were given up, the longer: perhaps all of them think before they answer."""
        patience_s = self._params.stall_s * (1 + current.given_up_silent / current.ask.fan_out)
        return max(transfer.silent_from(self._params.stall_s), transfer.progressed_at + patience_s)

    def _give_up_hopeless(self, current: _Round, now: float) -> None:
        """Lets the link bring what it can in time, once it is clear that nobody else brings more."""
        pace, transfers = current.pace, current.active
        if self._may_try_out(current) or any(map(pace.is_on_trial, transfers.values())):
            return
        hopeless = pace.hopeless(transfers.values(), current.ended_bytes, now)
        for fetch in [fetch for fetch, transfer in transfers.items() if transfer in hopeless]:
            self._cancel(current, fetch, "too slow for the deadline")
        if hopeless:
            current.given_up += max(0, current.missing - current.heard_of)

    def _cancel(self, current: _Round, fetch: FetchId, reason: str) -> None:
        self._drop(current, fetch, reason)
        self._out.append(CancelFetch(fetch))

    def _drop(self, current: _Round, fetch: FetchId, reason: str) -> None:
        """Strikes a fetch that brought nothing."""
        transfer = current.active.pop(fetch)
        current.ended_bytes += transfer.received_bytes
        self._strike(current, transfer.peer_id, reason)

    def _strike(self, current: _Round, peer_id: PeerId, reason: str) -> None:
        current.failed[peer_id] = reason
        self._out.append(Note("fetch_failed", {"peer": peer_id, "reason": reason}))

    def _advance(self, now: float) -> None:
        """Starts what should run now, and ends the round when it is over."""
        current = self._round
        assert current is not None
        deadline = current.pace.deadline
        current.link_is_slow |= current.pace.is_link_slow(current.active.values())
        self._give_up_hopeless(current, now)
        if not (current.done or current.heard_of or current.untried or current.busy):
            current.untried, current.suspects = current.suspects, []
        while now < deadline and (self._has_room(current) or self._make_room(current, now)):
            is_substitute = current.heard_of >= current.missing
            if current.untried:
                peer_id = current.untried.pop()
            elif current.busy and current.busy[0][0] <= now:
                _, peer_id = current.busy.pop(0)
            else:
                break
            self._fetch(current, peer_id, now, is_substitute=is_substitute)
        exhausted = not (current.active or current.untried or current.busy)
        if current.missing <= 0 or exhausted or now >= deadline:
            self._end(current, now)

    def _fetch(self, current: _Round, peer_id: PeerId, now: float, *, is_substitute: bool) -> None:
        self._last_fetch += 1
        fetch = FetchId(self._last_fetch)
        current.active[fetch] = Transfer(peer_id, now, now, is_substitute)
        current.failed.pop(peer_id, None)
        current.tried.add(peer_id)
        addresses = current.addresses[peer_id]
        timeout_s = current.pace.deadline - now
        self._out.append(Fetch(fetch, current.ask.round, peer_id, addresses, current.task, timeout_s))

    def _end(self, current: _Round, now: float) -> None:
        late = {transfer.peer_id: "too slow for the deadline" for transfer in current.active.values()}
        if current.missing <= 0:
            late = {}
        failed = tuple({**current.failed, **late}.items())
        self._cancel_all(current)
        self._round = None
        self.offences.answered(current.done.values())
        self._out.append(
            CollectionDone(
                round=current.ask.round,
                fetched=tuple(current.done),
                failed=failed,
                candidates=len(current.addresses) - len(current.suspects),
                peers=current.peers,
                seconds=now - current.pace.started,
                drawn=len(current.tried),
                drawable=current.drawable,
                undecided=max(0, current.members - current.drawable),
            )
        )

    def _cancel_all(self, current: _Round) -> None:
        self._out.extend(CancelFetch(fetch) for fetch in current.active)
        current.active.clear()

    def _take_outputs(self) -> list[Output]:
        outputs, self._out = self._out, []
        return outputs
