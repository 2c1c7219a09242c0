"""Whose models may come, and what becomes of a round when that changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pfl_net.core.events import (
    Ask,
    CancelFetch,
    CollectionDone,
    Fetch,
    FetchFinished,
    ModelPublished,
    PeersChanged,
    TrustChanged,
)
from p2pfl_net.core.ids import PeerId, TaskDigest
from p2pfl_net.core.trust import Trust
from tests.core.network import Network, Peer

TASK = TaskDigest("7" * 64)
IDS = [PeerId(f"{number:064x}") for number in range(4)]
id_sets = st.frozensets(st.sampled_from(IDS))


def asker_and(count: int) -> tuple[Network, Peer, list[Peer]]:
    """A peer without a model, and others that have one."""
    network = Network(8)
    asker, *others = network.chain(count + 1)
    for peer in others:
        network.handle(peer, ModelPublished(TASK, 1))
    network.run(5)
    return network, asker, others


def revoked(*peers: PeerId) -> TrustChanged:
    return TrustChanged(Trust(revoked=frozenset(peers)))


def candidates_of(network: Network, asker: Peer) -> set[PeerId]:
    """Whom a round of all asks."""
    before = len(asker.of(Fetch))
    network.handle(asker, Ask(1, 10, 5.0, TASK))
    network.run(1)
    done = asker.of(CollectionDone)[-1]
    asked = {fetch.peer_id for fetch in asker.of(Fetch)[before:] if isinstance(fetch, Fetch)}
    assert isinstance(done, CollectionDone)
    assert done.candidates == len(asked)
    return asked


@given(id_sets, id_sets, st.booleans(), st.sampled_from(IDS))
def test_what_a_decision_means(
    approved: frozenset[PeerId], gone: frozenset[PeerId], approved_only: bool, peer_id: PeerId
) -> None:
    trust = Trust(approved - gone, gone, approved_only)
    allowed = {"approved": True, "revoked": False, None: not approved_only}
    assert trust.allows(peer_id) is allowed[trust.said_of(peer_id)]


def test_only_those_that_are_allowed_are_candidates() -> None:
    network, asker, others = asker_and(3)
    ids = [peer.id for peer in others]
    assert candidates_of(network, asker) == set(ids)
    network.handle(asker, revoked(ids[0]))
    assert candidates_of(network, asker) == set(ids[1:])
    network.handle(asker, TrustChanged(Trust(approved=frozenset(ids[:1]), approved_only=True)))
    assert candidates_of(network, asker) == {ids[0]}
    network.handle(asker, TrustChanged(Trust(approved_only=True)))
    assert candidates_of(network, asker) == set()
    network.handle(asker, TrustChanged(Trust()))
    assert candidates_of(network, asker) == set(ids)
    assert len(asker.node.peer_list().peers) == 3, "membership does not ask"


def test_the_list_shows_what_was_decided() -> None:
    _, asker, others = asker_and(3)
    trust = Trust(approved=frozenset([others[0].id]), revoked=frozenset([others[1].id]))
    assert PeersChanged() in asker.node.handle(TrustChanged(trust), 99.0)
    said = {view.record.peer_id: view.trust for view in asker.node.peer_list().peers}
    assert said == {others[0].id: "approved", others[1].id: "revoked", others[2].id: None}


def test_a_running_fetch_is_dropped_and_replaced() -> None:
    _, asker, _ = asker_and(3)
    asked = [o for o in asker.node.handle(Ask(1, 2, 10.0, TASK), 99.0) if isinstance(o, Fetch)]
    outputs = asker.node.handle(revoked(asked[0].peer_id), 99.1)
    assert CancelFetch(asked[0].fetch) in outputs
    (substitute,) = (output for output in outputs if isinstance(output, Fetch))
    assert substitute.peer_id not in {fetch.peer_id for fetch in asked}
    outputs = []
    for fetch in (asked[1], substitute):
        outputs += asker.node.handle(FetchFinished(fetch.fetch), 99.2)
    (done,) = (output for output in outputs if isinstance(output, CollectionDone))
    assert done.fetched == (asked[1].fetch, substitute.fetch)
    assert [peer for peer, _ in done.failed] == [asked[0].peer_id]


def test_what_has_come_already_is_not_answered_and_is_replaced() -> None:
    _, asker, _ = asker_and(3)
    first, second = (o for o in asker.node.handle(Ask(1, 2, 10.0, TASK), 99.0) if isinstance(o, Fetch))
    asker.node.handle(FetchFinished(first.fetch), 99.1)
    outputs = asker.node.handle(revoked(first.peer_id), 99.2)
    assert CancelFetch(first.fetch) in outputs
    (substitute,) = (output for output in outputs if isinstance(output, Fetch))
    asker.node.handle(FetchFinished(substitute.fetch), 99.3)
    outputs = asker.node.handle(FetchFinished(second.fetch), 99.4)
    (done,) = (output for output in outputs if isinstance(output, CollectionDone))
    assert done.fetched == (substitute.fetch, second.fetch)


def test_a_round_from_which_all_are_struck_is_answered_at_once() -> None:
    _, asker, others = asker_and(2)
    asker.node.handle(Ask(1, 1, 10.0, TASK), 99.0)
    outputs = asker.node.handle(revoked(*(peer.id for peer in others)), 99.1)
    (done,) = (output for output in outputs if isinstance(output, CollectionDone))
    assert done.fetched == ()
    assert [reason for _, reason in done.failed] == ["its models are no longer taken here"]
