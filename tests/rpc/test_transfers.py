"""One transfer: cut and resumed, replaced at its source, unfinished at a stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import grpc
import pytest
from p2pfl_proto.v1 import models_pb2

from p2pfl_net.rpc.keys import check_signature
from p2pfl_net.wire.models import decode_header
from tests.processes import wait_for
from tests.rpc.callers import calling
from tests.rpc.fake_trainer import FakeTrainer, damage, names_of
from tests.rpc.model_files import ModelFile, make_model, publish
from tests.rpc.peers import Network, Peer
from tests.rpc.scripted_peer import unless_busy
from tests.rpc.tcp_proxy import TcpProxy

SIZE_BYTES = 40_000_000
CUT_BYTES = 15_000_000
TRANSFER_S = 100.0
"""How long one may take that this test reads itself."""


def through(network: Network, asker: Peer, model: ModelFile, link: TcpProxy, source: Peer) -> None:
    """Publishes `model` at `source`, which others reach over `link` only."""
    source.state.root.mkdir()
    publish(source.state, model)
    source.start("--advertise", link.address, boot=asker)
    asker.wait_published([source.peer_id])


def test_a_cut_transfer_goes_on_where_it_stopped(network: Network) -> None:
    asker, source = network.start(), network.peer()
    with TcpProxy(source.port, cut_after_bytes=CUT_BYTES) as link, FakeTrainer(asker.state) as trainer:
        model = make_model(1, SIZE_BYTES)
        through(network, asker, model, link, source)
        answer = trainer.ask()
        assert [m.file_digest for m in answer.models] == [model.digest]
        trainer.wait_files(names_of(answer))
        assert link.cuts == 1
        assert SIZE_BYTES < link.carried_bytes < SIZE_BYTES + CUT_BYTES  # not all of it came twice


def test_a_file_that_is_replaced_while_a_transfer_is_cut_begins_anew(network: Network) -> None:
    asker, source = network.start(), network.peer()
    old, new = make_model(1, SIZE_BYTES), make_model(2, SIZE_BYTES, version=2)

    with TcpProxy(source.port) as link, FakeTrainer(asker.state) as trainer:
        through(network, asker, old, link, source)
        link.hold_after(CUT_BYTES)
        trainer.request()
        wait_for(link.held.is_set, what="the middle of the transfer")
        publish(source.state, new)
        link.cut()
        link.release()
        answer = trainer.wait_answer()
        assert [m.file_digest for m in answer.models] == [new.digest]
        assert [m.manifest.version for m in answer.models] == [2]


def test_a_file_that_is_replaced_during_a_transfer_comes_as_it_was(network: Network) -> None:
    asker, source = network.start(), network.peer()
    old, new = make_model(1, SIZE_BYTES), make_model(2, SIZE_BYTES, version=2)
    with TcpProxy(source.port) as link, FakeTrainer(asker.state) as trainer:
        through(network, asker, old, link, source)
        link.hold_after(CUT_BYTES)
        trainer.request()
        wait_for(link.held.is_set, what="the middle of the transfer")
        publish(source.state, new)
        link.release()
        assert [m.file_digest for m in trainer.wait_answer().models] == [old.digest]
        asker.wait_published([source.peer_id])  # the link has held its answers to pings too
        assert [m.file_digest for m in trainer.ask().models] == [new.digest]


def test_a_damaged_model_is_told_and_not_served(network: Network) -> None:
    asker, source = network.chain(2)
    publish(source.state, make_model(1))
    asker.wait_published([source.peer_id])
    damage(source.state)
    told = source.wait_event("error")
    assert "the published model is not served" in told["reason"]
    with FakeTrainer(asker.state) as trainer:
        wait_for(
            lambda: [entry["published"] for entry in asker.peers_file()["peers"]] == [False],
            what="the withdrawal",
        )
        answer = trainer.ask()
        assert (answer.models, answer.candidates) == ((), 0)
        publish(source.state, make_model(2, version=2))
        asker.wait_published([source.peer_id])
        assert [m.manifest.version for m in trainer.ask().models] == [2]


@pytest.mark.parametrize("keep", [0, 7, 100, 50_000])
def test_a_truncated_model_is_not_served(network: Network, keep: int) -> None:
    source = network.start()
    model = make_model(1, 100_000)
    publish(source.state, ModelFile(model.data[:keep], model.manifest))
    assert "is not served" in source.wait_event("error")["reason"]
    with calling(source.port) as channel:
        fetch = channel.unary_stream("/p2pfl.v1.Models/FetchModel", None, None)
        with pytest.raises(grpc.RpcError) as caught:
            next(iter(fetch(b"", timeout=TRANSFER_S)))
    assert "is not served" in str(caught.value)


# stopping ------------------------------------------------------------------------------------------


class SlowUpload:
    """An upload whose reader takes one part and then waits."""

    def __init__(self, source: Peer) -> None:
        self._stack = ExitStack()
        fetch = self._stack.enter_context(calling(source.port)).unary_stream(
            "/p2pfl.v1.Models/FetchModel",
            models_pb2.FetchModelRequest.SerializeToString,
            models_pb2.ModelPart.FromString,
        )

        def begin() -> Iterator[models_pb2.ModelPart]:
            parts = iter(fetch(models_pb2.FetchModelRequest(), timeout=TRANSFER_S))
            assert next(parts).HasField("header")
            return parts

        self._parts = wait_for(partial(unless_busy, begin), what="the header of an upload")

    def rest(self) -> bytes:
        with self._stack:
            return b"".join(part.chunk for part in self._parts)


def test_a_stop_lets_an_upload_finish(network: Network) -> None:
    other = network.start()
    source = network.start("--drain", "60", boot=other)
    model = publish(source.state, make_model(1, SIZE_BYTES))
    other.wait_published([source.peer_id])
    upload = SlowUpload(source)
    source.process.signal(signal.SIGTERM)
    other.wait_known(set())  # the goodbye is said, and the upload goes on
    wait_for(lambda: source.boot_done() is None, what="the marker's removal")
    assert source.process.alive
    assert upload.rest() == model.data
    assert source.process.wait() == 0
    assert source.events()[-1]["event"] == "stopped"


def test_a_stop_waits_for_an_upload_no_longer_than_told(network: Network) -> None:
    source = network.start("--drain", "0.3")
    publish(source.state, make_model(1, SIZE_BYTES))
    upload = SlowUpload(source)
    assert source.stop() == 0
    with pytest.raises(grpc.RpcError):
        upload.rest()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_draining_daemon(network: Network, second: signal.Signals) -> None:
    other = network.start()
    source = network.start("--drain", "300", boot=other)
    other.wait_known({source.peer_id})
    publish(source.state, make_model(1, SIZE_BYTES))
    upload = SlowUpload(source)
    source.process.signal(signal.SIGTERM)
    other.wait_known(set())
    source.process.signal(second)
    assert source.process.wait() == 128 + second
    assert "Traceback" not in source.process.output()
    with pytest.raises(grpc.RpcError):
        upload.rest()


def test_a_stop_in_mid_round_leaves_the_request_to_the_next_life(network: Network) -> None:
    asker, source = network.start(), network.peer()
    with TcpProxy(source.port) as link, FakeTrainer(asker.state) as trainer:
        model = make_model(1, SIZE_BYTES)
        through(network, asker, model, link, source)
        link.hold_after(CUT_BYTES)
        trainer.request()
        wait_for(link.held.is_set, what="the middle of the transfer")
        assert asker.stop() == 0
        assert trainer.answer() is None
        assert not [name for name in trainer.files() if not name.startswith(".")]
        link.cut()
        link.release()
        asker.start(boot=source)
        trainer.wait_answer()
        asker.wait_published([source.peer_id])
        assert [m.file_digest for m in trainer.ask().models] == [model.digest]


def test_not_modified_needs_no_bytes(network: Network) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, SIZE_BYTES))
    request = models_pb2.FetchModelRequest(have_weights=[bytes.fromhex(model.manifest.weights), bytes(32)])
    with calling(source.port) as channel:
        fetch = channel.unary_stream(
            "/p2pfl.v1.Models/FetchModel",
            models_pb2.FetchModelRequest.SerializeToString,
            None,
        )
        transfer = partial(unless_busy, lambda: list(fetch(request, timeout=TRANSFER_S)))
        parts = wait_for(transfer, what="the hash of the model")
    [header] = [decode_header(part, check_signature) for part in parts]
    assert (header.not_modified, header.manifest) == (True, model.manifest)
    assert header.peer_id == header.statement.publisher == source.peer_id
