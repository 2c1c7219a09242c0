"""`p2pfl-net peers` and `status`, on peers that run, that stopped, and on what is no peer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.fake_trainer import FakeTrainer, damage
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, run_command

MARKUP = b'{"peers": [{"id": "[/x]", "address": "[/y]"}], "self": {"address": "[/z]"}}'


def told(command: str, peer: Peer) -> dict[str, object]:
    """What a command prints as JSON."""
    said = run_command(command, "--state", peer.state.root, "--json")
    assert (said.returncode, said.stderr) == (0, "")
    value: dict[str, object] = json.loads(said.stdout)
    return value


def ids(listed: Mapping[str, Any]) -> list[str]:
    return [entry["id"] for entry in listed["peers"]]


def test_the_peer_list_of_a_running_and_of_a_stopped_peer(network: Network) -> None:
    first, second = network.chain(2)
    listed = told("peers", first)
    kept = first.peers_file()
    assert (listed["self"], ids(listed)) == (kept["self"], ids(kept))
    assert listed["self"]["id"] == first.peer_id  # type: ignore[index]
    shown = run_command("peers", "--state", first.state.root)
    assert second.peer_id[:16] in shown.stdout
    assert second.address in shown.stdout
    first.kill()
    assert told("peers", first) == first.peers_file()
    assert run_command("peers", "--state", first.state.root).returncode == 0


def test_the_status_of_a_running_and_of_a_stopped_peer(network: Network) -> None:
    first, second = network.chain(2)
    model = publish(second.state, make_model(1, 1000))
    publish(first.state, make_model(2, 1000))
    first.wait_published([second.peer_id])
    with FakeTrainer(first.state) as trainer:
        trainer.ask()
        first.wait_event("round_answered")
        status = told("status", first)
        assert (status["daemon"], status["trainer"], status["network"]) == ("running", "running", "up")
        assert (status["peer_id"], status["address"], status["peers"]) == (first.peer_id, first.address, 1)
        assert status["last_round"]["models"] == 1  # type: ignore[index]
        assert status["model"]["samples"] == 102  # type: ignore[index]
        assert "round_answered" in [event["event"] for event in status["recent_events"]]  # type: ignore[attr-defined]
    shown = run_command("status", "--state", second.state.root)
    assert shown.returncode == 0
    assert model.manifest.weights[:16] in shown.stdout
    assert first.stop() == 0
    status = told("status", first)
    assert (status["daemon"], status["trainer"], status["network"]) == ("stopped", "stopped", "down")
    second.kill()  # its marker stays, and means nothing
    assert second.boot_done() is not None
    assert (told("status", second)["daemon"], told("status", second)["network"]) == ("stopped", "down")


def test_the_status_of_a_peer_with_a_damaged_model(network: Network) -> None:
    peer = network.start()
    damage(peer.state)
    assert "not a safetensors file" in told("status", peer)["model"]["damaged"]  # type: ignore[index]
    assert run_command("status", "--state", peer.state.root).returncode == 0


@pytest.mark.parametrize("command", ["peers", "status"])
def test_a_directory_that_is_no_peers(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        said = run_command(command, "--state", root, "--json")
        assert (said.returncode, said.stdout, said.stderr.count("\n")) == (3, "", 1)
        assert str(root) in said.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("command", ["peers", "status"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b'{"peers": 3, "self": []}', MARKUP])
def test_damaged_files_are_told_or_survived(network: Network, command: str, content: bytes) -> None:
    peer = network.start()
    peer.kill()
    peer.state.peers.write_bytes(content)
    peer.state.aggregate_done.write_bytes(content)
    with open(peer.state.events, "ab") as events:
        events.write(content)
    for options in ((), ("--json",)):
        said = run_command(command, "--state", peer.state.root, *options)
        assert said.returncode in (0, 3)
        assert "Traceback" not in said.stderr
        assert said.stderr.count("\n") <= 1


def test_the_status_with_an_answer_that_a_power_cut_damaged(network: Network) -> None:
    peer = network.start()
    peer.state.aggregate_done.write_bytes(b"")
    last_round = told("status", peer)["last_round"]
    assert isinstance(last_round, dict)
    assert ".AGGREGATE_DONE" in last_round["damaged"]
