"""Which addresses spread, on machines with several, and what liars can do about it."""

from __future__ import annotations

import pytest

from p2pfl_net.core.events import InterfacesChanged, Note, Send
from p2pfl_net.core.ids import Address
from p2pfl_net.core.messages import Ack, Join, JoinReply, Ping, Record, Sender, Status
from p2pfl_net.core.reachability import Reachability
from tests.core.network import LOOPBACK, Network, Peer, peer_id

VICTIM = Address("10.66.66.66", 6666)
LIAR = Record(peer_id("liar"), 1, Status.ALIVE, (Address("10.9.9.9", 9000),))


def addresses_of(viewer: Peer, other: Peer) -> tuple[Address, ...]:
    table = viewer.node.membership.table
    return () if table.get(other.id) is None else table.addresses(other.id)


def told(peer: Peer) -> list[Record]:
    """Every record that `peer` sent to other machines."""
    records: list[Record] = []
    for _, output in peer.outputs:
        if isinstance(output, Send) and not output.address.is_loopback:
            message = output.message
            records.append(message.sender.record)
            records.extend(message.updates if isinstance(message, Ping) else ())
    return records


def reaches(network: Network, caller: Peer, other: Peer) -> bool:
    found = [network._route(caller.machine, address) for address in addresses_of(caller, other)]
    return other in [entry[0] for entry in found if entry is not None]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_two_machines_find_each_other_without_anybody_editing_an_address(seed: int, loss: float) -> None:
    network = Network(seed, through_wire=True, loss=loss)
    desk = network.machine("192.168.1.1", bridges=("172.17.0.1",))
    laptop = network.machine("192.168.1.2", bridges=("172.17.0.1",))
    a, b = network.peer("a", desk, 8000), network.peer("b", desk, 8001)
    c = network.peer("c", laptop, 8002)
    network.start(a)
    network.start(b, Address(LOOPBACK, 8000))
    network.run(2)
    network.start(c, Address("192.168.1.1", 8001))
    assert network.run_until(network.converged, 60.0 if loss else 3.0) is not None
    network.run(20)
    for caller in (a, b, c):
        for other in (a, b, c):
            assert caller is other or reaches(network, caller, other), (caller.name, other.name)
    assert Address(LOOPBACK, 8000) in addresses_of(b, a)
    assert Address(LOOPBACK, 8001) in addresses_of(a, b)
    assert not any(address.is_loopback for peer in (a, b) for address in addresses_of(c, peer))
    assert not any(address.is_loopback for peer in (a, b) for address in addresses_of(peer, c))
    assert not any(address.is_loopback for peer in (a, b, c) for r in told(peer) for address in r.addresses)


def test_a_peer_that_knows_loopback_already_does_not_bring_it_to_another_machine() -> None:
    """It was asked over loopback while its own boot peer was not up yet."""
    network = Network(3, through_wire=True)
    desk, laptop = network.machine("192.168.1.1"), network.machine("192.168.1.2")
    a, b = network.peer("a", desk, 8000), network.peer("b", desk, 8001)
    far = Address("192.168.1.2", 8000)
    network.start(a, far)
    network.start(b, Address(LOOPBACK, 8000))
    network.run(2)
    assert Address(LOOPBACK, 8000) in a.node.membership.me.addresses
    c = network.start(network.peer("c", laptop, 8000))
    assert network.run_until(network.converged, 5.0) is not None
    network.run(10)
    for peer in (a, b):
        assert not any(address.is_loopback for address in addresses_of(c, peer))
    assert not any(address.is_loopback for peer in (a, b) for r in told(peer) for address in r.addresses)


def test_loopback_addresses_from_another_machine_are_not_believed() -> None:
    network = Network(1)
    first = network.start(network.peer("first"))
    here = network.address(first)
    trap = (Address(LOOPBACK, 22), Address("10.9.9.9", 9000))
    liar = Record(LIAR.peer_id, 1, Status.ALIVE, trap)
    other = Record(peer_id("other"), 1, Status.ALIVE, trap)
    hidden = Record(peer_id("hidden"), 1, Status.ALIVE, trap[:1])
    network.call(first, Ping(Sender(liar, candidates=trap), first.id, here, (other, hidden)), "10.9.9.9")
    network.call(first, Join(Sender(liar, candidates=trap), here), "10.9.9.9")
    network.run(20)
    assert hidden.peer_id not in first.view
    assert not any(address.is_loopback for address in first.dialled)


