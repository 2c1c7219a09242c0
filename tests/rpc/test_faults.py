"""Peers die, freeze, are cut off and talk nonsense. The others train on, and all who live are one network."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.processes import PATIENCE_S, wait_for
from tests.rpc.garbage_peer import (
    GarbagePeer,
    RawPeer,
    nothing,
    random_bytes,
    register,
    too_large,
    unknown_error,
    wrong_message,
)
from tests.rpc.machines import Machine, cut_cable, mend_cable
from tests.rpc.peers import Network, Peer, wait_complete
from tests.rpc.training import Training


def lost_by(peer: Peer) -> set[str]:
    """Whom it has ever declared dead."""
    return {str(event["peer"]) for event in peer.events("peer_lost")}


def wait_lost(peer: Peer, others: list[Peer]) -> None:
    for other in others:
        peer.wait_event("peer_lost", peer=other.peer_id)


def wait_since_lost(peers: list[Peer], least_s: float, training: Training) -> None:
    """Waits until so much time has passed since these lost a peer, by what their logs say of rounds."""

    def passed_s(peer: Peer) -> float:
        events = peer.events()
        return float(events[-1]["time"]) - max(float(e["time"]) for e in events if e["event"] == "peer_lost")

    for peer in peers:
        training.wait_while_training(
            lambda peer=peer: passed_s(peer) >= least_s,  # type: ignore[misc]
            f"{least_s:g} s without the lost",
            least_s + PATIENCE_S,
        )


# joins and deaths ---------------------------------------------------------------------------------


def test_thirty_peers_join_in_one_moment_and_outlive_a_third_of_them(network: Network) -> None:
    """All calls wait at the boot peer when it wakes."""
    boot = network.start()
    newcomers = [network.peer() for _ in range(29)]
    boot.freeze()
    for newcomer in newcomers:
        newcomer.launch("--boot", boot.address, "--boot-timeout", "100")
    for newcomer in newcomers:
        wait_for(newcomer.state.events.exists, what=f"the log of {newcomer.state.root}")
        newcomer.wait_event("started")
    boot.thaw()
    for newcomer in newcomers:
        newcomer.wait_up()
    peers = [boot, *newcomers]
    wait_complete(peers)
    dead, living = peers[::3], [peer for number, peer in enumerate(peers) if number % 3]
    with Training(peers) as training:
        training.wait_rounds(peers)
        training.pause(*dead)
        for peer in dead:
            peer.process.popen.kill()
        training.wait_rounds(living)
        wait_complete(living)
        training.wait_rounds(living)
    assert all(peer.process.alive for peer in living)


def test_a_boot_peer_that_dies_right_after_the_join(network: Network) -> None:
    boot, *others = network.chain(3)
    newcomer = network.peer()
    newcomer.start(boot=boot)
    boot.kill()
    wait_complete([*others, newcomer])


def test_two_islands_are_one_network_when_one_peer_is_told_of_the_other(network: Network) -> None:
    here, there = network.chain(2), network.chain(2)
    told, *_ = there
    told.kill()
    told.start(boot=here[0])
    wait_complete([*here, *there])


# freezes -------------------------------------------------------------------------------------------


def freeze_and_thaw(network: Network, least_s: float) -> None:
    """Training goes on in the others, and afterwards in the frozen peer too."""
    frozen, *others = peers = network.chain(4)
    with Training(peers) as training:
        training.wait_rounds(peers)
        training.pause(frozen)
        frozen.freeze()
        for other in others:
            other.wait_event("peer_lost", peer=frozen.peer_id)
        wait_complete(others)
        training.wait_rounds(others)
        wait_since_lost(others, least_s, training)
        frozen.thaw()
        wait_complete(peers)
        training.resume(frozen)
        training.wait_rounds(peers, 3)
        wait_complete(peers)
    assert lost_by(frozen) == set()
    for other in others:
        assert lost_by(other) == {frozen.peer_id}


def test_a_frozen_peer_is_dropped_and_comes_back_and_blames_nobody(network: Network) -> None:
    freeze_and_thaw(network, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("least_s", [20.0, 70.0], ids="for {} s".format)
def test_a_peer_that_is_frozen_long(network: Network, least_s: float) -> None:
    freeze_and_thaw(network, least_s)


# cuts ----------------------------------------------------------------------------------------------


def cut_and_mend(network: Network, machines: tuple[Machine, Machine], least_s: float) -> None:
    """Rounds go on in each half, and afterwards all are one network without anybody's help."""
    first, second = machines
    here = [network.peer(f"here{number}", first.prefix) for number in range(3)]
    there = [network.peer(f"there{number}", second.prefix) for number in range(3)]
    here[0].start(host="0.0.0.0")
    beyond = f"{first.address(4)}:{here[0].port}"
    for peer in (*here[1:], *there):
        boot = f"127.0.0.1:{here[0].port}" if peer in here else beyond
        peer.launch("--boot", boot, host="0.0.0.0")
    for peer in (*here[1:], *there):
        peer.wait_up()
    peers = [*here, *there]
    wait_complete(peers)
    with Training(peers) as training:
        training.wait_rounds(peers)
        cut_cable(machines)
        for half, other in ((here, there), (there, here)):
            for peer in half:
                wait_lost(peer, other)
            wait_complete(half)
        training.wait_rounds(peers)
        wait_since_lost(peers, least_s, training)
        mend_cable(machines)
        wait_complete(peers)
        training.wait_rounds(peers)
        wait_complete(peers)


def test_two_halves_that_were_cut_apart_are_one_network_again(
    network: Network, machines: tuple[Machine, Machine]
) -> None:
    cut_and_mend(network, machines, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("least_s", [30.0, 65.0], ids="cut for {} s".format)
def test_halves_that_were_cut_apart_for_long(
    network: Network, machines: tuple[Machine, Machine], least_s: float
) -> None:
    """Also longer than the dead are remembered."""
    cut_and_mend(network, machines, least_s)


# nonsense ------------------------------------------------------------------------------------------


def test_peers_that_talk_nonsense_are_dropped(network: Network) -> None:
    peers = network.chain(3)
    with ExitStack() as stack:
        training = stack.enter_context(Training(peers))
        answers = (random_bytes, wrong_message, too_large, nothing, unknown_error)
        liars: list[GarbagePeer | RawPeer] = [
            GarbagePeer(answer, seed) for seed, answer in enumerate(answers)
        ]
        liars.append(RawPeer(len(liars)))
        for number, liar in enumerate(liars):
            stack.enter_context(liar)
            register(liar, peers[number % len(peers)])
        for peer in peers:
            for liar in liars:
                peer.wait_event("peer_lost", peer=liar.peer_id)
        training.wait_rounds(peers)
        wait_complete(peers)
        training.wait_rounds(peers)
        assert all(liar.calls for liar in liars)
    assert all(peer.process.alive for peer in peers)
