"""Whom a round may ask: nobody can steer the choice by talking much."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from p2pfl_net.core.candidates import candidates
from p2pfl_net.core.collect import Collector
from p2pfl_net.core.events import Ask, Fetch
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.table import Table

PARAMS = Params()
TASK = TaskDigest("7" * 64)
ME = Record(PeerId("f" * 64), 1, Status.ALIVE, (), TASK, published=True)
FAN_OUT = 3
ASK = Ask(1, FAN_OUT, 10.0, TASK)
LIAR = "10.6.6.6"
BOOT = "10.0.0.1"


def numbered(number: int) -> PeerId:
    return PeerId(f"{number:064x}")


def record(number: int, *, task: TaskDigest = TASK, tags: tuple[str, ...] = ()) -> Record:
    address = Address(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 8000)
    return Record(numbered(number), 1, Status.ALIVE, (address,), task, published=True, tags=tags)


def table_of(*records: Record, source: str | None = None, verified: bool = True) -> Table:
    made = Table(ME.peer_id, PARAMS, Random(0), on_forgotten=lambda peer_id: None)
    tell(made, *records, source=source, verified=verified)
    return made


def tell(table: Table, *records: Record, source: str | None, verified: bool = False) -> None:
    for told in records:
        table.merge(told, 0.0, source=source)
        if verified:
            table.verify(told.peer_id)


def first_asked(table: Table, seed: int) -> list[PeerId]:
    """Whom a round asks at once, as the daemon's node begins it."""
    chosen = candidates(ASK, ME, table, PARAMS, Random(seed))
    outputs = Collector(PARAMS, Random(-seed - 1)).ask(
        ASK,
        chosen.task,
        chosen.addresses,
        len(table.live),
        0.0,
        reserve=chosen.reserve,
        suspects=chosen.suspects,
    )
    return [output.peer_id for output in outputs if isinstance(output, Fetch)]


def chi_square(drawn: Counter[PeerId], expected: float, peers: int) -> float:
    return sum((drawn[numbered(n)] - expected) ** 2 / expected for n in range(1, peers + 1))


@pytest.mark.parametrize("verified", [True, False], ids=["called", "heard of from one boot peer"])
def test_the_choice_is_uniform_over_the_live_peers_of_the_task(verified: bool) -> None:
    count, rounds = 30, 1500
    table = table_of(*map(record, range(1, count + 1)), source=BOOT, verified=verified)
    tell(table, record(99, task=TaskDigest("8" * 64)), source=None)
    drawn = Counter(peer for seed in range(rounds) for peer in first_asked(table, seed))
    assert sum(drawn.values()) == rounds * FAN_OUT
    assert set(drawn) == set(map(numbered, range(1, count + 1)))
    assert chi_square(drawn, rounds * FAN_OUT / count, count) < count + 6 * (2 * count) ** 0.5


def test_a_liar_with_a_thousand_neighbours_gets_no_more_than_its_share() -> None:
    """Of 30 honest peers that were called, 30 stay; of a thousand inventions, twice the fan-out."""
    honest, rounds = 30, 1500
    table = table_of(*map(record, range(1, honest + 1)))
    tell(table, *map(record, range(1000, 2000)), source=LIAR)
    share = PARAMS.collected_hearsay * FAN_OUT
    drawn = Counter(peer for seed in range(rounds) for peer in first_asked(table, seed))
    expected = rounds * FAN_OUT / (honest + share)
    assert chi_square(drawn, expected, honest) < honest + 6 * (2 * honest) ** 0.5
    lies = sum(drawn[numbered(number)] for number in range(1000, 2000))
    assert abs(lies - share * expected) < 6 * (share * expected) ** 0.5


def test_a_record_counts_in_full_once_its_peer_was_called() -> None:
    table = table_of(*map(record, range(1, 41)), source=BOOT, verified=False)
    assert len(candidates(ASK, ME, table, PARAMS, Random(0)).reserve) == 40 - 2 * FAN_OUT
    for number in range(1, 41):
        table.verify(numbered(number))
    assert candidates(ASK, ME, table, PARAMS, Random(0)).reserve == frozenset()


def test_whom_an_operator_named_may_tell_of_a_whole_network() -> None:
    table = table_of(*map(record, range(1, 401)), source=BOOT, verified=False)
    table.hearsay.trust(BOOT)
    chosen = candidates(ASK, ME, table, PARAMS, Random(0))
    assert (len(chosen.addresses), chosen.reserve, chosen.members) == (400, frozenset(), 400)


def test_of_whom_a_share_may_lie() -> None:
    """All that may be of the task; the liars may be those that can be drawn."""
    silent = [replace(record(number), published=False, task=None) for number in range(100, 200)]
    table = table_of(*map(record, range(1, 11)), *silent[:30])
    tell(table, *silent[30:], source=LIAR)
    tell(table, *map(record, range(200, 300)), source=BOOT)
    table.hearsay.trust(BOOT)
    tell(table, *(record(number, task=TaskDigest("8" * 64)) for number in range(300, 310)), source=None)
    refusing, distrusted = set(map(numbered, range(1, 8))), numbered(8)
    chosen = candidates(
        ASK, ME, table, PARAMS, Random(0), lambda peer_id: peer_id != distrusted, lambda p: p not in refusing
    )
    assert set(chosen.addresses) == set(map(numbered, [9, 10, *range(200, 300)]))
    assert chosen.members == 9 + 30 + PARAMS.collected_hearsay * FAN_OUT + 100


@pytest.mark.parametrize(
    ("mine", "theirs", "fits"),
    [
        ((), (), True),
        ((), ("vision",), True),
        (("vision",), (), False),
        (("vision",), ("mnist", "vision"), True),
        (("mnist", "vision"), ("vision",), False),
    ],
)
def test_only_peers_with_all_of_our_tags(mine: tuple[str, ...], theirs: tuple[str, ...], fits: bool) -> None:
    me = Record(ME.peer_id, 1, Status.ALIVE, (), TASK, published=True, tags=mine)
    chosen = candidates(ASK, me, table_of(record(1, tags=theirs)), PARAMS, Random(0))
    assert (numbered(1) in chosen.addresses) is fits