def test_a_loopback_only_network_works() -> None:
    network = Network(1)
    desk = network.machine()
    peers = [network.peer(f"peer {n}", desk, 8000 + n) for n in range(5)]
    network.start(peers[0])
    for peer in peers[1:]:
        network.start(peer, Address(LOOPBACK, peer.port - 1))
    assert network.run_until(network.converged, 3.0) is not None


@pytest.mark.parametrize("seed", range(10))
def test_behind_a_port_map_the_address_that_others_see_is_announced(seed: int) -> None:
    """The dial-back may well arrive before the joiner has heard how it is seen."""
    network = Network(seed, through_wire=True)
    peers = network.chain(3)
    inside = network.machine(bridges=("172.17.0.2",), outside="10.5.5.5")
    mapped = network.start(network.peer("mapped", inside), network.address(peers[0]))
    assert network.run_until(network.converged, 10.0) is not None
    assert mapped.node.membership.me.addresses == (Address("10.5.5.5", 8000),)


@pytest.mark.parametrize("seed", range(5))
def test_a_peer_whose_dial_back_was_lost_is_found_all_the_same(seed: int) -> None:
    network = Network(seed)
    peers = network.chain(3)
    network.run(5)
    joiner = network.peer("joiner")
    network.start(joiner, network.address(peers[0]))
    assert network.run_until(lambda: joiner.joined, 1.0) is not None
    joiner.machine.silent = True
    network.run(1.5)
    joiner.machine.silent = False
    assert network.run_until(network.converged, 5.0) is not None


def test_an_address_that_nobody_could_dial_is_never_announced() -> None:
    network = Network(1)
    peers = network.chain(3)
    hidden = network.machine("10.3.3.3", bridges=("172.17.0.9",))
    peer = network.start(network.peer("hidden", hidden), network.address(peers[0]))
    hidden.silent = True
    network.run(30)
    assert not any(record.addresses for record in told(peer) if record.peer_id == peer.id)
    assert all(peer.id not in other.view for other in peers)
    bridge = Address("172.17.0.9", 8000)
    hidden.silent = False
    assert network.run_until(network.converged, 5.0) is not None
    assert all(bridge not in addresses_of(other, peer) for other in peers)


def test_an_unreachable_peer_costs_the_others_a_bounded_number_of_calls() -> None:
    network = Network(1)
    peers = network.chain(4)
    network.run(10)
    bridges = tuple(f"172.17.0.{n}" for n in range(1, 20))
    hidden = network.machine("10.3.3.3", bridges=bridges)
    network.start(network.peer("hidden", hidden), network.address(peers[0]))
    hidden.silent = True
    network.run(5)
    for peer in peers:
        peer.sent.clear()
    network.run(20)
    allowed_per_s = len(peers) + network.params.max_addresses + 1
    assert sum(peer.sent["ping"] for peer in peers) <= 20 * allowed_per_s + 10


def test_a_joiner_cannot_make_us_flood_a_victim() -> None:
    network = Network(1)
    first = network.start(network.peer("first"))
    victims = tuple(Address(VICTIM.host, 1000 + n) for n in range(8))
    for host in range(100):
        sender = Sender(Record(LIAR.peer_id, 1, Status.ALIVE, ()), 0, victims)
        network.call(first, Join(sender, network.address(first)), f"10.9.9.{host}")
    assert sum(count for a, count in first.dialled.items() if a.host == VICTIM.host) <= 64
    network.run(5)
    assert sum(first.dialled.values()) <= 64


def test_no_news_is_spent_on_addresses_where_nobody_may_listen() -> None:
    """Each piece is passed on a few times only."""
    network = Network(1)
    first = network.chain(3)[0]
    victims = tuple(Address(VICTIM.host, 1000 + n) for n in range(8))
    network.call(first, Join(Sender(LIAR, 0, victims), network.address(first)), "10.9.9.9")
    sent = [output for _, output in first.outputs if isinstance(output, Send) and output.address in victims]
    assert len(sent) == len(victims)
    assert all(isinstance(send.message, Ping) and send.message.updates == () for send in sent)


