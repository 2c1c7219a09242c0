"""Markers come back as they were written; whatever breaks the contract is refused with one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state import atomic, markers
from p2pfl_state.errors import MalformedFile, UnknownContract
from p2pfl_state.fields import MAX_NESTING
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_MANIFEST_FIELDS,
    MAX_MANIFEST_NESTING,
    Manifest,
    Parent,
    canonical_json,
)
from p2pfl_state.markers import (
    MAX_FAILED,
    MAX_FAN_OUT,
    MAX_MARKER_BYTES,
    MAX_REASON,
    AggregateAnswer,
    AggregateRequest,
    BootDone,
    FailedFetch,
    FetchedModel,
    Refusal,
)
from p2pfl_state.taskfile import TaskFile, read_task, write_task

Marker = BootDone | AggregateRequest | AggregateAnswer

COUNT = st.integers(0, 2**53 - 1)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
instances = st.binary(min_size=16, max_size=16).map(bytes.hex)
lines = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=MAX_REASON)
micros = st.integers(0, 10**12).map(lambda number: number / 1e6)
json_values = st.recursive(
    st.none() | st.booleans() | COUNT | st.floats(allow_nan=False, allow_infinity=False) | lines,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(lines, inner, max_size=3),
    max_leaves=6,
)
extras = st.dictionaries(st.text("xyz", min_size=1, max_size=3), json_values, max_size=2)
manifests = st.builds(
    Manifest,
    version=COUNT,
    samples=COUNT,
    task=digests,
    weights=digests,
    parents=st.lists(st.builds(Parent, digests, COUNT, digests), max_size=2).map(tuple),
    metrics=st.dictionaries(lines, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    extra=extras,
)
boots = st.builds(BootDone, instances, digests, lines, COUNT, extras)
asks = st.builds(
    AggregateRequest,
    instance=instances,
    round=COUNT,
    fan_out=st.integers(1, MAX_FAN_OUT),
    deadline_s=st.floats(0.01, 86400.0),
    task=st.none() | digests,
    want_task=st.booleans(),
    delete_below=COUNT,
    refused=st.lists(st.builds(Refusal, digests, digests, lines), max_size=2).map(tuple),
    extra=extras,
)
answers = st.builds(
    AggregateAnswer,
    instance=instances,
    round=COUNT,
    models=st.lists(
        st.builds(FetchedModel, digests, manifests, digests, COUNT, micros, st.booleans()), max_size=2
    ).map(tuple),
    failed=st.lists(st.builds(FailedFetch, digests, lines), max_size=2).map(tuple),
    candidates=COUNT,
    peers=COUNT,
    seconds=micros,
    extra=extras,
)

BOOT = BootDone("0" * 32, "1" * 64, "10.0.0.1:8000", 3)
REFUSAL = Refusal("1" * 64, "2" * 64, "has NaN")
ASK = AggregateRequest("0" * 32, 4, 5, 10.0, "3" * 64, refused=(REFUSAL,))
MANIFEST = Manifest(1, 60, "3" * 64, "4" * 64)
MODEL = FetchedModel("1" * 64, MANIFEST, "5" * 64, 1000, 0.1, reused=False)
FAILED = FailedFetch("1" * 64, "connection refused")
ANSWER = AggregateAnswer("0" * 32, 4, (MODEL,), (FAILED,), 3, 4, 0.25)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def parsed(marker: Marker) -> Marker:
    return type(marker).parse(json.dumps(marker.to_json()).encode())


@given(boots | asks | answers)
def test_a_marker_comes_back_with_its_unknown_fields(marker: Marker) -> None:
    assert parsed(marker) == marker


def test_markers_on_disk(state: StateDir) -> None:
    assert markers.read_boot_done(state) is None
    assert markers.read_request(state) is None
    assert markers.read_answer(state) is None
    markers.write_boot_done(state, BOOT)
    markers.write_request(state, ASK)
    markers.write_answer(state, ANSWER)
    assert markers.read_boot_done(state) == BOOT
    assert markers.read_request(state) == ASK
    assert markers.read_answer(state) == ANSWER
    assert {path.name for path in state.root.iterdir()} == {".BOOT_DONE", ".AGGREGATE", ".AGGREGATE_DONE"}


@pytest.mark.parametrize("marker", [BOOT, ASK, ANSWER])
def test_another_contract_is_refused_with_the_remedy(marker: Marker) -> None:
    value = {**marker.to_json(), "contract": 2}
    with pytest.raises(UnknownContract, match=r"version 2.*same version of p2pfl on both sides"):
        type(marker).parse(json.dumps(value).encode())


DIGEST = [None, "", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", 7]
INSTANCE = [None, "", "0" * 31, "0" * 33, "G" * 32, 7]
WHOLE = [None, -1, 2**53, 1.0, True, "1", 10**400]
FLAG = [None, 0, "true"]
SECONDS = [None, -0.1, 1e16, True, "1", 10**400]
LIST: list[Any] = [None, {}, "x", 7]

WRONG: list[tuple[Marker, str, list[Any]]] = [
    (BOOT, "instance", INSTANCE),
    (BOOT, "peer_id", DIGEST),
    (BOOT, "address", [None, 7, "x" * 1025]),
    (BOOT, "peers", WHOLE),
    (ASK, "instance", INSTANCE),
    (ASK, "round", WHOLE),
    (ASK, "fan_out", [*WHOLE, 0, MAX_FAN_OUT + 1]),
    (ASK, "deadline_s", [*SECONDS, 0.0, 86401]),
    (ASK, "task", DIGEST[1:]),
    (ASK, "want_task", FLAG),
    (ASK, "delete_below", WHOLE),
    (ASK, "refused", [*LIST, [7], [{}], [REFUSAL.to_json()] * (MAX_FAN_OUT + 1)]),
    (ASK, "contract", [None, 0, "1", True]),
    (ANSWER, "instance", INSTANCE),
    (ANSWER, "round", WHOLE),
    (ANSWER, "models", [*LIST, [7], [{}], [MODEL.to_json()] * (MAX_FAN_OUT + 1)]),
    (ANSWER, "failed", [*LIST, [7], [{}], [FAILED.to_json()] * (MAX_FAILED + 1)]),
    (ANSWER, "candidates", WHOLE),
    (ANSWER, "peers", WHOLE),
    (ANSWER, "seconds", SECONDS),
]


def refuses(kind: type[Marker], value: dict[str, Any]) -> None:
    with pytest.raises(MalformedFile) as caught:
        kind.parse(json.dumps(value).encode())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("marker", "name", "values"), WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_field_has_bounds(marker: Marker, name: str, values: list[Any]) -> None:
    for value in values:
        refuses(type(marker), {**marker.to_json(), name: value})
    without = marker.to_json()
    del without[name]
    if name != "task":  # null and missing both mean any
        refuses(type(marker), without)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("peer_id", DIGEST),
        ("file_digest", DIGEST),
        ("size_bytes", WHOLE),
        ("seconds", SECONDS),
        ("reused", FLAG),
        ("manifest", [None, [], {}, {**MANIFEST.to_json(), "contract": 2}]),
    ],
)
def test_each_field_of_a_fetched_model_has_bounds(name: str, values: list[Any]) -> None:
    for value in values:
        refuses(AggregateAnswer, {**ANSWER.to_json(), "models": [{**MODEL.to_json(), name: value}]})


@pytest.mark.parametrize("reason", [None, 7, "x" * (MAX_REASON + 1), "two\nlines", "a\x00b"])
def test_a_reason_is_one_line(reason: Any) -> None:
    refuses(AggregateAnswer, {**ANSWER.to_json(), "failed": [{**FAILED.to_json(), "reason": reason}]})


@pytest.mark.parametrize("name", ["peer_id", "weights", "reason"])
def test_each_field_of_a_refusal_has_bounds(name: str) -> None:
    for value in DIGEST if name != "reason" else [None, 7, "x" * (MAX_REASON + 1)]:
        refuses(AggregateRequest, {**ASK.to_json(), "refused": [{**REFUSAL.to_json(), name: value}]})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[" * 10**5,
        b'{"a": "\\ud800"}',
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    for kind in (BootDone, AggregateRequest, AggregateAnswer):
        with pytest.raises(MalformedFile, match="is not"):
            kind.parse(data)


def test_nesting_is_bounded_where_it_could_no_longer_be_written() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: Any = 0
        for _ in range(depth):
            value = [value]
        return {**BOOT.to_json(), "later": value}

    assert BootDone.parse(json.dumps(nested(MAX_NESTING - 3)).encode())
    refuses(BootDone, nested(MAX_NESTING))


# what we write, we can read ------------------------------------------------------------------------


def test_a_marker_that_breaks_the_contract_is_not_written(state: StateDir) -> None:
    markers.write_request(state, ASK)
    with pytest.raises(MalformedFile, match="fan_out"):
        markers.write_request(state, replace(ASK, fan_out=0))
    assert markers.read_request(state) == ASK


def test_reasons_are_cut_and_made_one_line(state: StateDir) -> None:
    long = "\n".join("x" * 99 for _ in range(50))
    markers.write_answer(state, replace(ANSWER, failed=(FailedFetch("1" * 64, long),)))
    answer = markers.read_answer(state)
    assert answer is not None
    assert answer.failed[0].reason == long[:MAX_REASON].replace("\n", " ")
    markers.write_request(state, replace(ASK, refused=(Refusal("1" * 64, "2" * 64, long),)))


def test_an_answer_lists_only_so_many_failures(state: StateDir) -> None:
    """In a large network more peers may fail within one round."""
    markers.write_answer(state, replace(ANSWER, failed=(FAILED,) * (MAX_FAILED + 1)))
    answer = markers.read_answer(state)
    assert answer is not None
    assert len(answer.failed) == MAX_FAILED


def test_the_largest_answer_stays_below_the_bound_of_a_marker() -> None:
    """Whatever hostile senders fill their manifests with."""
    longest = 0
    room = MAX_MANIFEST_BYTES - len(MANIFEST.encode()) - 50
    for piece in ('"é"', '"\U0001f600"', '"\x7f"', '"\\""', '"x"', "1", "[]", "{}", '{"":0}'):
        spelled = len(json.dumps(json.loads(piece), separators=(",", ":"))) + 1
        value = json.loads("[" + ",".join([piece] * (room // spelled)) + "]")
        text = json.dumps({**MANIFEST.to_json(), "x": value}, separators=(",", ":"))
        assert len(text) > 0.99 * MAX_MANIFEST_BYTES
        model = replace(MODEL, manifest=Manifest.decode(text))
        longest = max(longest, len(json.dumps(model.to_json())))
    failure = len(json.dumps(FailedFetch("1" * 64, "\U0001f600" * MAX_REASON).to_json()))
    assert MAX_FAN_OUT * longest + MAX_FAILED * failure + 10_000 < MAX_MARKER_BYTES


def test_a_manifest_that_grows_when_it_is_passed_on_is_refused() -> None:
    text = json.dumps({**MANIFEST.to_json(), "x": "\x7f" * (MAX_MANIFEST_BYTES // 2)}, ensure_ascii=False)
    with pytest.raises(MalformedFile, match="larger than"):
        Manifest.decode(text.replace("\\u007f", "\x7f"))


# tasks ---------------------------------------------------------------------------------------------


def test_a_task_on_disk(tmp_path: Path) -> None:
    task = TaskFile({"architecture": {"name": "mlp", "source_sha256": None}, "classes": ["å"]}, None)
    path = tmp_path / "task.json"
    assert read_task(path) is None
    write_task(path, task)
    assert read_task(path) == task


def test_a_task_whose_source_is_not_its_own_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    with pytest.raises(MalformedFile, match="source is not the one"):
        write_task(path, TaskFile({"architecture": {"source_sha256": "0" * 64}}, "class Net: ..."))
    assert not path.exists()


@given(st.integers(0, MAX_NESTING), st.integers(0, 2 * MAX_MANIFEST_FIELDS))
def test_every_manifest_that_is_taken_can_be_answered_with(depth: int, fields: int) -> None:
    deep: object = 1
    for _ in range(depth):
        deep = [deep]
    extra = {f"extra{number}": deep for number in range(fields)}
    text = canonical_json({**MANIFEST.to_json(), **extra})
    try:
        manifest = Manifest.decode(text)
    except MalformedFile:
        assert depth > MAX_MANIFEST_NESTING - 3 or fields > MAX_MANIFEST_FIELDS - 7
        return
    answer = replace(ANSWER, models=(replace(MODEL, manifest=manifest),))
    assert AggregateAnswer.parse(atomic.encode_json(answer.to_json())) == answer
