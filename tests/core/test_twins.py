"""Two processes with one key: each hears of the other, and only of a living one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pfl_net.core.events import BootFailed, Note, Output
from p2pfl_net.core.ids import Address
from p2pfl_net.core.messages import MAX_INCARNATION, Join, Ping, Record, Sender, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.twins import CONFLICT_EVENT, TwinWatch
from tests.core.network import Network, Peer, peer_id

PARAMS = Params()
HERE, THERE = Address("10.0.0.1", 8000), Address("10.0.0.2", 8000)
ME = Record(peer_id("me"), 1000, Status.ALIVE, (HERE,))
OTHER = replace(ME, incarnation=2000, addresses=(HERE, THERE))


class War:
    """A watch, the record that it watches over, and what it has told."""

    def __init__(self) -> None:
        self.out: list[Output] = []
        self.me = ME
        self.watch = TwinWatch(ME, PARAMS, self.out)

    def hear(self, now: float) -> int:
        """A record that outbids ours by one."""
        other = replace(OTHER, incarnation=self.me.incarnation + 1)
        step = self.watch.outbid(other, self.me, now)
        if step:
            self.me = replace(self.me, incarnation=other.incarnation + step)
        return step

    @property
    def told(self) -> list[dict[str, object]]:
        assert all(isinstance(output, Note) and output.event == CONFLICT_EVENT for output in self.out)
        return [dict(output.fields) for output in self.out if isinstance(output, Note)]


def test_the_third_record_that_outbids_us_cannot_be_ours() -> None:
    war = War()
    assert [war.hear(0.0), war.hear(1.0)] == [1, PARAMS.twin_step]
    assert war.told == []
    war.hear(2.0)
    assert war.told == [{"address": str(THERE)}]


def test_records_far_apart_are_of_earlier_lives() -> None:
    """As after splits of the network that were healed."""
    war = War()
    for number in range(10):
        assert war.hear(number * (PARAMS.tombstone_s + 1)) == 1
    assert war.told == []


def test_the_operator_is_told_again_but_rarely() -> None:
    war = War()
    for second in range(int(2 * PARAMS.twin_notice_s) + 10):
        war.hear(float(second))
    assert len(war.told) == 3


def test_a_known_twin_is_outbid_now_and_then_only() -> None:
    war = War()
    answers = [second for second in range(100) if war.hear(float(second))]
    assert answers == [0, 1, 2, 32, 62, 92]


def test_only_what_this_life_has_never_said_is_another_s() -> None:
    war = War()
    for incarnation in (1003, 1005):
        war.me = replace(ME, incarnation=incarnation)
        war.watch.said(war.me)
    assert not any(war.watch.is_other(replace(ME, incarnation=said), war.me) for said in (1000, 1003, 1005))
    said = [replace(OTHER, incarnation=incarnation) for incarnation in (999, 1001, 1005, 2005)]
    assert all(war.watch.is_other(record, war.me) for record in said), "the third by its address"
    assert war.watch.met(said[0], war.me, 0.0) == PARAMS.twin_step
    assert war.told == [{"address": str(THERE)}]


# in a network --------------------------------------------------------------------------------------


def conflicts(peer: Peer) -> list[Output]:
    return [note for note in peer.of(Note) if isinstance(note, Note) and note.event == CONFLICT_EVENT]


@pytest.mark.parametrize("behind", [-100, -1, 0, 1, 100])
@pytest.mark.parametrize("seed", range(3))
def test_two_with_one_key_are_both_told(seed: int, behind: int) -> None:
    network = Network(seed, through_wire=True)
    peers = network.chain(4)
    network.run(2)
    twin = network.peer("peer 1", incarnation=peers[1].node.membership.me.incarnation - behind)
    network.start(twin, network.address(peers[3]))
    assert network.run_until(lambda: bool(conflicts(twin) and conflicts(peers[1])), 40.0) is not None
    (first,), (second,) = conflicts(peers[1]), conflicts(twin)
    assert isinstance(first, Note)
    assert isinstance(second, Note)
    assert first.fields["address"] == str(network.address(twin))
    assert second.fields["address"] == str(network.address(peers[1]))
    assert not any(conflicts(peer) for peer in (peers[0], peers[2], peers[3])), "it is not theirs"


@pytest.mark.parametrize("behind", [-100, -2, -1, 1, 2, 100])
def test_a_twin_that_boots_through_its_other_self_is_noticed_at_once(behind: int) -> None:
    """It does not take the other's address for its own, and itself for the first of a network."""
    network = Network(1, through_wire=True)
    (first,) = network.chain(1)
    incarnation = first.node.membership.me.incarnation - behind
    twin = network.peer("peer 0", incarnation=incarnation)
    network.start(twin, network.address(first), timeout_s=5.0)
    network.run(1)
    assert len(conflicts(first)) == len(conflicts(twin)) == 1
    network.run(6)
    assert not twin.joined
    (failed,) = twin.of(BootFailed)
    assert isinstance(failed, BootFailed)
    assert "another process with this peer's key" in failed.reason


def test_a_peer_that_boots_through_itself_has_no_twin() -> None:
    network = Network(1)
    peer = network.peer("lonely")
    network.start(peer, network.address(peer))
    network.run(10)
    assert peer.joined
    assert conflicts(peer) == []


def test_after_the_war_the_one_that_is_left_is_a_peer_like_others() -> None:
    network = Network(2)
    peers = network.chain(4)
    network.run(2)
    twin = network.start(network.peer("peer 1"), network.address(peers[3]))
    assert network.run_until(lambda: bool(conflicts(twin) and conflicts(peers[1])), 40.0) is not None
    network.kill(twin)
    network.run(60)
    assert network.converged()
    for peer in peers:
        if peer is not peers[1]:
            record = peer.node.membership.table.get(peers[1].id)
            assert record == peers[1].node.membership.me


@pytest.mark.parametrize("incarnation", [MAX_INCARNATION - 1, MAX_INCARNATION])
def test_at_the_bound_of_incarnations_nothing_breaks(incarnation: int) -> None:
    network = Network(1, through_wire=True)
    peers = network.chain(2)
    stranger = Record(peer_id("stranger"), 1, Status.ALIVE, (THERE,))
    theirs = replace(peers[0].node.membership.me, incarnation=incarnation, addresses=(THERE,))
    for _ in range(4):
        ping = Ping(Sender(stranger), peers[0].id, network.address(peers[0]), (theirs,))
        network.call(peers[0], ping, THERE.host)
        network.call(peers[0], Join(Sender(stranger), network.address(peers[0]), (theirs,)), THERE.host)
    assert peers[0].node.membership.me.incarnation <= MAX_INCARNATION
    network.run(5)
