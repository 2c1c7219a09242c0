"""Daemons find each other, forget who is gone, and take back who returns."""

from __future__ import annotations

from tests.processes import wait_for
from tests.rpc.peers import Network, wait_complete

GOODBYES = 5


def test_two_daemons_know_each_other_and_not_themselves(network: Network) -> None:
    first, second = network.chain(2)
    assert first.peers_file()["self"]["id"] == first.peer_id
    assert first.known() == {second.peer_id}
    entry = second.peers_file()["peers"][0]
    assert (entry["id"], entry["address"], entry["state"]) == (first.peer_id, first.address, "alive")
    assert first.events("joined")[-1]["first"] is True
    assert second.events("joined")[-1]["first"] is False


def test_five_daemons_in_a_chain_all_know_all(network: Network) -> None:
    peers = network.chain(5)
    for peer in peers:
        addresses = {entry["address"] for entry in peer.peers_file()["peers"]}
        assert addresses == {other.address for other in peers if other is not peer}


def test_a_clean_stop_says_goodbye_at_once(network: Network) -> None:
    """It waits for no answer: on a busy machine a goodbye may come to nobody, but not each of several."""
    *peers, gone = everybody = network.chain(3)
    lives = 0

    def goodbye_heard() -> bool:
        nonlocal lives
        lives += 1
        if lives > 1:
            gone.start(boot=peers[0])
            wait_complete(everybody)
        assert gone.stop() == 0
        assert gone.boot_done() is None
        wait_complete(peers)
        return all(peer.events("peer_left") for peer in peers)

    assert any(goodbye_heard() for _ in range(GOODBYES))
    assert {event["peer"] for peer in peers for event in peer.events("peer_left")} == {gone.peer_id}


def test_a_killed_daemon_is_forgotten(network: Network) -> None:
    killed, *peers = network.chain(3)
    killed.kill()
    wait_complete(peers)
    for peer in peers:
        peer.wait_event("peer_lost", peer=killed.peer_id)


def test_a_restart_keeps_the_identity_and_remembers_others_than_its_boot_peer(network: Network) -> None:
    first, second, third = network.chain(3)
    identity = third.peer_id
    third.kill()
    first.kill()
    second.wait_known(set())
    third.start(boot=first)
    assert third.peer_id == identity
    wait_complete([second, third])


def test_a_restarted_first_peer_finds_its_network_again(network: Network) -> None:
    peers = network.chain(3)
    identity = peers[0].peer_id
    assert peers[0].stop() == 0
    peers[0].start()
    assert peers[0].peer_id == identity
    wait_complete(peers)


def test_a_peer_that_comes_back_at_another_port_is_known_there_only(network: Network) -> None:
    """Through whom it knew, for its boot peer is gone too."""
    first, second, third, moved = network.chain(4)
    identity, old = moved.peer_id, moved.address
    moved.kill()
    third.kill()
    wait_complete([first, second])
    moved.start("--port", "0", boot=third)
    assert (moved.peer_id, moved.address != old) == (identity, True)
    peers = [first, second, moved]
    wait_complete(peers)
    for peer in (first, second):
        [entry] = [entry for entry in peer.peers_file()["peers"] if entry["id"] == identity]
        assert (entry["address"], entry["addresses"]) == (moved.address, [moved.address])


def test_a_peer_that_comes_back_elsewhere_before_it_is_missed_has_moved(network: Network) -> None:
    first, second, moved = network.chain(3)
    moved.kill()
    moved.start("--port", "0", boot=first)
    for peer in (first, second):
        wait_for(
            lambda peer=peer: (
                [moved.address]  # type: ignore[misc]
                in [entry["addresses"] for entry in peer.peers_file()["peers"]]
            ),
            what="the new address",
        )
    wait_complete([first, second, moved])


def test_a_first_peer_stands_alone_when_all_whom_it_remembers_are_frozen(network: Network) -> None:
    first, *others = network.chain(5)
    first.kill()
    for other in others:
        other.freeze()
    first.start()
    assert first.events("joined")[-1]["first"] is True


def test_a_boot_peer_that_starts_later_is_waited_for(network: Network) -> None:
    late, early = network.peer(), network.peer()
    early.launch("--boot", late.address)
    wait_for(early.state.events.exists, what="the early daemon's log")
    early.wait_event("started")
    assert early.boot_done() is None
    late.start()
    early.wait_up()
    wait_complete([late, early])


def test_a_daemon_booted_to_itself_is_the_first(network: Network) -> None:
    peer = network.peer()
    peer.start("--boot", f"localhost:{peer.port}")
    assert peer.events("joined")[-1]["first"] is True
    assert peer.known() == set()
