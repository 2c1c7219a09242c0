"""Joining through boot peers: patience, several of them, itself, and peers of an earlier life."""

from __future__ import annotations

import itertools
from functools import partial
from random import Random

import pytest

from p2pfl_net.core.boot import BootAttempts
from p2pfl_net.core.events import Answered, BootFailed, Joined, Note, Refuse, Send, Start, Stop, Tick
from p2pfl_net.core.ids import Address
from p2pfl_net.core.messages import Join, JoinReply, Sender
from p2pfl_net.core.params import Params
from tests.core.network import Network, Peer

NOWHERE = Address("10.7.7.7", 8000)
ELSEWHERE = Address("10.7.7.8", 8000)


def joins(peer: Peer) -> list[tuple[float, Address]]:
    return [
        (at, out.address) for at, out in peer.outputs if isinstance(out, Send) and type(out.message) is Join
    ]


def verdicts(peer: Peer) -> list[Joined | BootFailed]:
    return [out for _, out in peer.outputs if isinstance(out, Joined | BootFailed)]


def test_a_peer_without_boot_is_the_first() -> None:
    network = Network(1)
    first = network.start(network.peer("first"))
    assert verdicts(first) == [Joined(first=True)]


def test_a_boot_peer_that_is_late_is_asked_until_it_is_there() -> None:
    network = Network(1)
    late = network.peer("late")
    network.kill(late)
    peer = network.start(network.peer("peer"), network.address(late), timeout_s=30.0)
    network.run(9)
    assert verdicts(peer) == []
    late = network.start(network.peer("late again", late.machine))
    assert network.run_until(network.converged, 2.5) is not None
    assert verdicts(peer) == [Joined(first=False)]


def test_the_pauses_grow_up_to_a_bound_and_the_last_reason_is_told_at_the_time_out() -> None:
    network = Network(1)
    peer = network.start(network.peer("peer"), NOWHERE, timeout_s=20.0)
    assert network.run_until(lambda: bool(verdicts(peer)), 19.9) is None
    assert network.run_until(lambda: bool(verdicts(peer)), 0.2) is not None
    assert verdicts(peer) == [BootFailed(f"{NOWHERE}: connection refused")]
    times = [at for at, _ in joins(peer)]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    params = network.params
    for number, pause_s in enumerate(pauses[:-1]):
        expected = min(params.boot_backoff_s * 2**number, params.boot_backoff_max_s)
        assert pause_s == pytest.approx(expected, abs=0.03), number


def test_a_silent_boot_peer_ends_at_the_time_out_too() -> None:
    network = Network(1)
    silent = network.peer("silent")
    silent.frozen = True
    peer = network.start(network.peer("peer"), network.address(silent), timeout_s=4.0)
    network.run(4.1)
    (verdict,) = verdicts(peer)
    assert isinstance(verdict, BootFailed)
    assert "no answer within" in verdict.reason


def test_a_boot_peer_that_does_not_answer_is_told_once_for_each_reason() -> None:
    network = Network(1)
    silent = network.peer("silent")
    silent.frozen = True
    boot = network.address(silent)
    peer = network.start(network.peer("peer"), NOWHERE, boot, timeout_s=60.0)
    network.run(20)
    network.kill(silent)
    network.run(20)
    told = [out.fields for _, out in peer.outputs if isinstance(out, Note) and out.event == "boot_unanswered"]
    refused = {"address": str(NOWHERE), "reason": "connection refused"}
    assert told[0] == refused
    assert [fields["address"] for fields in told[1:]] == [str(boot)] * 2
    assert told[2]["reason"] == "connection refused"


def test_of_several_boot_peers_one_is_enough() -> None:
    network = Network(1)
    first = network.start(network.peer("first"))
    peer = network.start(network.peer("peer"), NOWHERE, ELSEWHERE, network.address(first))
    assert network.run_until(network.converged, 1.0) is not None
    assert [address for _, address in joins(peer)] == [NOWHERE, ELSEWHERE, network.address(first)]


def test_boot_peers_of_two_networks_make_one_of_them() -> None:
    network = Network(1)
    first, second = network.start(network.peer("first")), network.start(network.peer("second"))
    network.start(network.peer("third"), network.address(second))
    network.run(1)
    network.start(network.peer("told"), network.address(first), network.address(second))
    assert network.run_until(network.converged, 15) is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1"])
def test_a_peer_that_boots_to_itself_is_the_first(host: str) -> None:
    network = Network(1)
    peer = network.peer("peer")
    network.start(peer, Address(host, 8000))
    network.run(2)
    assert verdicts(peer) == [Joined(first=True)]
    assert peer.view == set()


