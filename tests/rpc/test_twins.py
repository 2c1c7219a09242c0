"""A key that was copied, and lives twice: real daemons, which both say so."""

from __future__ import annotations

import json

from p2pfl_state import atomic

from tests.rpc.peers import Network, Peer, run_command

CONFLICT = "identity_conflict"


def twin_of(peer: Peer, network: Network) -> Peer:
    """A peer with the same key in a directory of its own, as a person makes it by `cp`."""
    twin = network.peer()
    twin.state.root.mkdir()
    twin.state.key.write_bytes(peer.state.key.read_bytes())
    twin.state.key.chmod(0o600)
    return twin


def test_both_are_told_and_say_what_to_do(network: Network) -> None:
    peer = network.start()
    third = network.start(boot=peer)
    twin = twin_of(peer, network)
    twin.start(boot=third)
    assert twin.peer_id == peer.peer_id
    for one, other in ((peer, twin), (twin, peer)):
        assert one.wait_event(CONFLICT)["address"] == other.address
        said = one.process.wait_output("ANOTHER PROCESS USES THE KEY")
        (line,) = [line for line in said.splitlines() if "ANOTHER PROCESS" in line]
        for word in (other.address, "stop one of the two", f"key rotate --state {one.state.root}"):
            assert word in line
        assert other.address in shown_conflict(one)
    assert third.events(CONFLICT) == []
    log = peer.state.events
    aged = [json.dumps({**event, "time": 1e9}) + "\n" for event in atomic.read_json_lines(log)]
    log.write_text("".join(aged))
    assert shown_conflict(peer) == "-", "a long time ago: the other is gone"
    assert shown_conflict(third) == "-"
    assert twin.stop() == 0
    assert run_command("key", "rotate", "--state", twin.state.root).returncode == 0
    twin.start(boot=third)
    third.wait_known({peer.peer_id, twin.peer_id})
    assert shown_conflict(twin) == "-", "it is another peer now"


def test_a_twin_that_boots_through_the_other_is_told_too(network: Network) -> None:
    peer = network.start()
    twin = twin_of(peer, network)
    twin.launch("--boot", peer.address, "--boot-timeout", "5")
    for one in (peer, twin):
        one.wait_event(CONFLICT)
    assert twin.process.wait() == 4
    assert "another process with this peer's key lives there" in twin.process.output()


def test_a_restart_is_no_conflict(network: Network) -> None:
    first, second = network.chain(2)
    for _ in range(3):
        second.kill()
        second.start(boot=first)
    first.kill()
    first.start(boot=second)
    first.wait_known({second.peer_id})
    second.wait_known({first.peer_id})
    assert first.events(CONFLICT) == second.events(CONFLICT) == []


def shown_conflict(peer: Peer) -> str:
    said = run_command("status", "--state", peer.state.root)
    assert said.returncode == 0, said.stderr
    (line,) = [line for line in said.stdout.splitlines() if line.startswith("conflict ")]
    return line.removeprefix("conflict").strip()
