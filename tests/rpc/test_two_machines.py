"""Two machines, each a network namespace of its own, joined by one cable."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from p2pfl_net.core.ids import Address, parse_address
from tests.processes import wait_for
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.machines import Machine
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, wait_complete


@pytest.mark.parametrize(("host", "family"), [("0.0.0.0", 4), ("::", 4), ("::", 6)])
def test_peers_of_two_machines_know_and_reach_each_other(
    network: Network, machines: tuple[Machine, Machine], host: str, family: int
) -> None:
    first, second = machines
    a, b = (network.peer(name, first.prefix) for name in "ab")
    c, d = (network.peer(name, second.prefix) for name in "cd")
    a.start(host=host)
    b.start("--boot", f"localhost:{a.port}", host=host)
    beyond = first.address(family)
    c.start("--boot", f"[{beyond}]:{a.port}" if family == 6 else f"{beyond}:{a.port}", host=host)
    d.start("--boot", f"localhost:{c.port}", host=host)
    peers = [a, b, c, d]
    wait_complete(peers)
    for here, there in (((a, b), (c, d)), ((c, d), (a, b))):
        for peer in here:
            assert_no_loopback(peer, there)
    models = {peer.peer_id: publish(peer.state, make_model(n)) for n, peer in enumerate(peers)}
    with ExitStack() as stack:
        for peer in peers:
            others = set(models) - {peer.peer_id}
            peer.wait_published(others)
            answer = stack.enter_context(FakeTrainer(peer.state)).ask(fan_out=3)
            assert answer.failed == ()
            assert {m.peer_id: m.file_digest for m in answer.models} == {i: models[i].digest for i in others}
    for here, there in (((a, b), (c, d)), ((c, d), (a, b))):
        for peer in here:
            assert_no_loopback(peer, there)
    b.kill()
    wait_complete([a, c, d])


def assert_no_loopback(peer: Peer, others: tuple[Peer, ...]) -> None:
    """Nothing in the peer list says that peers of the other machine are on this one."""
    ids = {other.peer_id for other in others}
    entries = [entry for entry in peer.peers_file()["peers"] if entry["id"] in ids]
    assert len(entries) == len(ids)
    for entry in entries:
        assert entry["addresses"]
        assert not any(parse_address(address).is_loopback for address in entry["addresses"])


@pytest.mark.parametrize("family", [4, 6])
def test_a_machine_whose_address_changes_is_reached_at_the_new_one(
    network: Network, machines: tuple[Machine, Machine], family: int
) -> None:
    """While its daemon runs."""
    first, second = machines
    a, b = network.peer("a", first.prefix), network.peer("b", first.prefix)
    moved = network.peer("moved", second.prefix)
    beyond = first.address(family)
    a.start(host="::")
    b.start("--boot", f"localhost:{a.port}", host="::")
    moved.start("--boot", str(Address(beyond, a.port)), host="::")
    peers = [a, b, moved]
    wait_complete(peers)
    old, new = second.address(family), f"{second.address(family)}0"
    prefix = 24 if family == 4 else 64
    second.run("ip", "address", "del", f"{old}/{prefix}", "dev", "cable")
    second.run("ip", "address", "add", f"{new}/{prefix}", "dev", "cable", *(["nodad"] if family == 6 else []))
    moved.wait_event("interfaces_changed")
    addresses = [str(Address(host, moved.port)) for host in (new, second.address(10 - family))]

    def seen_by(peer: Peer) -> set[str]:
        entries = peer.peers_file()["peers"]
        return {
            address for entry in entries if entry["id"] == moved.peer_id for address in entry["addresses"]
        }

    for peer in (a, b):
        wait_for(
            lambda peer=peer: seen_by(peer) == set(addresses),  # type: ignore[misc]
            what=f"{peer.state.root} listing the new address and no more",
        )
    model = publish(moved.state, make_model(1, 1000))
    for peer in (a, b):
        peer.wait_published([moved.peer_id])
        with FakeTrainer(peer.state) as trainer:
            answer = trainer.ask()
        assert [fetched.file_digest for fetched in answer.models] == [model.digest]
    wait_complete(peers)
    assert all(seen_by(peer) == set(addresses) for peer in (a, b))


def test_a_machine_that_is_cut_off_is_forgotten_and_found_again(
    network: Network, machines: tuple[Machine, Machine]
) -> None:
    """Its interface goes down, and nobody does anything when it is up again."""
    first, second = machines
    a, b = network.peer("a", first.prefix), network.peer("b", second.prefix)
    a.start(host="::")
    b.start("--boot", f"{first.address(4)}:{a.port}", host="::")
    wait_complete([a, b])
    first.run("ip", "link", "set", "cable", "down")
    a.wait_event("peer_lost", peer=b.peer_id)
    b.wait_event("peer_lost", peer=a.peer_id)
    first.run("ip", "link", "set", "cable", "up")
    first.run("ip", "address", "replace", f"{first.address(6)}/64", "dev", "cable", "nodad")
    wait_complete([a, b])