def test_itself_among_others_is_struck_from_the_list() -> None:
    network = Network(1)
    other = network.start(network.peer("other"))
    peer = network.peer("peer")
    network.start(peer, network.address(peer), Address("127.0.0.1", 8000), network.address(other))
    assert network.run_until(network.converged, 1.0) is not None
    assert verdicts(peer) == [Joined(first=False)]


def test_itself_and_nobody_else_that_answers_is_a_failure() -> None:
    network = Network(1)
    peer = network.peer("peer")
    network.start(peer, network.address(peer), NOWHERE, timeout_s=5.0)
    network.run(6)
    assert verdicts(peer) == [BootFailed(f"{NOWHERE}: connection refused")]


def test_two_peers_that_boot_to_each_other_both_join() -> None:
    network = Network(1)
    first, second = network.peer("first"), network.peer("second")
    network.start(first, network.address(second))
    network.start(second, network.address(first))
    assert network.run_until(network.converged, 2.0) is not None
    assert [verdicts(peer) for peer in (first, second)] == [[Joined(first=False)]] * 2


def test_remembered_peers_are_tried_once_each_and_then_it_stands_alone() -> None:
    network = Network(1)
    peer = network.start(network.peer("peer"), remembered=(NOWHERE, ELSEWHERE))
    assert network.run_until(lambda: bool(verdicts(peer)), 1.0) is not None
    assert verdicts(peer) == [Joined(first=True)]
    assert [address for _, address in joins(peer)] == [NOWHERE, ELSEWHERE]


def test_remembered_peers_that_are_silent_do_not_end_the_daemon() -> None:
    network = Network(1)
    silent = [network.peer(f"silent {number}") for number in range(5)]
    for peer in silent:
        peer.frozen = True
    alone = network.peer("alone")
    network.start(alone, remembered=tuple(map(network.address, silent)))
    assert network.run_until(lambda: bool(verdicts(alone)), 5.1) is not None
    assert verdicts(alone) == [Joined(first=True)]


def test_a_remembered_peer_that_lives_is_joined() -> None:
    network = Network(1)
    old = network.start(network.peer("old"))
    network.start(network.peer("peer"), remembered=(NOWHERE, network.address(old)))
    assert network.run_until(network.converged, 1.0) is not None


def test_a_stop_while_joining_ends_the_attempts() -> None:
    network = Network(1)
    peer = network.start(network.peer("peer"), NOWHERE)
    network.run(1)
    network.handle(peer, Stop())
    assert not peer.alive
    assert verdicts(peer) == []


def test_an_answer_that_comes_twice_or_too_late_changes_nothing() -> None:
    network = Network(1)
    other = network.peer("other")
    reply = JoinReply(Sender(other.node.membership.me), "10.0.0.2", ())
    peer = network.peer("peer")
    (send,) = (out for out in peer.node.handle(Start((NOWHERE,), 30.0), 0.0) if isinstance(out, Send))
    assert Joined(first=False) in peer.node.handle(Answered(send.request, reply), 0.0)
    assert peer.node.handle(Answered(send.request, reply), 0.0) == []


def test_a_boot_peer_that_is_stopping_is_asked_again() -> None:
    network = Network(1)
    first, second = network.chain(2)
    second.machine.silent = True  # its goodbye takes a while
    network.stop(first)
    peer = network.start(network.peer("peer"), network.address(first))
    network.run(0.5)
    assert any(isinstance(out, Refuse) for _, out in first.outputs)
    assert verdicts(peer) == []
    assert network.run_until(lambda: not first.alive, 1.0) is not None
    again = network.start(network.peer("first", first.machine, incarnation=2000))
    assert network.run_until(lambda: bool(verdicts(peer)), 3.0) is not None
    assert again.id in peer.view


def test_every_boot_peer_gets_its_turn_after_one_was_struck() -> None:
    attempts = BootAttempts.begin(Start((NOWHERE, ELSEWHERE), 10.0), Params(), 0.0)
    assert attempts.next(0.0) == NOWHERE
    attempts.forget(NOWHERE, 0.0)
    assert attempts.next(0.0) == ELSEWHERE
    assert attempts.failed(ELSEWHERE, "busy", 0.0) == Params().boot_backoff_s
    assert attempts.next(1.0) == ELSEWHERE


