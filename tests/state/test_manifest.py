"""The bounded header parser against the safetensors library, and the digest against a naive one."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state import manifest
from p2pfl_state.errors import MalformedFile, UnknownContract
from p2pfl_state.manifest import (
    MAX_HEADER_BYTES,
    MAX_MANIFEST_BYTES,
    METADATA_KEY,
    Header,
    Manifest,
    Parent,
    canonical_json,
    file_weights_digest,
    parse_header,
    read_header,
)
from safetensors import SafetensorError
from safetensors import deserialize as _deserialize
from safetensors.numpy import save

Arrays = dict[str, "np.ndarray[Any, Any]"]

NAMES = {"float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8", "bool": "BOOL", "float16": "F16"}
GOOD = Manifest(1, 60, "1" * 64, "2" * 64, (Parent("3" * 64, 7, "4" * 64),), {"accuracy": 0.5})


@st.composite
def arrays(draw: st.DrawFn) -> Arrays:
    names = draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=5, unique=True)
    )
    made: Arrays = {}
    for name in names:
        if name == "__metadata__":
            continue
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        dtype = draw(st.sampled_from(sorted(NAMES)))
        data = draw(st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        made[name] = np.frombuffer(data, "uint8").reshape(shape).astype(dtype)
    return made


texts = st.text(st.characters(exclude_categories=["Cs"]))
metadata = st.none() | st.dictionaries(texts, st.text("ab"), min_size=1, max_size=3)
"""Never empty: the library's own writer makes a broken header of no tensors and empty metadata."""


def deserialize(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """What the library makes of a file: names, and each tensor's dtype, shape and data."""
    return list(_deserialize(data))  # type: ignore[no-untyped-call]


def parsed(data: bytes) -> Header:
    return parse_header(io.BytesIO(data), len(data))


def with_header(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@given(arrays(), metadata)
def test_the_parser_agrees_with_the_library_on_its_files(made: Arrays, said: dict[str, str] | None) -> None:
    data = save(made, said)
    header = parsed(data)
    assert dict(header.metadata) == (said or {})
    assert header.size_bytes == len(data)
    ours = {t.name: (t.dtype, t.shape, data[t.start : t.end]) for t in header.tensors}
    theirs = {
        name: (value["dtype"], tuple(value["shape"]), bytes(value["data"]))
        for name, value in deserialize(data)
    }
    assert ours == theirs
    assert ours == {name: (NAMES[str(a.dtype)], a.shape, a.tobytes()) for name, a in made.items()}


@given(arrays(), metadata, st.data())
def test_a_damaged_file_is_taken_by_both_or_malformed(
    made: Arrays, said: dict[str, str] | None, data: st.DataObject
) -> None:
    raw = bytearray(save(made, said))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert", "drop"])):
            case "change":
                raw[place] = data.draw(st.sampled_from(b'0123456789,:"[]{}ntf\x00\xff') | st.integers(0, 255))
            case "cut":
                del raw[max(1, place) :]
            case "insert":
                raw.insert(place, data.draw(st.integers(0, 255)))
            case "drop" if len(raw) > 1:
                del raw[place]
    try:
        header = parsed(bytes(raw))
    except MalformedFile as error:
        check_line(str(error))
        return
    theirs = {name for name, _ in deserialize(bytes(raw))}
    assert {tensor.name for tensor in header.tensors} == theirs


@given(st.binary(max_size=100))
def test_any_bytes_are_a_file_or_malformed(data: bytes) -> None:
    for content in (data, with_header(data)):
        try:
            parsed(content)
        except MalformedFile as error:
            check_line(str(error))


def check_line(text: str) -> None:
    assert text.isprintable()
    assert len(text) < 300


offsets = st.lists(st.integers(-2, 2**70) | st.integers(0, 8) | st.none() | st.floats(), max_size=3)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "F99", "", "x" * 30]) | st.none() | st.integers(),
        "shape": offsets | st.none() | st.just([10**6] * 16) | st.just([1] * 17),
        "data_offsets": offsets | st.none() | st.just([0, 4]),
    },
)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "\n", "__metadata__"]), entries | st.none() | st.text(), max_size=3
    ),
    st.binary(max_size=8),
)
def test_any_header_values_are_malformed_or_fit(header: dict[str, Any], body: bytes) -> None:
    data = with_header(header, body)
    try:
        tensors = parsed(data).tensors
    except MalformedFile as error:
        check_line(str(error))
        return
    assert sum(tensor.end - tensor.start for tensor in tensors) == len(body)


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        (2**63).to_bytes(8, "little") + b"{}",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * 100,
        with_header({"a": ONE}),
        with_header({"a": ONE}, bytes(3)),
        with_header({"a": ONE}, bytes(5)),
        with_header({"a": ONE, "b": ONE}, bytes(4)),
        with_header({"a": ONE, "b": {**ONE, "data_offsets": [5, 9]}}, bytes(9)),
        with_header({"a": {**ONE, "data_offsets": [4, 8]}}, bytes(8)),
        with_header({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)),
        with_header({"a": {**ONE, "shape": [2]}}, bytes(4)),
        with_header({"a": {**ONE, "shape": [True]}}, bytes(4)),
        with_header({"a": {**ONE, "shape": [1.0]}}, bytes(4)),
        with_header({"a": {**ONE, "shape": [-1]}}, bytes(4)),
        with_header({"a": {**ONE, "dtype": "F32 "}}, bytes(4)),
        with_header({"__metadata__": {"a": 1}}),
        with_header({"__metadata__": []}),
        with_header([]),
        with_header(b"[" * 10**5),
    ],
    ids=range(20),
)
def test_what_is_no_safetensors_file_is_malformed_to_both(data: bytes) -> None:
    with pytest.raises(MalformedFile):
        parsed(data)
    with pytest.raises(SafetensorError):
        deserialize(data)


