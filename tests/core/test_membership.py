"""Many cores joined in memory: who learns of whom, how soon, and at what cost."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl_net.core.events import FailureKind, ModelPublished, Refuse, Send
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import MAX_INCARNATION, Ack, Join, JoinReply, Ping, Record, Sender, Status
from tests.core.network import Network, Peer, peer_id

TASK = TaskDigest("7" * 64)
OTHER_TASK = TaskDigest("8" * 64)
STRANGER = Record(peer_id("stranger"), 1, Status.ALIVE, (Address("10.9.9.9", 9000),))


def record_of(peer: Peer, other: Peer) -> Record:
    record = peer.node.membership.table.get(other.id)
    assert record is not None
    return record


def converges(network: Network, limit_s: float) -> bool:
    return network.run_until(network.converged, limit_s) is not None


# joining and leaving -------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "seeds"), [(2, 10), (3, 10), (5, 10), (10, 5), (20, 3), (60, 1)])
def test_a_boot_chain_ends_in_everybody_knowing_everybody(count: int, seeds: int) -> None:
    for seed in range(seeds):
        network = Network(seed)
        network.chain(count)
        assert converges(network, 3.0), f"seed {seed}"


@pytest.mark.parametrize("seed", range(5))
def test_also_when_every_tenth_message_is_lost(seed: int) -> None:
    network = Network(seed, loss=0.1)
    network.chain(10)
    assert converges(network, 30.0)


def test_peers_started_at_once_find_each_other() -> None:
    network = Network(3)
    peers = [network.peer(f"peer {number}") for number in range(10)]
    for before, peer in zip([None, *peers], peers, strict=False):
        network.start(peer, *([network.address(before)] if before else []))
    assert converges(network, 5.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("silent", [False, True], ids=["port refuses", "machine unplugged"])
def test_a_killed_peer_leaves_every_view(seed: int, silent: bool) -> None:
    network = Network(seed)
    peers = network.chain(10)
    assert converges(network, 3.0)
    peers[4].machine.silent = silent
    network.kill(peers[4])
    assert converges(network, 12.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_stop_leaves_every_view_at_once(seed: int) -> None:
    network = Network(seed)
    peers = network.chain(20)
    assert converges(network, 3.0)
    network.stop(peers[7])
    assert network.run_until(lambda: not peers[7].alive, 1.0) is not None
    assert converges(network, 2.0)


def test_a_stop_ends_in_time_with_nobody_left_to_hear_it() -> None:
    network = Network(1)
    first, second = network.chain(2)
    network.run(2)
    second.machine.silent = True
    network.stop(first)
    assert network.run_until(lambda: not first.alive, network.params.goodbye_timeout_s + 0.1) is not None


def test_a_stopping_peer_takes_nobody_in() -> None:
    network = Network(1)
    first, second = network.chain(2)
    second.machine.silent = True
    network.stop(first)
    answer = network.call(first, Join(Sender(STRANGER), network.address(first)), "10.9.9.9")
    assert isinstance(answer, Refuse)
    assert answer.kind is FailureKind.BUSY


@pytest.mark.parametrize("change", [-50, -1, 0, 1, 50])
@pytest.mark.parametrize("pause_s", [0.0, 2.0, 20.0, 90.0], ids="after {} s".format)
def test_a_restarted_peer_comes_back_with_its_new_record(change: int, pause_s: float) -> None:
    """Whatever its clock says, and whether or not it was missed meanwhile."""
    network = Network(11)
    peers = network.chain(5)
    network.handle(peers[2], ModelPublished(TASK, 1))
    network.run(3)
    last = peers[2].node.membership.me.incarnation
    network.kill(peers[2])
    network.run(pause_s)
    again = network.peer("peer 2", peers[2].machine, 8000, incarnation=last + change)
    network.start(again, network.address(peers[0]))
    network.handle(again, ModelPublished(OTHER_TASK, 1))
    network.run(5)
    assert network.converged()
    for peer in peers:
        if peer.alive:
            assert record_of(peer, again) == again.node.membership.me


@pytest.mark.parametrize("change", [-1, 0, 1])
def test_a_restarted_peer_that_publishes_nothing_more_is_no_longer_asked(change: int) -> None:
    network = Network(12)
    peers = network.chain(4)
    network.handle(peers[2], ModelPublished(TASK, 1))
    network.run(3)
    last = peers[2].node.membership.me.incarnation
    network.kill(peers[2])
    again = network.peer("peer 2", peers[2].machine, 8000, incarnation=last + change)
    network.start(again, network.address(peers[0]))
    network.run(5)
    assert [record_of(peer, again).published for peer in peers if peer.alive] == [False] * 3


def test_a_new_peer_at_an_old_address_replaces_the_old() -> None:
    network = Network(5)
    peers = network.chain(6)
    network.run(3)
    network.kill(peers[3])
    newcomer = network.start(network.peer("new", peers[3].machine, 8000), network.address(peers[0]))
    assert converges(network, 10.0)
    assert newcomer.id in peers[1].view
    assert peers[3].id not in peers[1].view


# refutation ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(Status),
    st.integers(0, MAX_INCARNATION - 1),
    st.integers(0, 2**32),
)
def test_a_living_peer_outlives_whatever_is_said_of_it(status: Status, incarnation: int, seed: int) -> None:
    network = Network(seed)
    peers = network.chain(3)
    network.run(2)
    slander = Record(peers[0].id, incarnation, status, (Address("10.9.9.9", 1),))
    network.call(
        peers[2], Ping(Sender(STRANGER), peers[2].id, network.address(peers[2]), (slander,)), "10.9.9.9"
    )
    network.run(8)
    mine = peers[0].node.membership.me
    assert mine.status is Status.ALIVE
    assert mine.incarnation <= MAX_INCARNATION
    for peer in peers[1:]:
        assert record_of(peer, peers[0]) == mine


def test_at_the_bound_of_incarnations_a_peer_stays_within_it_and_silent() -> None:
    """A liar can take a peer there, but not make it send what the others must refuse."""
    network = Network(1, through_wire=True)
    first, second = network.chain(2)
    slander = Record(first.id, MAX_INCARNATION, Status.DEAD, ())
    network.call(first, Ping(Sender(STRANGER), first.id, network.address(first), (slander,)), "10.9.9.9")
    network.run(5)
    assert first.node.membership.me.incarnation <= MAX_INCARNATION
    assert first.id in second.view


def test_a_frozen_peer_is_dropped() -> None:
    network = Network(2)
    peers = network.chain(4)
    network.run(2)
    peers[1].frozen = True
    network.run(15)
    assert peers[1].id not in peers[0].view | peers[2].view | peers[3].view


def test_a_busy_peer_is_not_even_suspected() -> None:
    network = Network(2)
    first, second = network.chain(2)
    network.run(2)
    second.busy = True
    for _ in range(150):
        network.run(0.1)
        assert record_of(first, second).status is Status.ALIVE


def test_two_peers_never_list_themselves() -> None:
    network = Network(9)
    first, second = network.chain(2)
    network.run(2)
    echo = Ping(
        Sender(second.node.membership.me), first.id, network.address(first), (first.node.membership.me,)
    )
    network.call(first, echo, "10.0.0.2")
    for _ in range(20):
        network.run(1)
        assert first.view == {second.id}
        assert second.view == {first.id}


def test_a_peer_may_be_told_of_itself_by_itself() -> None:
    """Its own join comes back to it when it is its own boot peer."""
    network = Network(9)
    first = network.peer("first")
    network.start(first, network.address(first))
    assert network.run_until(lambda: first.joined, 2.0) is not None
    assert first.view == set()


# cost ----------------------------------------------------------------------------------------------


def test_idle_messages_per_peer_do_not_grow_with_the_network() -> None:
    rates = []
    for count in (10, 100):
        network = Network(4)
        peers = network.chain(count, apart_s=0.05)
        assert converges(network, 5.0)
        network.run(8)  # until the last news has been passed on
        for peer in peers:
            peer.sent.clear()
        network.run(10)
        assert sum(peer.sent["news"] for peer in peers) == 0, "idle networks send no gossip"
        rates.append(sum(peer.sent["ping"] for peer in peers) / count / 10)
    assert rates == [pytest.approx(1.0, abs=0.11)] * 2


def test_attempts_at_a_lost_address_do_not_grow_with_the_network() -> None:
    """All peers have lost the same one: together they try a few times, not each of them."""
    for count in (10, 60):
        network = Network(4)
        peers = network.chain(count, apart_s=0.05)
        assert converges(network, 8.0)
        network.kill(peers[2])
        assert converges(network, 15.0)
        for peer in peers:
            peer.dialled.clear()
        network.run(30)  # each would have tried three times
        together = sum(peer.dialled[network.address(peers[2])] for peer in peers)
        assert 1 <= together <= 2 * 3 * network.params.heal_attempts


def test_a_newcomer_does_not_pass_on_what_its_network_has_just_told_it() -> None:
    network = Network(4)
    peers = network.chain(20, apart_s=0.05)
    assert converges(network, 5.0)
    network.run(10)
    newcomer = network.start(network.peer("new"), network.address(peers[0]))
    assert converges(network, 5.0)
    told = {
        record.peer_id
        for _, output in newcomer.outputs
        if isinstance(output, Send) and isinstance(output.message, Ping)
        for record in output.message.updates
    }
    assert told <= {newcomer.id, peers[0].id}, "the boot peer may have called before its answer came"


def test_a_lone_peer_sends_nothing() -> None:
    network = Network(4)
    first = network.start(network.peer("first"))
    network.run(10)
    assert not first.sent


def test_who_left_is_no_longer_called() -> None:
    network = Network(4)
    peers = network.chain(5)
    network.run(3)
    network.stop(peers[2])
    assert converges(network, 5.0)
    for peer in peers:
        peer.dialled.clear()
    network.run(60)
    assert not any(peer.dialled[network.address(peers[2])] for peer in peers)


def test_who_is_lost_is_tried_ever_more_rarely() -> None:
    network = Network(4)
    peers = network.chain(5)
    network.run(3)
    network.kill(peers[2])
    assert converges(network, 12.0)
    calls = []
    for seconds in (60, 60, 600, 600):
        for peer in peers:
            peer.dialled.clear()
        network.run(seconds)
        calls.append(max(peer.dialled[network.address(peers[2])] for peer in peers))
    assert calls[0] <= 5
    assert calls[1] <= 2
    assert calls[2] <= 4
    assert 1 <= calls[3] <= 3


@given(st.integers(0, 2**32))
def test_answers_are_bounded(seed: int) -> None:
    """Whatever a stranger tells, the answer to a ping holds at most `max_updates` and what is its own."""
    random = Random(seed)
    network = Network(seed)
    peer = network.start(network.peer("peer"))
    for _ in range(3):
        lies = tuple(
            Record(PeerId(f"{random.getrandbits(256):064x}"), 1, Status.ALIVE, STRANGER.addresses)
            for _ in range(128)
        )
        answer = network.call(peer, Ping(Sender(STRANGER), peer.id, network.address(peer), lies), "10.9.9.9")
        assert isinstance(answer, Ack)
        assert len(answer.updates) <= network.params.max_updates + 1
    reply = network.call(peer, Join(Sender(STRANGER), network.address(peer)), "10.9.9.9")
    assert isinstance(reply, JoinReply)
    assert len(reply.records) <= network.params.max_peers
