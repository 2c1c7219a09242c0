"""Decisions follow a peer whose key was replaced, and nobody else."""

from __future__ import annotations

import json
from contextlib import suppress

import grpc
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state.trust import MAX_LINKS

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.trust import Trust
from p2pfl_net.rpc import rotations as chains
from p2pfl_net.rpc.fetching import FETCH_MODEL_METHOD
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.runtime import identity
from p2pfl_net.runtime.heirs import MAX_RIVALS_OF_ONE, MAX_ROTATIONS_OF_ONE, Heirs
from tests.processes import wait_for
from tests.rpc.callers import CALL_TIMEOUT_S, calling
from tests.rpc.deciding import decide, refused
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete

A, B, C, THIEF = (PeerId(letter * 64) for letter in "abcf")


def approved(*peers: PeerId) -> Trust:
    return Trust(approved=frozenset(peers), approved_only=True)


def number(n: int) -> PeerId:
    return PeerId(f"{n:064x}")


def test_an_approval_goes_to_the_heir_and_leaves_the_old_key() -> None:
    heirs = Heirs([A])
    assert heirs.add(B, (A,))
    assert heirs.applied(approved(A)) == approved(B)
    assert heirs.add(C, (B, A))
    assert not heirs.add(C, (B, A)), "no news"
    assert heirs.applied(approved(A)) == approved(C)
    heirs.decide([C])
    assert heirs.applied(approved(C)) == approved(C)
    assert heirs.links == ()
    assert heirs.applied(approved()) == approved()


def test_a_second_line_from_an_old_key_inherits_no_approval() -> None:
    for later in ((A,), (B, A)):
        heirs = Heirs([A])
        heirs.add(B, (A,))
        heirs.add(C, (B, A))
        heirs.add(THIEF, later)
        assert heirs.applied(approved(A)) == approved(C)


def test_a_revocation_goes_to_all_heirs_until_a_person_says_otherwise() -> None:
    heirs = Heirs([A])
    heirs.add(B, (A,))
    heirs.add(THIEF, (A,))
    assert heirs.applied(Trust(revoked=frozenset([A]))).revoked == {A, B, THIEF}
    heirs.decide([A, B])
    decided = heirs.applied(Trust(approved=frozenset([B]), revoked=frozenset([A])))
    assert decided == Trust(frozenset([B]), frozenset([A, THIEF]))


def test_what_a_person_said_of_an_heir_holds_for_its_heirs() -> None:
    heirs = Heirs([A, B])
    heirs.add(C, (B, A))
    decided = heirs.applied(Trust(approved=frozenset([B]), revoked=frozenset([A])))
    assert decided == Trust(frozenset([C]), frozenset([A]))
    decided = heirs.applied(Trust(approved=frozenset([A]), revoked=frozenset([B])))
    assert decided == Trust(frozenset(), frozenset([B, C]))


@given(
    st.sets(st.sampled_from([A, B, C, THIEF])),
    st.lists(st.tuples(st.sampled_from([A, B, C, THIEF]), st.lists(st.sampled_from([A, B, C, THIEF])))),
)
def test_whatever_is_shown_nobody_is_both(
    others: set[PeerId], lines: list[tuple[PeerId, list[PeerId]]]
) -> None:
    heirs = Heirs({A, B} | others)
    for peer_id, former in lines:
        heirs.add(peer_id, tuple(dict.fromkeys(old for old in former if old != peer_id)))
    decided = heirs.applied(Trust(frozenset({A} | others - {B}), frozenset([B])))
    assert not decided.approved & decided.revoked
    assert B in decided.revoked
    again = Heirs({A, B} | others)
    again.restore(heirs.links)
    assert again.links == heirs.links


