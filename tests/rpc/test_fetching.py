"""The client of a transfer against peers that a test plays: which address, how long, how much disk."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from p2pfl_proto.v1.models_pb2 import FetchModelRequest
from p2pfl_state.layout import StateDir

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.client import resolve
from p2pfl_net.rpc.download import DISK_RESERVE_BYTES, DiskRoom, Download
from p2pfl_net.rpc.fetching import Cancellation, ModelClient, Wanted
from p2pfl_net.runtime import published
from p2pfl_net.runtime.published import PublishedModel
from p2pfl_net.runtime.versions import Signer, VersionLog
from p2pfl_net.wire.models import ModelHeader
from tests.processes import PATIENCE_S
from tests.rpc.callers import model_client, new_identity
from tests.rpc.crowd import NOBODY_PORT
from tests.rpc.model_files import ModelFile, digest_of, make_model, publish
from tests.rpc.peers import run_command
from tests.rpc.scripted_peer import ScriptedPeer, chunk_part, chunk_parts, header_part, honest, stall
from tests.wire.sealed import stated

MODEL = make_model(1, 3_000_000)


def fetch(client: ModelClient, wanted: Wanted, draft: Path) -> ModelHeader:
    return client.fetch(wanted, draft, Cancellation(), lambda received, header: None)


@pytest.fixture
def client() -> Iterator[ModelClient]:
    made = model_client()
    yield made
    made.close()


# whom to call --------------------------------------------------------------------------------------


def test_an_address_where_another_lives_is_passed_over(client: ModelClient, tmp_path: Path) -> None:
    def another(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another peer lives here")

    with ScriptedPeer(another) as other, ScriptedPeer(honest(MODEL)) as right:
        ports = (other.port, NOBODY_PORT, right.port)
        addresses = tuple(Address("127.0.0.1", port) for port in ports)
        wanted = Wanted(addresses, PATIENCE_S, to=PeerId(right.peer_id))
        assert fetch(client, wanted, tmp_path / "draft").manifest == MODEL.manifest
        assert other.requests == [], "its key says that it is another"
        with pytest.raises(PeerFailed) as caught:
            fetch(client, Wanted(addresses[:1], PATIENCE_S, to=PeerId(right.peer_id)), tmp_path / "draft")
    assert caught.value.kind is FailureKind.WRONG_PEER


def test_a_broken_transfer_goes_on_at_the_address_that_worked(client: ModelClient, tmp_path: Path) -> None:
    def breaks(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield header_part(request, MODEL, offset=request.offset)
        yield chunk_part(MODEL.data[request.offset :][: 1 << 20])
        if request.offset + (1 << 20) < len(MODEL.data):
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")

    with ScriptedPeer(breaks) as right:
        addresses = (Address("127.0.0.1", right.port), Address("127.0.0.1", NOBODY_PORT))
        wanted = Wanted(addresses, PATIENCE_S, to=PeerId(right.peer_id))
        assert fetch(client, wanted, tmp_path / "draft").manifest == MODEL.manifest
        assert [request.offset for request in right.requests] == [0, 1 << 20, 2 << 20]


def test_each_address_of_a_name_is_tried(
    client: ModelClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*question: object, **more: object) -> list[tuple[object, ...]]:
        hosts = ("127.0.0.2", "127.0.0.2", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with ScriptedPeer(honest(MODEL)) as right:
        name = Address("lab1", right.port)
        assert [address.host for address in resolve(name)] == ["127.0.0.2", "127.0.0.1"]
        wanted = Wanted((name,), PATIENCE_S, to=PeerId(right.peer_id))
        assert fetch(client, wanted, tmp_path / "draft").manifest == MODEL.manifest


# how long ------------------------------------------------------------------------------------------


def test_get_gives_up_a_peer_that_stalls_in_mid_stream(tmp_path: Path) -> None:
    def stalls(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield header_part(request, MODEL)
        yield chunk_part(MODEL.data[: 1 << 20])
        stall(context)

    with ScriptedPeer(stalls) as peer:
        said = run_command("get", f"127.0.0.1:{peer.port}", "--out", tmp_path / "model", "--patience", "5")
    assert said.returncode == 8
    assert "no byte for 5 s" in said.stderr
    assert said.stderr.count("\n") == 1
    assert (tmp_path / "model.part").stat().st_size == 1 << 20, "to be resumed"


def test_get_asks_a_busy_peer_again(tmp_path: Path) -> None:
    def busy_first(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        if len(peer.requests) < 3:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "try again soon")
        yield header_part(request, MODEL)
        yield from chunk_parts(MODEL.data)

    with ScriptedPeer(busy_first) as peer:
        said = run_command("get", f"127.0.0.1:{peer.port}", "--out", tmp_path / "model")
    assert (said.returncode, said.stderr) == (0, "")
    assert digest_of(tmp_path / "model") == MODEL.digest


# how much disk -------------------------------------------------------------------------------------

GIB = 1 << 30


class Usage(NamedTuple):
    """What `shutil.disk_usage` tells."""

    total: int
    used: int
    free: int


def announced(model: ModelFile, size_bytes: int) -> ModelHeader:
    statement = stated(model.manifest)
    return ModelHeader(
        statement.publisher,
        model.manifest,
        size_bytes,
        model.digest,
        0,
        not_modified=False,
        statement=statement,
    )


def test_models_that_fit_alone_and_not_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * GIB, 0, 3 * GIB + DISK_RESERVE_BYTES))
    room, header = DiskRoom(), announced(MODEL, 2 * GIB)
    first, second = Download(tmp_path / "first"), Download(tmp_path / "second")
    with ExitStack() as stack:
        stack.enter_context(room.reserved(first, header))
        with pytest.raises(PeerFailed, match="no space left") as caught:
            stack.enter_context(room.reserved(second, header))
        assert caught.value.kind is FailureKind.LOCAL
        first.received = GIB  # as far as it has come, the disk says it itself
        stack.enter_context(room.reserved(second, header))
    with room.reserved(Download(tmp_path / "third"), header):
        pass


def test_a_part_that_is_replaced_makes_room_for_what_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * GIB, 0, 1000 + DISK_RESERVE_BYTES))
    draft = tmp_path / "part"
    with (
        pytest.raises(PeerFailed, match="no space left"),
        DiskRoom().reserved(Download(draft), announced(MODEL, 1500)),
    ):
        pass
    draft.write_bytes(bytes(600))
    with DiskRoom().reserved(Download(draft), announced(MODEL, 1500)):
        pass


# the other end: a hash that takes a while ----------------------------------------------------------


def test_a_model_that_is_still_being_hashed_is_to_be_asked_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path)
    publish(state, MODEL)
    log, release = VersionLog(state), threading.Event()
    source = PublishedModel(state, Signer(state, new_identity(), log))
    occupied = source._hasher.submit(release.wait, PATIENCE_S)  # by the hash of an earlier publication
    with monkeypatch.context() as patch:
        patch.setattr(published, "HASH_WAIT_S", 0.0)
        with pytest.raises(PeerFailed) as caught, source.open_model():
            pass
    assert caught.value.kind is FailureKind.BUSY
    release.set()
    assert occupied.result()
    monkeypatch.setattr(published, "HASH_WAIT_S", PATIENCE_S)
    with source.open_model() as served:
        assert served is not None
        assert served.file_digest == MODEL.digest
    source.close()
    log.close()
