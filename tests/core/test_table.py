"""The peer list as a semilattice, and its bounds."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl_net.core.dissemination import Dissemination
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.roster import Roster
from p2pfl_net.core.table import Change, Table
from tests.core.strategies import PEERS, rumours

ME = PeerId("f" * 64)
X = PEERS[0]
HOME = (Address("10.0.0.1", 8000),)

Said = dict[PeerId, tuple[int, Status]]


def table(params: Params | None = None) -> Table:
    return Table(ME, params or Params(), Random(0), on_forgotten=lambda peer_id: None)


def merged(records: list[Record]) -> Said:
    made = table()
    for record in records:
        made.merge(record, 0.0)
    return said_by(made)


def said_by(made: Table) -> Said:
    records = ((peer, made.get(peer)) for peer in PEERS)
    return {peer: (r.incarnation, r.status) for peer, r in records if r is not None}


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
        return [held for peer in PEERS if (held := made.get(peer)) is not None]

    assert merged(exported(exported(a) + b) + c) == merged(a + exported(b + exported(c)))


@given(st.lists(rumours(), max_size=12))
def test_the_live_set_is_that_of_the_records(records: list[Record]) -> None:
    made = table()
    for record in records:
        made.merge(record, 0.0)
    live = {peer for peer, (_, status) in said_by(made).items() if status <= Status.SUSPECT}
    assert set(made.live.members()) == live
    assert all(made.addresses(record.peer_id) for record in made.live_records())


@given(st.lists(rumours(), max_size=12), rumours())
def test_what_it_has_is_no_news(records: list[Record], record: Record) -> None:
    made = table()
    for earlier in records:
        made.merge(earlier, 0.0)
    held = made.get(record.peer_id)
    had = made.has(record)
    change = made.merge(record, 0.0)
    if had:
        assert (change, made.get(record.peer_id)) == (None, held)


def test_who_was_just_probed_gets_no_last_chance_from_the_same_probe() -> None:
    params = Params()
    made = table(params)
    made.merge(Record(X, 1, Status.ALIVE, HOME), 0.0)
    made.merge(Record(X, 1, Status.SUSPECT, HOME), 0.0)
    made.witness(X, 0, refused=True)
    due = made.next_deadline()
    assert due is not None
    (dead,), doubtful = made.expire(due)
    assert (dead.peer_id, doubtful) == (X, [])


def test_who_was_only_heard_of_dead_needs_an_address_to_live() -> None:
    made = table()
    made.merge(Record(X, 1, Status.DEAD, ()), 0.0)
    assert made.merge(Record(X, 2, Status.ALIVE, ()), 0.0) is None
    assert not made.is_live(X)
    assert made.merge(Record(X, 2, Status.ALIVE, HOME), 0.0) is Change.JOINED


def test_of_two_views_of_a_record_the_fuller_stays() -> None:
    near = Address("127.0.0.1", 8000)
    elsewhere, here = (Record(X, 1, Status.ALIVE, addresses) for addresses in (HOME, (near, *HOME)))
    for views in ((elsewhere, here), (here, elsewhere)):
        made = table()
        for view in views:
            made.merge(view, 0.0)
        assert made.get(X) is here
    other = Record(X, 1, Status.ALIVE, (Address("10.0.0.1", 1),))
    assert made.merge(other, 0.0) is None, "nobody has two records of one incarnation"


def test_loopback_addresses_outlive_records_that_cannot_tell_them() -> None:
    near, moved = Address("127.0.0.1", 8000), Address("10.0.0.1", 9000)
    made = table(Params(max_addresses=2))
    made.merge(Record(X, 1, Status.ALIVE, (*HOME, near)), 0.0)
    newer = Record(X, 2, Status.ALIVE, HOME)
    made.merge(newer, 0.0)
    assert made.get(X) is newer, "it is passed on as it came"
    assert set(made.addresses(X)) == {*HOME, near}
    made.merge(Record(X, 3, Status.ALIVE, HOME), 0.0, whole=True)
    assert made.addresses(X) == HOME
    made.merge(Record(X, 4, Status.ALIVE, (*HOME, near)), 0.0)
    made.merge(Record(X, 5, Status.ALIVE, (moved,)), 0.0)
    assert made.addresses(X) == (moved,), "at another port lives another life"
    for incarnation, whole in ((6, False), (7, True)):
        made.merge(Record(X, incarnation, Status.ALIVE, ()), 0.0, whole=whole)
        assert made.addresses(X) == (moved,)


def test_a_suspect_is_dead_when_its_time_runs_out_and_forgotten_later() -> None:
    params = Params()
    made = table(params)
    made.merge(Record(X, 1, Status.ALIVE, HOME), 0.0)
    made.merge(Record(X, 1, Status.SUSPECT, HOME), 0.0)
    last_chance = made.next_deadline()
    assert last_chance is not None
    assert made.expire(last_chance - 0.001) == ([], [])
    assert made.expire(last_chance) == ([], [X]), "it is probed once more"
    due = made.next_deadline()
    assert due is not None
    assert due >= last_chance + params.probe_s
    assert made.expire(due - 0.001) == ([], [])
    (dead,), _ = made.expire(due)
    assert made.merge(dead, due) is Change.LOST
    assert made.merge(Record(X, 1, Status.ALIVE, HOME), due) is None, "old news revives nobody"
    assert made.expire(due + params.tombstone_s) == ([], [])
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
    for incarnation in range(5000):
        for status in (Status.ALIVE, Status.SUSPECT, Status.DEAD):
            made.merge(Record(X, incarnation, status, HOME), 0.0)
    assert len(made._deadlines) < 100
    assert len(made.live._order) <= 1
    made.expire(1e6)
    assert made.get(X) is None


def roster(count: int, seed: int) -> Roster:
    return Roster(Random(seed), [PeerId(f"{number:064x}") for number in range(count)])


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_everybody_gets_a_turn_within_two_rounds(count: int, seed: int) -> None:
    made = roster(count, seed)
    turns = [made.next_turn() for _ in range(2 * count - 1)]
    assert set(turns) == set(made.members())
    assert all(turns.count(peer) <= 2 for peer in made.members())


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 2**32))
def test_the_order_of_turns_stays_as_peers_come(count: int, newcomers: int, seed: int) -> None:
    made = roster(count, seed)
    first = [made.next_turn() for _ in range(count)]
    assert [made.next_turn() for _ in range(count)] == first
    come = [PeerId(f"{number:064x}") for number in range(count, count + newcomers)]
    for peer in come:
        made.add(peer)
    turns = [made.next_turn() for _ in range(2 * (count + newcomers))]
    second = turns[-count - newcomers :]
    assert sorted(map(str, second)) == sorted(made.members())
    old = [peer for peer in second if peer not in come]
    start = first.index(old[0])
    assert old == first[start:] + first[:start]


def test_whose_turn_comes_first_is_chance() -> None:
    first = Counter(Roster(Random(seed), PEERS).next_turn() for seed in range(400))
    assert set(first) == set(PEERS)
    assert min(first.values()) > 50, "100 each on average; five standard deviations are 43"


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(PEERS), st.booleans())))
def test_a_roster_is_a_set(steps: list[tuple[bool, PeerId, bool]]) -> None:
    made, naive = Roster(Random(0)), set[PeerId]()
    for add, peer, turn in steps:
        if add and peer not in naive:
            made.add(peer)
            naive.add(peer)
        if not add and peer in naive:
            made.discard(peer)
            naive.discard(peer)
        if turn:
            drawn = made.next_turn()
            assert drawn in naive or (drawn is None and not naive)
        assert set(made.members()) == naive
        assert len(made) == len(naive) == len(list(made.members()))
        assert set(made.sample(9)) == naive
        assert set(made.sample(9, without=(X,))) == naive - {X}


@pytest.mark.parametrize("count", [4, 200], ids=["few: listed", "many: drawn until they fit"])
def test_samples_are_uniform(count: int) -> None:
    """Chi-square over how often each peer is drawn, three at a time, with some removed."""
    made = roster(count, 7)
    out = [PeerId(f"{number:064x}") for number in range(count // 4)]
    for peer in out:
        made.discard(peer)
    eligible = count - len(out)
    draws = 100 * eligible
    drawn = Counter(peer for _ in range(draws) for peer in made.sample(3))
    assert not set(out) & set(drawn)
    expected = draws * min(3, eligible) / eligible
    statistic = sum((drawn[peer] - expected) ** 2 / expected for peer in made.members())
    assert statistic < eligible + 6 * (2 * eligible) ** 0.5


def test_hearsay_of_one_machine_is_bounded_and_that_of_others_is_not() -> None:
    params = Params(max_hearsay=5)
    made = table(params)
    for number in range(50):
        lie = Record(PeerId(f"{number:064x}"), 1, Status.ALIVE, HOME)
        made.merge(lie, 0.0, source="10.6.6.6")
    assert len(made.live) == params.max_hearsay
    assert made.merge(Record(ME[:-1] + "0", 1, Status.ALIVE, HOME), 0.0, source="10.1.1.1") is Change.JOINED  # type: ignore[arg-type]


def test_in_a_full_table_whoever_brought_most_makes_room() -> None:
    params = Params(max_hearsay=8, max_peers=10)
    made = table(params)
    for number in range(8):
        made.merge(Record(PeerId(f"{number:064x}"), 1, Status.ALIVE, HOME), 0.0, source="10.6.6.6")
    honest = [PeerId(f"{number:064x}") for number in range(100, 106)]
    for number, peer in enumerate(honest):
        made.merge(Record(peer, 1, Status.ALIVE, HOME), 0.0, source=f"10.1.1.{number}")
    assert all(made.is_live(peer) for peer in honest)
    assert len(made.live) == params.max_peers


def test_who_was_called_counts_against_nobody() -> None:
    made = table(Params(max_hearsay=1))
    for number in range(10):
        peer = PeerId(f"{number:064x}")
        assert made.merge(Record(peer, 1, Status.ALIVE, HOME), 0.0, source="10.6.6.6") is Change.JOINED
        assert made.hearsay.source(peer) == "10.6.6.6"
        made.verify(peer)
        assert made.hearsay.source(peer) is None
    assert len(made.live) == 10


def test_a_caller_from_its_own_address_is_its_own_source() -> None:
    made = table()
    made.merge(Record(X, 1, Status.ALIVE, HOME), 0.0, source="10.6.6.6")
    made.vouch(X, "10.9.9.9")
    assert made.hearsay.source(X) == "10.6.6.6", "that is not where it lives"
    made.vouch(X, HOME[0].host)
    assert made.hearsay.source(X) == HOME[0].host


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