@pytest.mark.parametrize("dialled", [VICTIM, Address("10.0.0.1", 22), Address(LOOPBACK, 22)])
def test_a_liar_cannot_make_us_announce_what_is_not_ours(dialled: Address) -> None:
    network = Network(1)
    first, second = network.chain(2)
    before = first.node.membership.me.addresses
    for message in (Join(Sender(LIAR), dialled), Ping(Sender(LIAR), first.id, dialled)):
        answer = network.call(first, message, "10.9.9.9")
        assert isinstance(answer, JoinReply | Ack)
        assert dialled not in answer.sender.record.addresses
    network.run(5)
    assert first.node.membership.me.addresses == before
    assert dialled not in addresses_of(second, first)


def test_addresses_that_a_liar_adds_to_a_record_are_gone_once_its_owner_hears() -> None:
    network = Network(1)
    first, second = network.chain(2)
    network.run(3)
    mine = first.node.membership.me
    slander = Record(first.id, mine.incarnation, Status.ALIVE, (*mine.addresses, VICTIM))
    network.call(second, Ping(Sender(LIAR), second.id, network.address(second), (slander,)), "10.9.9.9")
    assert VICTIM in addresses_of(second, first)
    network.run(5)
    assert VICTIM not in addresses_of(second, first)


# one peer's own knowledge --------------------------------------------------------------------------


def test_the_advertised_address_is_all_that_counts() -> None:
    advertised = Address("203.0.113.5", 80)
    reach = Reachability(8000, (LOOPBACK, "10.0.0.1"), advertised, 8)
    reach.observed("10.0.0.9")
    assert not reach.confirm(Address("10.0.0.1", 8000))
    assert (reach.confirmed, reach.unconfirmed(), reach.best()) == ((advertised,), (), advertised)


def test_a_boot_peer_that_sees_us_over_loopback_tells_nothing() -> None:
    reach = Reachability(8000, ("10.0.0.1",), None, 8)
    for host in (LOOPBACK, "::1", "not an address", "10.0.0.1"):
        reach.observed(host)
    assert reach.unconfirmed() == (Address("10.0.0.1", 8000),)


def test_what_we_learn_is_bounded() -> None:
    reach = Reachability(8000, (LOOPBACK,), None, 2)
    for number in range(1, 50):
        reach.observed(f"10.0.0.{number}")
    for number in range(1, 50):
        reach.confirm(Address(f"10.0.0.{number}", 8000))
    assert len(reach.confirmed) == 2
    assert len(reach.unconfirmed()) <= 2


def test_any_loopback_spelling_confirms_the_one_and_remote_ones_come_first() -> None:
    reach = Reachability(8000, (LOOPBACK, "10.0.0.1"), None, 8)
    assert reach.best() == Address("10.0.0.1", 8000)
    assert reach.confirm(Address("127.0.1.1", 8000))
    assert reach.confirm(Address("10.0.0.1", 8000))
    assert not reach.confirm(Address("10.0.0.1", 8000))
    assert reach.confirmed == (Address("10.0.0.1", 8000), Address(LOOPBACK, 8000))


def test_a_first_peer_behind_a_port_map_is_told_where_others_reach_it() -> None:
    network = Network(1)
    container = network.machine(bridges=("172.17.0.2",), outside="198.51.100.7")
    outside = Address("198.51.100.7", 8000)
    first = network.start(network.peer("first", container))
    for number in range(3):
        network.start(network.peer(f"joiner {number}"), outside)
    network.run(5)
    notes = [out for out in first.of(Note) if isinstance(out, Note) and out.event == "reached_elsewhere"]
    assert [note.fields["address"] for note in notes] == [str(outside)]
    assert "--advertise 198.51.100.7:8000" in str(notes[0].fields["remedy"])
    assert outside not in first.node.membership.me.addresses, "only the operator may announce it"


# machines that move --------------------------------------------------------------------------------

