"""Who got which model, and which models came: the lines of `events.jsonl`."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from p2pfl_proto.v1 import models_pb2

from p2pfl_net.errors import PeerFailed
from tests.processes import Processes, wait_for
from tests.rpc.callers import CALL_TIMEOUT_S, calling, new_identity
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import ModelFile, make_model, publish
from tests.rpc.peers import Network, Peer
from tests.rpc.scripted_peer import unless_busy
from tests.rpc.tcp_proxy import TcpProxy

FETCH_MODEL = "/p2pfl.v1.Models/FetchModel"
SIZE_BYTES = 40_000_000
CUT_BYTES = 15_000_000
CALLER = new_identity()


def fetch(daemon: Peer, *have: str) -> None:
    """One whole transfer, by `CALLER`, who has these weights."""
    request = models_pb2.FetchModelRequest(have_weights=[bytes.fromhex(weights) for weights in have])
    with calling(daemon.port, CALLER) as channel:
        call = channel.unary_stream(FETCH_MODEL, None, None)
        data = request.SerializeToString()
        parts = wait_for(
            partial(unless_busy, lambda: list(call(data, timeout=CALL_TIMEOUT_S))), what="a whole transfer"
        )
    assert len(parts) >= 1


def facts(event: dict[str, Any]) -> dict[str, Any]:
    """All of a line but when, and how long it took."""
    assert event.pop("time") > 0
    assert event.pop("seconds") >= 0
    return event


def line_of(caller: str, model: ModelFile, sent_bytes: int, *, complete: bool = True) -> dict[str, Any]:
    return {
        "event": "model_served",
        "peer": caller,
        "address": "127.0.0.1",
        "version": model.manifest.version,
        "weights": model.manifest.weights,
        "bytes": sent_bytes,
        "complete": complete,
    }


def test_each_upload_leaves_a_line(network: Network) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, 3_000_000, version=7))
    fetch(source)
    assert facts(source.wait_event("model_served", 1)) == line_of(CALLER.peer_id, model, len(model.data))
    fetch(source, model.manifest.weights)
    assert facts(source.wait_event("model_served", 2)) == line_of(CALLER.peer_id, model, 0)


def test_a_call_that_was_refused_leaves_none(network: Network) -> None:
    source = network.start()
    with calling(source.port, CALLER) as channel:
        call = channel.unary_stream(FETCH_MODEL, None, None)
        with pytest.raises(Exception, match="no model is published"):
            next(iter(call(b"", timeout=CALL_TIMEOUT_S)))
    assert source.stop() == 0
    assert source.events("model_served") == []


def test_a_cut_upload_and_the_one_that_goes_on_each_leave_one(network: Network) -> None:
    asker, source = network.start(), network.peer()
    with TcpProxy(source.port, cut_after_bytes=CUT_BYTES) as link, FakeTrainer(asker.state) as trainer:
        source.state.root.mkdir()
        model = publish(source.state, make_model(1, SIZE_BYTES, version=3))
        source.start("--advertise", link.address, boot=asker)
        asker.wait_published([source.peer_id])
        assert len(trainer.ask().models) == 1
        source.wait_event("model_served", 2)
    cut, rest = sorted(source.events("model_served"), key=lambda event: bool(event["complete"]))
    assert facts(cut) == line_of(asker.peer_id, model, cut["bytes"], complete=False)
    assert facts(rest) == line_of(asker.peer_id, model, rest["bytes"])
    assert CUT_BYTES <= cut["bytes"] < SIZE_BYTES
    assert len(model.data) <= cut["bytes"] + rest["bytes"]
    answered = asker.wait_event("round_answered")
    assert (answered["models"], answered["versions"]) == ([source.peer_id], [3])


def test_an_upload_that_a_stop_ends_leaves_its_line_too(network: Network) -> None:
    source = network.start("--drain", "0.1")
    model = publish(source.state, make_model(1, SIZE_BYTES))
    with calling(source.port, CALLER) as channel:
        call = channel.unary_stream(FETCH_MODEL, None, None)

        def begin() -> Any:
            parts = call(b"", timeout=CALL_TIMEOUT_S)
            next(iter(parts))
            return parts

        parts = wait_for(partial(unless_busy, begin), what="the header of an upload")
        assert source.stop() == 0
        (event,) = source.events("model_served")
        assert facts(event) == line_of(CALLER.peer_id, model, event["bytes"], complete=False)
        parts.cancel()


def test_a_line_for_which_there_is_no_room_ends_the_daemon(processes: Processes, small_disk: Path) -> None:
    source = Peer(processes, small_disk / "state")
    source.start()
    publish(source.state, make_model(1, 1000))
    fetch(source)
    source.wait_event("model_served")
    wait_for(lambda: source.peers_file()["self"]["published"], what="the last change of the list")
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))

    def ended() -> bool:
        with suppress(PeerFailed, grpc.RpcError):  # it ends in the middle of a call
            fetch(source)
        return not source.process.alive

    wait_for(ended, what="the end of the daemon")
    assert source.process.wait() == 3
    assert "events.jsonl" in source.process.output()
    assert "Traceback" not in source.process.output()
