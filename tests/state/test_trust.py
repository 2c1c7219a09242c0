"""Decisions on peers and requests for them: bounded, checked, never lost and never replaced when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state import trust
from p2pfl_state.errors import DirectoryInUse, MalformedFile, UnknownContract
from p2pfl_state.layout import StateDir
from p2pfl_state.trust import (
    Decision,
    Link,
    TrustFile,
    TrustRequest,
    change_trust,
    read_links,
    read_requests,
    read_trust,
)

ID, OTHER = "a" * 64, "b" * 64
MADE = Decision(1000.5, "a colleague")
SOUND: dict[str, Any] = {"contract": 1, "approved": {ID: {"time": 1.5, "note": None}}, "revoked": {}}
ASKING: dict[str, Any] = {"peer_id": ID, "time": 1.5, "address": "10.0.0.1", "reason": "please"}

ids = st.sampled_from([ID, OTHER, "c" * 64])


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def approving(peer_id: str) -> Callable[[TrustFile], TrustFile]:
    return lambda decided: decided.approve(peer_id, MADE)


def test_nothing_is_decided_where_there_is_no_file(state: StateDir) -> None:
    assert read_trust(state) == TrustFile()
    assert read_requests(state) == ()


def test_what_was_decided_is_read_again(state: StateDir) -> None:
    change_trust(state, approving(ID))
    change_trust(state, lambda decided: decided.revoke(OTHER, Decision(2.0)))
    assert read_trust(state) == TrustFile({ID: MADE}, {OTHER: Decision(2.0)})


@given(st.lists(st.tuples(st.booleans(), ids)))
def test_the_last_decision_on_a_peer_counts(made: list[tuple[bool, str]]) -> None:
    decided = TrustFile()
    for is_approval, peer_id in made:
        decided = (decided.approve if is_approval else decided.revoke)(peer_id, MADE)
    last = {peer_id: is_approval for is_approval, peer_id in made}
    assert set(decided.approved) == {peer_id for peer_id, is_approval in last.items() if is_approval}
    assert set(decided.revoked) == {peer_id for peer_id, is_approval in last.items() if not is_approval}


def test_fields_of_a_newer_program_are_kept(state: StateDir) -> None:
    state.trust.write_text(json.dumps({**SOUND, "mine": [1]}))
    change_trust(state, approving(OTHER))
    assert json.loads(state.trust.read_bytes())["mine"] == [1]


def test_commands_at_the_same_time_lose_nothing(state: StateDir) -> None:
    wanted = [f"{number:064x}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda peer_id: change_trust(state, approving(peer_id)), wanted))
    assert sorted(read_trust(state).approved) == wanted


def test_a_command_that_hangs_is_not_waited_for_without_end(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "LOCK_PATIENCE_S", 0.0)

    def change(decided: TrustFile) -> TrustFile:
        with pytest.raises(DirectoryInUse, match="try again"):
            change_trust(state, approving(OTHER))
        return decided

    change_trust(state, change)
    change_trust(state, approving(ID))
    assert set(read_trust(state).approved) == {ID}


DAMAGED: dict[str, Any] = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "no decisions": {"contract": 1},
    "no id": {**SOUND, "approved": {"../../etc/passwd": {"time": 1.0}}},
    "an id in capitals": {**SOUND, "approved": {"A" * 64: {"time": 1.0}}},
    "no time": {**SOUND, "revoked": {OTHER: {}}},
    "a time that is none": {**SOUND, "revoked": {OTHER: {"time": "now"}}},
    "a note that clears the terminal": {**SOUND, "revoked": {OTHER: {"time": 1.0, "note": "\x1b[2J"}}},
    "a note in lines": {**SOUND, "revoked": {OTHER: {"time": 1.0, "note": "a\nb"}}},
    "a note that is a number": {**SOUND, "revoked": {OTHER: {"time": 1.0, "note": 7}}},
    "a long note": {**SOUND, "revoked": {OTHER: {"time": 1.0, "note": "x" * 501}}},
    "both at once": {**SOUND, "revoked": {ID: {"time": 1.0}}},
    "too many": {**SOUND, "approved": {f"{n:064x}": {"time": 1.0} for n in range(20_001)}},
    "more than a file may hold": b" " * (17 << 20),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_and_left_as_it_is(state: StateDir, name: str) -> None:
    content = DAMAGED[name]
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    state.trust.write_bytes(data)
    for attempt in (read_trust, lambda where: change_trust(where, approving(OTHER))):
        with pytest.raises(MalformedFile) as caught:
            attempt(state)
        assert str(state.trust) in str(caught.value)
        assert str(caught.value).isprintable()
    assert state.trust.read_bytes() == data


def test_another_contract_is_refused() -> None:
    with pytest.raises(UnknownContract):
        TrustFile.parse(json.dumps({**SOUND, "contract": 99}).encode())


def test_more_decisions_than_are_allowed_are_not_written(state: StateDir) -> None:
    everybody = {f"{n:064x}": MADE for n in range(trust.MAX_DECISIONS)}
    change_trust(state, lambda decided: TrustFile(everybody, {}))
    with pytest.raises(MalformedFile, match="more than"):
        change_trust(state, lambda decided: decided.revoke(ID, MADE))
    assert len(read_trust(state).approved) == trust.MAX_DECISIONS


# requests ------------------------------------------------------------------------------------------


def test_requests_are_read_in_their_order(state: StateDir) -> None:
    asking = [TrustRequest(peer_id, 1.0, "::1", "let me in") for peer_id in (OTHER, ID)]
    trust.write_requests(state, asking)
    assert read_requests(state) == tuple(asking)


@pytest.mark.parametrize(
    "change",
    [
        {"peer_id": "x"},
        {"reason": ""},
        {"reason": " "},
        {"reason": "\x9b31m"},
        {"reason": "a\u2028b"},
        {"reason": "x" * 501},
        {"address": "\x07"},
        {"address": "x" * 65},
        {"time": None},
    ],
    ids=repr,
)
def test_a_request_that_is_none_is_refused(state: StateDir, change: dict[str, object]) -> None:
    state.trust_requests.write_text(json.dumps({"contract": 1, "requests": [{**ASKING, **change}]}))
    with pytest.raises(MalformedFile, match="remove it") as caught:
        read_requests(state)
    assert str(caught.value).isprintable()


def test_too_many_requests_are_refused(state: StateDir) -> None:
    one = TrustRequest.read(ASKING)
    with pytest.raises(MalformedFile, match="at most 256"):
        trust.write_requests(state, [one] * 257)
    assert read_requests(state) == ()


def test_who_follows_whom_is_kept_in_order_and_bounded(state: StateDir) -> None:
    links = [Link("a" * 64, "b" * 64), Link("b" * 64, "c" * 64)]
    assert read_links(state) == ()
    trust.write_links(state, links)
    assert read_links(state) == tuple(links)
    wrong = [
        [links[0]] * (trust.MAX_LINKS + trust.MAX_DECISIONS + 1),
        [Link("a" * 64, "x")],
        [Link("../b", "a" * 64)],
    ]
    for refused in wrong:
        with pytest.raises(MalformedFile):
            trust.write_links(state, refused)
    assert read_links(state) == tuple(links)
    state.trust_heirs.write_bytes(b"[")
    with pytest.raises(MalformedFile, match="remove it"):
        read_links(state)
