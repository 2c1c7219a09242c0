"""What the daemon writes into its directory by itself: its log, and what it begins a life with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from p2pfl_state import atomic
from p2pfl_state.layout import StateDir

from p2pfl_net.core.messages import MAX_INCARNATION
from p2pfl_net.runtime.statedir import (
    INCARNATIONS_UNSAVED,
    MAX_COMINGS,
    EventLog,
    first_incarnation,
)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def test_invented_peers_do_not_fill_the_log(state: StateDir) -> None:
    log = EventLog(state, lambda: 1.0)
    for number in range(3 * MAX_COMINGS):
        log.append("peer_joined", {"peer": number})
        log.append("peer_left", {"peer": number})
    log.append("model_served", {"peer": "somebody"})
    log.close()
    events = [event["event"] for event in atomic.read_json_lines(state.events)]
    assert MAX_COMINGS <= len(events) < 2 * MAX_COMINGS
    assert events[-1] == "model_served", "nothing else is left out"


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, 1000),
        (500, 1000),
        (990, 990 + INCARNATIONS_UNSAVED),
        (5000, 5000 + INCARNATIONS_UNSAVED),
        (MAX_INCARNATION, 1000),
        ("1", 1000),
    ],
)
def test_a_life_begins_above_all_that_the_one_before_has_said(
    state: StateDir, listed: object, expected: int
) -> None:
    if listed is not None:
        state.peers.write_text(json.dumps({"self": {"incarnation": listed}, "peers": []}))
    assert first_incarnation(state, 1000.9) == expected


def test_a_damaged_list_says_nothing(state: StateDir) -> None:
    state.peers.write_bytes(b"[")
    assert first_incarnation(state, 1000.0) == 1000