def test_strangers_and_thieves_make_nobody_forget_an_heir() -> None:
    heirs = Heirs([A])
    heirs.add(B, (A,))
    for n in range(10_000):
        heirs.add(number(2 * n), (number(2 * n + 1),))
        heirs.add(number(10**6 + n), (A,))
        heirs.add(THIEF, (number(2 * 10**6 + n), A))
    assert len(heirs.links) <= 1 + MAX_RIVALS_OF_ONE
    assert heirs.applied(approved(A)) == approved(B)
    line: tuple[PeerId, ...] = (B, A)
    for n in range(2 * MAX_ROTATIONS_OF_ONE):
        heirs.add(number(3 * 10**6 + n), line)
        line = (number(3 * 10**6 + n), *line)
    last = number(3 * 10**6 + MAX_ROTATIONS_OF_ONE - 2)
    assert heirs.applied(approved(A)) == approved(last), "rivals take no place of the line's own"


def test_revoked_peers_leave_room_for_the_heirs_of_others() -> None:
    revoked = [number(n) for n in range(100)]
    heirs = Heirs([A, *revoked])
    new = 1000
    for root in revoked:
        line: tuple[PeerId, ...] = (root,)
        for _ in range(MAX_ROTATIONS_OF_ONE):
            new += 1
            heirs.add(number(new), line)
            line = (number(new), *line)
    assert len(heirs.links) <= MAX_LINKS + len(revoked)
    heirs.add(B, (A,))
    assert heirs.applied(approved(A)) == approved(B)


def test_an_approved_peer_with_a_new_key_is_served(network: Network) -> None:
    source = network.start("--trust", "approve")
    asker = network.start(boot=source)
    publish(source.state, make_model(1, 1000))
    old = asker.peer_id
    decide("approve", source, old)
    assert asker.stop() == 0
    assert run_command("key", "rotate", "--state", asker.state.root).returncode == 0
    asker.start(boot=source)
    assert asker.peer_id != old
    wait_complete([source, asker])
    asker.wait_published([source.peer_id])
    told = source.wait_event("trust_followed", peer=asker.peer_id)
    assert (told["former"], told["trust"]) == (old, "approved")
    with FakeTrainer(asker.state) as trainer:
        assert [model.peer_id for model in trainer.ask().models] == [source.peer_id]
        listed = json.loads(decide("list", source, "--json"))["approved"]
        assert [(entry["id"], entry["now"]) for entry in listed] == [(old, asker.peer_id)]
        assert f"it is {asker.peer_id} now" in decide("list", source)
        decide("revoke", source, asker.peer_id)
        assert trainer.ask().models == ()
    wait_for(lambda: source.events("trust_changed"), what="the revocation in the log")


def test_an_old_key_counts_no_more_after_a_restart_either(network: Network) -> None:
    source = network.start("--trust", "approve")
    asker = network.start(boot=source)
    publish(source.state, make_model(1, 1000))
    stolen = identity.load(asker.state.key)
    assert stolen is not None
    decide("approve", source, asker.peer_id)
    assert fetch_code(source, stolen) is grpc.StatusCode.OK
    assert asker.stop() == 0
    assert run_command("key", "rotate", "--state", asker.state.root).returncode == 0
    asker.start(boot=source)
    source.wait_event("trust_followed", peer=asker.peer_id)
    assert asker.stop() == 0
    thief = chains.rotated(stolen, Identity.new())
    for other in (chains.rotated(Identity.new(), Identity.new()), thief):
        assert fetch_code(source, other) is grpc.StatusCode.PERMISSION_DENIED
    source.kill()
    source.start("--trust", "approve")
    for other in (stolen, thief):
        assert fetch_code(source, other) is grpc.StatusCode.PERMISSION_DENIED
    heirs = source.state.trust_heirs
    heirs.write_bytes(b'{"contract": 1, "links": [{"old": "../x", "new": "y"}]}')
    assert "trust_heirs.json is damaged" in refused(3, "list", source)


def fetch_code(peer: Peer, caller: Identity) -> grpc.StatusCode:
    """How a fetch by whoever has this key ends."""
    with calling(peer.port, caller) as channel:
        call = channel.unary_stream(FETCH_MODEL_METHOD, None, None)(b"", timeout=CALL_TIMEOUT_S)
        with suppress(grpc.RpcError):
            list(call)
        code: grpc.StatusCode = call.code()
        return code
