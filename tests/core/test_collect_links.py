"""The collector behind links of a hospital's kind: slow, shared, or with a peer among them that is slower."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from random import Random

import pytest

from p2pfl_net.core.collect import Collector
from p2pfl_net.core.events import (
    Ask,
    CancelFetch,
    CollectionDone,
    Fetch,
    FetchFinished,
    FetchId,
    FetchProgressed,
    Output,
)
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.params import Params
from p2pfl_net.wire.models import chunk_sizes

TASK = TaskDigest("7" * 64)
MBIT = 1e6 / 8
MODEL_BYTES = 6_500_000
STEP_S = 0.02


@dataclass
class Flow:
    """One fetch: what has come, and where its chunks end."""

    peer: PeerId
    header_at: float
    chunk_ends: list[int]
    received: float = 0.0
    told: int = 0
    header_told: bool = False


class Link:
    """Our link, shared fairly by all fetches, each bounded by what its own peer can send."""

    def __init__(
        self,
        rate: float,
        peers: int,
        *,
        fan_out: int = 5,
        deadline_s: float,
        uplinks: dict[int, float] | None = None,
        header_s: float = 0.1,
        size_bytes: int = MODEL_BYTES,
    ) -> None:
        self.rate, self.size_bytes, self.header_s = rate, size_bytes, header_s
        ids = [PeerId(f"{number:064x}") for number in range(peers)]
        self.uplinks = {ids[number]: uplink for number, uplink in (uplinks or {}).items()}
        self.collector = Collector(Params(), Random(1))
        self.flows: dict[FetchId, Flow] = {}
        self.done: CollectionDone | None = None
        self.now = 0.0
        addresses = {peer: (Address("10.0.0.1", 8000),) for peer in ids}
        self.take(self.collector.ask(Ask(1, fan_out, deadline_s, TASK), TASK, addresses, peers, 0.0))

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Fetch():
                    ends, end = [], 0
                    for size in chunk_sizes(0, self.size_bytes):
                        end += size
                        ends.append(end)
                    self.flows[output.fetch] = Flow(output.peer_id, self.now + self.header_s, ends)
                case CancelFetch():
                    del self.flows[output.fetch]
                case CollectionDone():
                    self.done = output
                case _:
                    pass

    def step(self) -> None:
        self.now += STEP_S
        flowing = [flow for flow in self.flows.values() if flow.header_at <= self.now]
        share = self.rate / max(1, len(flowing))
        for flow in flowing:
            flow.received += STEP_S * min(share, self.uplinks.get(flow.peer, share))
        for fetch, flow in list(self.flows.items()):
            if fetch in self.flows and flow.header_at <= self.now:
                self.tell(fetch, flow)
        wakeup = self.collector.wakeup()
        if wakeup is not None and wakeup <= self.now:
            self.take(self.collector.tick(self.now))

    def tell(self, fetch: FetchId, flow: Flow) -> None:
        whole = max((end for end in flow.chunk_ends if end <= flow.received), default=0)
        if whole >= self.size_bytes:
            del self.flows[fetch]
            self.take(self.collector.finished(FetchFinished(fetch), self.now))
        elif whole > flow.told or not flow.header_told:
            flow.told, flow.header_told = whole, True
            self.take(self.collector.progressed(FetchProgressed(fetch, whole, self.size_bytes), self.now))

    def run(self) -> CollectionDone:
        for _ in count():
            if self.done is not None:
                return self.done
            self.step()
        raise AssertionError


@pytest.mark.parametrize("peers", [5, 10, 50])
@pytest.mark.parametrize(("mbit", "deadline_s"), [(16, 30.0), (10, 60.0), (2, 400.0), (100, 10.0)])
def test_what_a_shared_link_can_bring_in_time_is_brought(mbit: int, deadline_s: float, peers: int) -> None:
    done = Link(mbit * MBIT, peers, deadline_s=deadline_s).run()
    assert len(done.fetched) == 5
    assert done.seconds <= 1.5 * (5 * MODEL_BYTES / (mbit * MBIT)) + 1.0


@pytest.mark.parametrize("peers", [5, 10, 50])
@pytest.mark.parametrize(("mbit", "deadline_s"), [(16, 10.0), (20, 10.0), (24, 10.0), (26, 10.0), (8, 30.0)])
def test_where_the_time_is_too_short_for_all_most_of_what_fits_comes(
    mbit: int, deadline_s: float, peers: int
) -> None:
    at_best = int(deadline_s * mbit * MBIT / MODEL_BYTES)
    fetched = len(Link(mbit * MBIT, peers, deadline_s=deadline_s).run().fetched)
    assert at_best - 2 <= fetched <= at_best


@pytest.mark.parametrize("slow", [1, 2, 4])
def test_peers_with_slow_links_are_replaced(slow: int) -> None:
    uplinks = dict.fromkeys(range(slow), 0.1 * MBIT)
    done = Link(1000 * MBIT, 20, fan_out=5, deadline_s=30.0, uplinks=uplinks).run()
    assert len(done.fetched) == 5
    assert done.seconds < 30.0


@pytest.mark.parametrize("peers", [5, 50])
def test_peers_that_all_think_for_a_while_are_waited_for(peers: int) -> None:
    done = Link(100 * MBIT, peers, fan_out=2, deadline_s=20.0, header_s=5.0).run()
    assert len(done.fetched) == 2
