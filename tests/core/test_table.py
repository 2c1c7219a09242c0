"""The peer list as a semilattice, and its bounds."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pfl_net.core.dissemination import Dissemination
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.sampling import PeerSet, ProbeOrder
from p2pfl_net.core.table import Change, Table
from tests.core.strategies import PEERS, rumours

ME = PeerId("f" * 64)
X = PEERS[0]
HOME = (Address("10.0.0.1", 8000),)

Said = dict[PeerId, tuple[int, Status]]


def table(params: Params | None = None) -> Table:
    return Table(ME, params or Params())


def merged(records: list[Record]) -> Said:
    made = table()
    for record in records:
        made.merge(record, 0.0)
    return said_by(made)


def said_by(made: Table) -> Said:
    members = ((peer, made.get(peer)) for peer in PEERS)
    return {peer: (m.record.incarnation, m.record.status) for peer, m in members if m is not None}


@given(st.lists(rumours(), max_size=12), st.randoms(use_true_random=False), st.data())
def test_any_order_and_repetition_ends_in_the_same_list(
    records: list[Record], random: Random, data: st.DataObject
) -> None:
    repeated = data.draw(st.lists(st.sampled_from(records), max_size=5)) if records else []
    shuffled = [*records, *repeated]
    random.shuffle(shuffled)
    naive: Said = {}
    for record in records:
        key = (record.incarnation, record.status)
        naive[record.peer_id] = max(naive.get(record.peer_id, key), key)
    assert merged(records) == merged(shuffled) == naive


@given(st.lists(rumours(), max_size=8), st.lists(rumours(), max_size=8), st.lists(rumours(), max_size=8))
def test_lists_merge_in_any_grouping(a: list[Record], b: list[Record], c: list[Record]) -> None:
    def exported(records: list[Record]) -> list[Record]:
        made = table()
        for record in records:
            made.merge(record, 0.0)
        return [member.record for peer in PEERS if (member := made.get(peer)) is not None]

    assert merged(exported(exported(a) + b) + c) == merged(a + exported(b + exported(c)))


@given(st.lists(rumours(), max_size=12))
def test_the_live_set_is_that_of_the_records(records: list[Record]) -> None:
    made = table()
    for record in records:
        made.merge(record, 0.0)
    live = {peer for peer, (_, status) in said_by(made).items() if status <= Status.SUSPECT}
    assert set(made.live.members()) == live
    assert all(member.addresses() for member in made.live_members())


def test_who_was_only_heard_of_dead_needs_an_address_to_live() -> None:
    made = table()
    made.merge(Record(X, 1, Status.DEAD, ()), 0.0)
    assert made.merge(Record(X, 2, Status.ALIVE, ()), 0.0) is None
    assert not made.is_live(X)
    assert made.merge(Record(X, 2, Status.ALIVE, HOME), 0.0) is Change.JOINED


def test_views_of_one_record_join_their_addresses_up_to_the_bound() -> None:
    made = table(Params(max_addresses=2))
    for port in range(1, 5):
        made.merge(Record(X, 1, Status.ALIVE, (Address("10.0.0.1", port),)), 0.0)
    member = made.get(X)
    assert member is not None
    assert [address.port for address in member.record.addresses] == [1, 2]


def test_a_suspect_is_dead_when_its_time_runs_out_and_forgotten_later() -> None:
    params = Params()
    made = table(params)
    made.merge(Record(X, 1, Status.ALIVE, HOME), 0.0)
    made.merge(Record(X, 1, Status.SUSPECT, HOME), 0.0)
    due = made.next_deadline()
    assert due is not None
    assert made.expire(due - 0.001) == ([], [])
    (dead,), forgotten = made.expire(due)
    assert not forgotten
    assert made.merge(dead, due) is Change.LOST
    assert made.merge(Record(X, 1, Status.ALIVE, HOME), due) is None, "old news revives nobody"
    assert made.expire(due + params.tombstone_s) == ([], [X])
    assert made.get(X) is None


def test_a_refuted_suspicion_never_runs_out() -> None:
    made = table()
    made.merge(Record(X, 1, Status.SUSPECT, HOME), 0.0)
    assert made.merge(Record(X, 2, Status.ALIVE, HOME), 0.0) is Change.REFUTED
    assert made.expire(1e6) == ([], [])
    assert made.is_live(X)


def test_the_table_is_bounded() -> None:
    made = table(Params(max_peers=3))
    for peer in PEERS:
        made.merge(Record(peer, 1, Status.ALIVE, HOME), 0.0)
    assert len(made.live) == 3


def test_a_peer_that_comes_and_goes_forever_costs_no_memory() -> None:
    made = table()
    order = ProbeOrder(Random(0))
    for incarnation in range(5000):
        for status in (Status.ALIVE, Status.SUSPECT, Status.DEAD):
            if made.merge(Record(X, incarnation, status, HOME), 0.0) is Change.JOINED:
                order.add(X)
    assert len(made._deadlines) < 100
    assert len(order._queue) == 1
    made.expire(1e6)
    assert made.get(X) is None


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_everybody_gets_a_turn_within_two_rounds(count: int, seed: int) -> None:
    order = ProbeOrder(Random(seed))
    live = PeerSet()
    for number in range(count):
        live.add(PeerId(f"{number:064x}"))
    probed = [order.next(live.members(), live.__contains__) for _ in range(2 * count - 1)]
    assert set(probed) == set(live.members())


def test_whose_turn_comes_first_is_chance() -> None:
    first: Counter[PeerId | None] = Counter()
    for seed in range(400):
        order = ProbeOrder(Random(seed))
        first[order.next(PEERS, lambda peer: True)] += 1
    assert set(first) == set(PEERS)
    assert min(first.values()) > 50, "100 each on average; five standard deviations are 43"


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(PEERS))))
def test_a_peer_set_is_a_set(steps: list[tuple[bool, PeerId]]) -> None:
    peers, naive = PeerSet(), set[PeerId]()
    for add, peer in steps:
        (peers.add if add else peers.discard)(peer)
        (naive.add if add else naive.discard)(peer)
        assert set(peers.members()) == naive
        assert len(peers) == len(naive)
        assert set(peers.sample(9, Random(0))) == naive


def test_news_of_the_forgotten_is_dropped() -> None:
    """However fast a liar makes peers up and declares them dead, the buffer is bounded by the table."""
    params = Params()
    known = Dissemination(Record(ME, 1, Status.ALIVE, HOME), params, Random(0), [])
    for peer in PEERS:
        known.merge(Record(peer, 1, Status.ALIVE, HOME), 0.0)
        known.merge(Record(peer, 1, Status.DEAD, HOME), 0.0)
    assert len(known.news(to_loopback=True)) == len(PEERS)
    known.expire(params.tombstone_s)
    assert known.news(to_loopback=True) == ()
