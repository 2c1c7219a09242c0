"""`p2pfl-net peers` and `status`, on peers that run, that stopped, and on what is no peer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from p2pfl_net.core.counters import Counters
from tests.processes import PATIENCE_S, wait_for
from tests.rpc.fake_trainer import FakeTrainer, damage
from tests.rpc.model_files import TASK, make_model, publish
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
    assert "stopped" not in shown.stdout
    first.kill()
    assert told("peers", first) == first.peers_file()
    shown = run_command("peers", "--state", first.state.root)
    assert shown.returncode == 0
    assert "stopped" in shown.stdout.splitlines()[0]


def test_a_list_without_peers_says_so(network: Network) -> None:
    peer = network.start()
    lines = run_command("peers", "--state", peer.state.root).stdout.splitlines()
    assert lines[1:] == ["no other peer"]
    lines = run_command(
        "peers", "--state", peer.state.root, "--tag", "vision", "--tag", "mnist"
    ).stdout.splitlines()
    assert lines[1:] == ["no other peer has mnist and vision"]


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


def test_what_is_known_of_each_peer_is_shown(network: Network) -> None:
    first, second, third = network.chain(3)
    publish(second.state, make_model(1, 1000, version=7))

    def entry_of(peer: Peer) -> dict[str, Any]:
        [entry] = [entry for entry in told("peers", first)["peers"] if entry["id"] == peer.peer_id]  # type: ignore[attr-defined]
        return dict(entry)

    wait_for(
        lambda: entry_of(second)["version"] == 7 and all(entry_of(p)["rtt_ms"] for p in (second, third)),
        what="calls to both peers, and the version",
    )
    entry = entry_of(second)
    assert (entry["state"], entry["tags"], entry["task"]) == ("alive", [], TASK.digest)
    assert 0 < entry["rtt_ms"] < 1e3 * PATIENCE_S
    _, header, *rows = run_command("peers", "--state", first.state.root).stdout.splitlines()
    assert header.split() == ["peer", "address", "state", "rtt", "seen", "version", "task", "tags"]
    [row] = [row.split() for row in rows if row.startswith(second.peer_id[:16])]
    assert row[1:3] == [second.address, "alive"]
    assert row[4:5] + row[-3:] == ["ms", "7", TASK.digest[:8], "-"]
    assert len(rows) == 2


def test_of_many_rounds_in_a_row_the_last_is_recent(network: Network) -> None:
    peer = network.start()
    with FakeTrainer(peer.state) as trainer:
        for number in range(1, 8):
            trainer.ask()
            peer.wait_event("round_answered", round=number)
    recent: Any = told("status", peer)["recent_events"]
    assert [event.get("round") for event in recent if event["event"] == "round_answered"] == [7]
    assert recent[0]["event"] == "started"


def test_a_peer_list_of_an_earlier_version_is_shown(network: Network) -> None:
    peer = network.start()
    peer.kill()
    address = "10.0.0.1:8000"
    listed = {"id": "ab" * 32, "address": address, "state": "alive", "task": None}
    peer.state.peers.write_text(json.dumps({"contract": 1, "self": {"id": None}, "peers": [listed]}))
    assert address in run_command("peers", "--state", peer.state.root).stdout.splitlines()[2]
    assert ids(told("peers", peer)) == [listed["id"]]
    status = told("status", peer)
    assert (status["peers"], status["health"], status["counters"]) == (1, None, {})
    assert run_command("status", "--state", peer.state.root).returncode == 0


def test_what_the_network_has_cost_is_counted(network: Network) -> None:
    first, second = network.chain(2)

    def counters() -> dict[str, int]:
        found = told("status", first)["counters"]
        assert isinstance(found, dict)
        return found

    wait_for(lambda: counters()["pings_sent"] >= 2 and counters()["pings_received"] >= 2, what="pings")
    assert counters()["exchanges_received"] >= 1
    assert set(counters()) == {field.name for field in fields(Counters)}
    assert isinstance(told("status", first)["health"], int)
    shown = run_command("status", "--state", first.state.root).stdout.splitlines()
    sent, happened = (line for line in shown if line.startswith("counters "))
    assert "pings sent " in sent
    assert "relays sent " in sent
    assert "refutations " in happened
    second.kill()
    first.wait_event("peer_lost", peer=second.peer_id)
    wait_for(lambda: counters()["deaths"] == 1, what="the death being counted")
    assert counters()["suspicions"] >= 1


def test_to_look_at_peers_costs_little() -> None:
    """People watch it: what only other commands need is not loaded."""
    line = "import sys; from p2pfl_net import cli, inspect, views; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert not {"rich", "filelock", "grpc", "google.protobuf"} & set(loaded.stdout.split())


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