@pytest.mark.parametrize("more", [[], [[]] * 10, "x"])
def test_a_field_that_the_format_does_not_have_is_refused(more: object) -> None:
    with pytest.raises(MalformedFile, match="field that the format does not have"):
        parsed(with_header({"a": {**ONE, "x": more}}, bytes(4)))


@pytest.mark.parametrize("value", [b"[{}],", b"0,", b"1e1,"])
def test_what_is_read_of_a_header_is_bounded_before_it_is_read(value: bytes) -> None:
    """A list of lists takes a hundred times the memory of its text."""
    text = b'{"a":[' + value * (2 * 10**6 // len(value)) + b"0]}"
    with pytest.raises(MalformedFile, match="more values than the largest model"):
        parsed(with_header(text))


def test_the_number_of_tensors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_TENSORS", 2)
    made = {str(number): np.zeros(0) for number in range(3)}
    with pytest.raises(MalformedFile, match="more than 2 tensors"):
        parsed(save(made))


# digests -------------------------------------------------------------------------------------------


def naive_digest(made: Arrays) -> str:
    text = b""
    for name in sorted(made):
        array = made[name]
        description = {"dtype": NAMES[str(array.dtype)], "name": name, "shape": list(array.shape)}
        text += (
            json.dumps(description, sort_keys=True, separators=(",", ":")).encode() + b"\n" + array.tobytes()
        )
    return hashlib.sha256(text).hexdigest()


@given(made=arrays())
def test_the_weights_digest_is_that_of_names_types_shapes_and_bytes(
    tmp_path_factory: pytest.TempPathFactory, made: Arrays
) -> None:
    path = tmp_path_factory.mktemp("digest") / "model.safetensors"
    path.write_bytes(save(made, {"any": "thing"}))
    assert file_weights_digest(path) == naive_digest(made)


def test_the_digest_of_a_file_of_many_pieces(tmp_path: Path) -> None:
    made = {"a": np.arange(400_000, dtype="float32"), "b": np.arange(7, dtype="int64")}
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(made))
    assert file_weights_digest(path) == naive_digest(made)


@pytest.mark.parametrize("read", [read_header, file_weights_digest])
def test_a_file_that_is_not_there_or_no_file(tmp_path: Path, read: Any) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
    (tmp_path / "bad").write_bytes(b"not a model")
    with pytest.raises(MalformedFile):
        read(tmp_path / "bad")


# manifests -----------------------------------------------------------------------------------------


def test_a_manifest_travels_in_the_metadata() -> None:
    header = parsed(save({"w": np.zeros(2)}, {METADATA_KEY: GOOD.encode(), "format": "pt"}))
    assert header.manifest() == GOOD
    with pytest.raises(MalformedFile, match="carries no p2pfl manifest"):
        parsed(save({"w": np.zeros(2)})).manifest()


def test_a_manifest_is_canonical_and_keeps_what_it_does_not_know() -> None:
    later = {**GOOD.to_json(), "later": {"b": 1, "a": [2]}}
    manifest = Manifest.decode(json.dumps(later, indent=3))
    assert manifest.extra == {"later": {"b": 1, "a": [2]}}
    assert manifest.encode() == canonical_json(later)
    assert Manifest.decode(manifest.encode()) == manifest


def test_a_manifest_of_another_contract_or_size_is_refused() -> None:
    with pytest.raises(UnknownContract):
        Manifest.decode(json.dumps({**GOOD.to_json(), "contract": 2}))
    with pytest.raises(MalformedFile, match="larger than"):
        Manifest.decode(GOOD.encode() + " " * MAX_MANIFEST_BYTES)


@given(st.dictionaries(st.text("abc"), st.integers(), max_size=4))
def test_canonical_json_does_not_depend_on_order(value: dict[str, int]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
