"""One file on its way: what is hashed is what was received, wherever it broke off."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from p2pfl_net.errors import MalformedModel
from p2pfl_net.rpc.download import MAX_SMALL_CHUNKS, Download
from p2pfl_net.wire.models import CHUNK_BYTES, ModelHeader, chunk_prefix
from tests.rpc.model_files import make_model
from tests.wire.sealed import stated

MODEL = make_model(1, 8 * CHUNK_BYTES)
WORD = stated(MODEL.manifest)
HEADER = ModelHeader(
    WORD.publisher,
    MODEL.manifest,
    len(MODEL.data),
    MODEL.digest,
    0,
    not_modified=False,
    statement=WORD,
)


class BrokenOff(Exception):
    """As the network's errors, and those of whoever looks at the progress."""


def parts(start: int, end: int) -> Iterator[bytes]:
    for position in range(start, end, CHUNK_BYTES):
        chunk = MODEL.data[position : min(position + CHUNK_BYTES, end)]
        yield chunk_prefix(len(chunk)) + chunk


@pytest.mark.parametrize("chunks", range(5))
def test_what_broke_off_is_hashed_as_far_as_it_came(tmp_path: Path, chunks: int) -> None:
    download = Download(tmp_path / "draft")
    download.begin(HEADER)

    def broken() -> Iterator[bytes]:
        yield from parts(0, chunks * CHUNK_BYTES)
        raise BrokenOff

    with pytest.raises(BrokenOff):
        download.receive(broken(), HEADER, lambda received, header: None)
    assert download.received == chunks * CHUNK_BYTES
    assert download.digest.hexdigest() == hashlib.sha256(MODEL.data[: download.received]).hexdigest()
    assert not [thread for thread in threading.enumerate() if thread.name == "hash"]

    rest = replace(HEADER, offset=download.received)
    download.receive(parts(rest.offset, rest.size_bytes), rest, lambda received, header: None)
    download.verify(rest)


def test_pieces_that_are_too_small_are_refused(tmp_path: Path) -> None:
    download = Download(tmp_path / "draft")
    download.begin(HEADER)
    crumbs = (chunk_prefix(1) + MODEL.data[n : n + 1] for n in range(len(MODEL.data)))
    with pytest.raises(MalformedModel, match="too small"):
        download.receive(crumbs, HEADER, lambda received, header: None)
    assert download.received <= 2 * MAX_SMALL_CHUNKS


def test_who_looks_at_the_progress_may_end_it(tmp_path: Path) -> None:
    download = Download(tmp_path / "draft")
    download.begin(HEADER)

    def look(received: int, header: ModelHeader) -> None:
        if received >= 3 * CHUNK_BYTES:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        download.receive(parts(0, len(MODEL.data)), HEADER, look)
    assert download.digest.hexdigest() == hashlib.sha256(MODEL.data[: 3 * CHUNK_BYTES]).hexdigest()
