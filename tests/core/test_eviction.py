"""Whose proofs are taken, and which are forgotten when there are too many."""

from __future__ import annotations

from dataclasses import replace

from p2pfl_net.core.events import CallId, Evicted, Note, Proved, Received
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Accuse, Equivocation, Join, Record, Request, Sender, Status
from p2pfl_net.core.params import Params
from tests.core.network import Network, Peer, peer_id

FEW = 4
HOST = "10.9.0.1"
THERE = Address(HOST, 9)


def proof(who: PeerId) -> Equivocation:
    return Equivocation(who, 1, b"")


def accuse(network: Network, peer: Peer, who: PeerId) -> None:
    """A stranger shows the proof."""
    sender = Sender(Record(peer_id("stranger"), 1, Status.ALIVE, (THERE,)))
    message = Accuse(sender, peer.id, peer.node.membership.me.addresses[0], proof(who))
    receive(network, peer, message)


def tell_of(network: Network, peer: Peer, *others: PeerId) -> None:
    """A stranger speaks of these as of members."""
    records = tuple(Record(other, 1, Status.ALIVE, (THERE,)) for other in others)
    sender = Sender(Record(peer_id("stranger"), 1, Status.ALIVE, (THERE,)))
    receive(network, peer, Join(sender, peer.node.membership.me.addresses[0], records))


def receive(network: Network, peer: Peer, message: Request) -> None:
    """Of what the peer does about it nothing goes out."""
    outputs = peer.node.handle(Received(CallId(1), message, HOST), network.now)
    peer.outputs += [(network.now, output) for output in outputs]


def evicted(peer: Peer) -> list[PeerId]:
    return [out.equivocation.peer_id for out in peer.of(Evicted) if isinstance(out, Evicted)]


def test_a_proof_against_nobody_here_is_not_taken() -> None:
    network = Network(1)
    one, _ = network.chain(2)
    invented = [peer_id(f"invented {n}") for n in range(50)]
    for who in invented:
        accuse(network, one, who)
    assert evicted(one) == []
    accuse(network, one, one.id)
    assert [out for out in one.of(Note) if isinstance(out, Note) and out.event == "accused"]
    tell_of(network, one, invented[0])
    accuse(network, one, invented[0])
    accuse(network, one, invented[0])
    assert evicted(one) == [invented[0]]


def test_of_too_many_proofs_those_against_peers_never_called_make_room() -> None:
    network = Network(2, params=replace(Params(), max_evicted=FEW))
    one, *liars = network.chain(FEW + 2)
    network.run(30)
    network.handle(one, Proved(proof(liars[0].id)))
    strangers = [peer_id(f"stranger {n}") for n in range(2 * FEW)]
    for who in strangers:
        tell_of(network, one, who)
        accuse(network, one, who)
    assert evicted(one) == [liars[0].id, *strangers[: FEW - 1]], "no more of those whom nobody has met"
    for liar in liars[1:FEW]:
        network.handle(one, Proved(proof(liar.id)))
    known = [out for out in one.of(Evicted) if isinstance(out, Evicted)]
    assert [out.forgotten for out in known[FEW:]] == strangers[: FEW - 1]
    is_evicted = one.node.membership.evictions.is_evicted
    assert [is_evicted(liar.id) for liar in liars[:FEW]] == [True] * FEW
    assert not any(map(is_evicted, strangers))
