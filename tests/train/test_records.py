"""Reading a state directory's past: foreign and torn lines, names, known peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state import atomic
from p2pfl_state.layout import StateDir

from p2pfl_train.plots.records import KnownPeers, parse_cycle, read_histories
from tests.train.synthetic_run import START, write_lines

GOOD = {"time": START, "cycle": 3, "accuracy_averaged": 0.5, "collection_seconds": 0.1, "network_peers": 4}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    "change",
    [
        {"time": None},
        {"time": "now"},
        {"time": True},
        {"time": -1.0},
        {"cycle": None},
        {"cycle": 1.5},
        {"cycle": [1]},
        {"accuracy_averaged": "0.5"},
        {"accuracy_averaged": 1.5},
        {"accuracy_averaged": float("nan")},
        {"collection_seconds": 10**400},
        {"seconds_waiting": float("inf")},
        {"network_peers": False},
        {"asked": 1.5},
    ],
    ids=str,
)
def test_a_foreign_line_is_passed_over(change: dict[str, Any]) -> None:
    assert parse_cycle(GOOD) is not None
    assert parse_cycle({**GOOD, **change}) is None


def test_missing_and_null_are_none() -> None:
    line = parse_cycle({"time": START, "cycle": 1, "accuracy_trained": None})
    assert line is not None
    assert (line.accuracy_trained, line.accuracy_averaged, line.collection_s, line.models) == (None,) * 4
    assert (line.asked, line.answered, line.failed, line.accounted_s) == (0, 0, 0, 0.0)


FIELDS = (*GOOD, "final", "models", "seconds_training", "answered")


@given(st.lists(st.tuples(st.sampled_from(FIELDS), JSON), max_size=6).map(dict))
def test_no_line_is_a_crash(record: dict[str, Any]) -> None:
    line = parse_cycle(record)
    assert line is None or line.time >= 0


def test_torn_and_nested_lines_between_good_ones(tmp_path: Path) -> None:
    lines = [
        json.dumps(GOOD),
        "[" * 100_000,
        "\x00\xff",
        "[1]",
        "",
        json.dumps({**GOOD, "cycle": 4}),
        '{"time": 1',
    ]
    StateDir(tmp_path).metrics.write_text("\n".join(lines), encoding="latin-1")
    (history,) = read_histories([tmp_path])
    assert [line.cycle for line in history.cycles] == [3, 4]


def test_lines_are_in_order_of_time_and_finals_apart(tmp_path: Path) -> None:
    final = {"time": START + 9, "final": True, "accuracy_averaged": 0.9}
    write_lines(tmp_path, [{**GOOD, "time": START + 5, "cycle": 5}, final, GOOD], [])
    (history,) = read_histories([tmp_path])
    assert [line.cycle for line in history.cycles] == [3, 5]
    assert [line.accuracy_averaged for line in history.finals] == [0.9]


def test_names_tell_directories_apart(tmp_path: Path) -> None:
    roots = [
        write_lines(tmp_path / host / port, [GOOD], []) for host, port in (("a", "1"), ("b", "1"), ("a", "2"))
    ]
    twice = [*roots, tmp_path / "b" / ".." / "a" / "1"]
    assert [history.name for history in read_histories(twice)] == ["a/1", "b/1", "2"]


def test_events_without_membership_only_say_when_the_daemon_began(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"time": START, "event": "started"},
        {"time": START + 1, "event": "peer_joined", "peers": 1},
        {"time": START + 2, "event": "peer_joined", "peers": "many"},
        {"time": START + 3, "event": "refused", "peers": 9},
        {"event": "peer_lost", "peers": 0},
    ]
    write_lines(tmp_path, [], events)
    (history,) = read_histories([tmp_path])
    assert history.known == (KnownPeers(START, 0), KnownPeers(START + 1, 1, joined=True))


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (
            {"peers": [{"state": "alive"}, {"state": "SUSPECT"}, {"state": "dead"}, 7]},
            (KnownPeers(START, 2),),
        ),
        ({"peers": 3}, ()),
        ({}, ()),
    ],
)
def test_peers_json_stands_in_for_lost_events(
    content: dict[str, Any], known: tuple[KnownPeers, ...], tmp_path: Path
) -> None:
    write_lines(tmp_path, [GOOD], [])
    atomic.write_json(StateDir(tmp_path).peers, content)
    (history,) = read_histories([tmp_path])
    assert history.known == known
    StateDir(tmp_path).peers.write_bytes(b"{torn")
    assert read_histories([tmp_path])[0].known == ()
