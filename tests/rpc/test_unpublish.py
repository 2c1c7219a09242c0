"""`p2pfl-net unpublish` and `publish`: what a person has withdrawn nobody gets."""

from __future__ import annotations

import json

import grpc
import pytest

from tests.processes import wait_for
from tests.rpc.callers import CALL_TIMEOUT_S, calling
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete
from tests.rpc.tcp_proxy import TcpProxy

METHODS = ("/p2pfl.v1.Models/FetchModel", "/p2pfl.v1.Models/FetchTask")
SIZE_BYTES = 40_000_000
HELD_BYTES = 15_000_000


def say(command: str, peer: Peer) -> str:
    """What the command answers."""
    said = run_command(command, "--state", peer.state.root)
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (0, "", 1)
    return said.stderr


def check_withdrawn(peer: Peer) -> None:
    """Neither model nor task is served, and both calls say why."""
    for method in METHODS:
        with calling(peer.port) as channel, pytest.raises(grpc.RpcError) as caught:
            next(iter(channel.unary_stream(method, None, None)(b"", timeout=CALL_TIMEOUT_S)))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "withdrawn" in caught.value.details()


def status_of(peer: Peer) -> bool:
    said = run_command("status", "--state", peer.state.root, "--json")
    withdrawn: bool = json.loads(said.stdout)["withdrawn"]
    return withdrawn


def wait_unpublished(asker: Peer) -> None:
    wait_for(lambda: not any(e["published"] for e in asker.peers_file()["peers"]), what="the withdrawal")


def test_a_withdrawn_model_is_not_served_until_it_is_published_again(network: Network) -> None:
    asker, source = network.chain(2)
    publish(source.state, make_model(1, 1000))
    asker.wait_published([source.peer_id])
    assert not status_of(source)
    assert "withdrawn" in say("unpublish", source)
    check_withdrawn(source)
    assert "withdrawn before" in say("unpublish", source)
    assert status_of(source)
    wait_unpublished(asker)
    source.wait_event("model_withdrawn")
    newer = publish(source.state, make_model(2, 1000, version=2))
    check_withdrawn(source)
    with FakeTrainer(asker.state) as trainer:
        assert (trainer.ask().models, trainer.ask().candidates) == ((), 0)
        source.kill()
        source.start(boot=asker)
        wait_complete([asker, source])
        check_withdrawn(source)
        say("unpublish", source)
        assert trainer.ask().candidates == 0
        assert "served again" in say("publish", source)
        asker.wait_published([source.peer_id])
        assert [model.file_digest for model in trainer.ask().models] == [newer.digest]
    assert not status_of(source)
    assert "nothing was withdrawn" in say("publish", source)


def test_a_withdrawal_ends_an_upload_that_stands_still(network: Network) -> None:
    asker, source = network.start(), network.peer()
    with TcpProxy(source.port) as link, FakeTrainer(asker.state) as trainer:
        source.state.root.mkdir()
        publish(source.state, make_model(1, SIZE_BYTES))
        source.start("--advertise", link.address, boot=asker)
        asker.wait_published([source.peer_id])
        link.hold_after(HELD_BYTES)
        trainer.request()
        wait_for(link.held.is_set, what="the middle of the transfer")
        say("unpublish", source)
        assert not source.wait_event("model_served", peer=asker.peer_id)["complete"]
        link.release()
        answer = trainer.wait_answer()
        assert [failure.reason for failure in answer.failed] == ["the model published here is withdrawn"]
        assert answer.models == ()


def test_a_model_can_be_withdrawn_before_the_daemon_runs(network: Network) -> None:
    peer = network.start()
    peer.kill()
    assert "once the daemon runs" in say("unpublish", peer)
    publish(peer.state, make_model(1, 1000))
    peer.start()
    check_withdrawn(peer)


@pytest.mark.parametrize("command", ["publish", "unpublish"])
def test_what_is_no_peer_is_refused(network: Network, command: str) -> None:
    said = run_command(command, "--state", network.folder)
    assert (said.returncode, said.stderr.count("\n")) == (3, 1)
    assert "not a peer's state directory" in said.stderr
    assert list(network.folder.glob(".W*")) == []