def test_no_attempt_is_made_that_is_too_short_to_tell_anything() -> None:
    attempts = BootAttempts.begin(Start((NOWHERE,), 10.0), Params(), 0.0)
    assert attempts.next(0.0) == NOWHERE
    assert attempts.failed(NOWHERE, "busy", 9.7) == 10.0
    assert attempts.next(10.0) is None


def test_an_attempt_that_the_deadline_cut_short_hides_no_reason() -> None:
    attempts = BootAttempts.begin(Start((NOWHERE,), 10.0), Params(), 0.0)
    assert attempts.next(0.0) == NOWHERE
    attempts.failed(NOWHERE, "something else lives there", 9.0)
    assert attempts.next(9.1) == NOWHERE
    attempts.failed(NOWHERE, "no answer within 0.9 s", 10.0)
    assert attempts.reason == "something else lives there"


# peers of an earlier life --------------------------------------------------------------------------


def test_a_peer_that_boots_to_itself_asks_those_it_knew_and_then_stands_alone() -> None:
    network = Network(1)
    peer = network.peer("peer")
    network.start(peer, network.address(peer), remembered=(NOWHERE, ELSEWHERE))
    assert network.run_until(lambda: bool(verdicts(peer)), 5.1) is not None
    assert verdicts(peer) == [Joined(first=True)]
    assert [address for _, address in joins(peer)] == [network.address(peer), NOWHERE, ELSEWHERE]


def test_a_boot_peer_that_is_late_is_waited_for_although_the_old_network_lives() -> None:
    network = Network(1)
    old, late = network.start(network.peer("old")), network.peer("late")
    network.kill(late)
    remembered = (network.address(old),)
    peer = network.start(network.peer("peer"), network.address(late), remembered=remembered)
    network.run(network.params.remembered_after_s / 2)
    late = network.start(network.peer("late again", late.machine))
    assert network.run_until(lambda: bool(verdicts(peer)), 2.0) is not None
    assert peer.view == {late.id}


def test_a_boot_peer_that_is_gone_is_replaced_and_still_asked() -> None:
    network = Network(1)
    old, gone = network.start(network.peer("old")), network.peer("gone")
    network.kill(gone)
    remembered = (network.address(old),)
    peer = network.start(network.peer("peer"), network.address(gone), remembered=remembered)
    assert network.run_until(lambda: bool(verdicts(peer)), 6.0) is not None
    assert peer.view == {old.id}
    back = network.start(network.peer("back", gone.machine))
    assert network.run_until(network.converged, 5.0) is not None
    assert old.view == {peer.id, back.id}
    network.run(60.0)
    assert verdicts(peer) == [Joined(first=False)]


def test_a_failure_names_a_boot_peer_and_nobody_that_the_user_never_named() -> None:
    network = Network(1)
    peer = network.start(network.peer("peer"), NOWHERE, timeout_s=10.0, remembered=(ELSEWHERE,))
    network.run(11.0)
    assert verdicts(peer) == [BootFailed(f"{NOWHERE}: connection refused")]
    assert ELSEWHERE in {address for _, address in joins(peer)}


@pytest.mark.parametrize("count", [6, 20])
def test_a_network_whose_power_comes_back_is_one_network(count: int) -> None:
    for seed in range(20):
        network = Network(seed)
        peers = [network.peer(f"peer {number}") for number in range(count)]
        random = Random(seed)
        for number, peer in enumerate(peers):
            others = [network.address(other) for other in peers if other is not peer]
            boot = [network.address(peers[number - 1])] if number else []
            del peer.machine.listeners[peer.port]  # until it starts
            listen = partial(peer.machine.listeners.update, {peer.port: peer})
            start = Start(tuple(boot), 30.0, tuple(random.sample(others, 5)))
            at_s = random.uniform(0.0, 1.0)
            network.at(at_s, listen)
            network.at(at_s, partial(network.handle, peer, start))
        assert network.run_until(network.converged, 10.0) is not None, f"seed {seed}"


def test_the_verdict_comes_also_while_an_attempt_hangs_in_a_name_server() -> None:
    params = Params()
    node = Network(1).peer("peer").node
    begun = node.handle(Start((Address("lab1", 8000),), 5.0), 0.0)
    assert [type(out.message) for out in begun if isinstance(out, Send)] == [Join]
    now, verdict = 0.0, None
    while verdict is None and (due := node.wakeup()) is not None and due < 60.0:
        now = max(now, due)
        verdict = next((out for out in node.handle(Tick(), now) if isinstance(out, BootFailed)), None)
    assert verdict is not None
    assert 5.0 <= now < 5.0 + 2 * params.probe_interval_s