OLD, NEW, OUTSIDE = "192.168.1.1", "192.168.7.7", "10.5.5.5"


def moving(*hosts: str) -> Reachability:
    """A peer on `hosts`, all confirmed."""
    reach = Reachability(8000, hosts, None, 8)
    for host in hosts:
        assert reach.confirm(Address(host, 8000))
    return reach


def test_an_address_that_is_gone_is_announced_no_more() -> None:
    reach = moving(LOOPBACK, OLD)
    assert reach.listen_on((LOOPBACK, NEW))
    assert reach.confirmed == (Address(LOOPBACK, 8000),)
    assert reach.unconfirmed() == (Address(NEW, 8000),)
    assert not reach.confirm(Address(OLD, 8000))
    assert reach.confirm(Address(NEW, 8000))
    assert not reach.listen_on((NEW, LOOPBACK))
    assert reach.best() == Address(NEW, 8000)


def test_what_others_see_stays_when_an_interface_is_added() -> None:
    """As a container's bridge, behind a port map."""
    reach = moving(LOOPBACK, OLD)
    reach.observed(OUTSIDE)
    assert reach.confirm(Address(OUTSIDE, 8000))
    assert reach.listen_on((LOOPBACK, OLD, "172.17.0.1"))
    assert Address(OUTSIDE, 8000) in reach.confirmed


def test_what_others_see_is_dialled_anew_when_an_address_is_gone() -> None:
    reach = moving(LOOPBACK, OLD)
    reach.observed(OUTSIDE)
    assert reach.confirm(Address(OUTSIDE, 8000))
    assert reach.listen_on((LOOPBACK, NEW))
    assert Address(OUTSIDE, 8000) not in reach.confirmed
    assert Address(OUTSIDE, 8000) in reach.unconfirmed()
    assert reach.confirm(Address(OUTSIDE, 8000))


def test_an_advertised_address_stays() -> None:
    reach = Reachability(8000, (OLD,), Address(OUTSIDE, 9), 8)
    assert not reach.listen_on((NEW,))
    assert reach.confirmed == (Address(OUTSIDE, 9),)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("lan", [(), (OLD,)])
def test_a_peer_that_comes_back_at_another_port_is_known_there_only(seed: int, lan: tuple[str, ...]) -> None:
    network = Network(seed, through_wire=True)
    desk, laptop = network.machine(*lan), network.machine("192.168.1.2")
    peers = [network.start(network.peer("peer 0", desk))]
    for port in (8001, 8002, 8003):
        peers.append(network.peer(f"peer {port}", desk, port))
        network.start(peers[-1], Address(LOOPBACK, port - 1))
        network.run(0.2)
    if lan:
        peers.append(network.start(network.peer("far", laptop), Address(OLD, 8000)))
    assert network.run_until(network.converged, 10.0) is not None
    gone = peers.pop(3)
    network.kill(gone)
    back = network.peer(gone.name, desk, 9000, incarnation=2000)
    network.start(back, Address(LOOPBACK, 8000))

    def is_known_there_only() -> bool:
        known = [addresses_of(peer, back) for peer in peers]
        return all(found and {address.port for address in found} == {9000} for found in known)

    assert network.run_until(is_known_there_only, 10.0) is not None
    network.run(60)
    assert is_known_there_only()
    assert network.converged()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 8])
def test_a_machine_that_moves_is_followed_by_all(seed: int, size: int) -> None:
    network = Network(seed, through_wire=True)
    *others, moved = network.chain(size)
    assert network.run_until(network.converged, 10.0) is not None
    network.machine(*moved.machine.lan).silent = True  # where nobody is, nobody refuses
    moved.machine.lan = (NEW,)
    network.run(5)
    network.handle(moved, InterfacesChanged(moved.machine.interfaces))

    def followed() -> bool:
        return all(addresses_of(other, moved) == (Address(NEW, moved.port),) for other in others)

    assert network.run_until(followed, 10.0) is not None
    network.run(30)
    assert followed()
    assert network.converged()
    notes = [output for other in others for _, output in other.outputs if isinstance(output, Note)]
    assert "peer_lost" not in {note.event for note in notes}
