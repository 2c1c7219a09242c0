"""Decisions follow a peer whose key was replaced, and nobody else."""

from __future__ import annotations

import json
from contextlib import suppress

import grpc
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state.trust import MAX_HEIRS

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.trust import Trust
from p2pfl_net.rpc.fetching import FETCH_MODEL_METHOD
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.runtime import identity
from p2pfl_net.runtime.heirs import Heirs
from tests.processes import wait_for
from tests.rpc.callers import CALL_TIMEOUT_S, calling
from tests.rpc.deciding import decide, refused
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete

A, B, C, THIEF = (PeerId(letter * 64) for letter in "abcf")


def approved(*peers: PeerId) -> Trust:
    return Trust(approved=frozenset(peers), approved_only=True)


def test_an_approval_goes_to_the_heir_and_leaves_the_old_key() -> None:
    heirs = Heirs()
    heirs.add(B, (A,))
    assert heirs.applied(approved(A)) == approved(B)
    heirs.add(C, (B, A))
    assert heirs.applied(approved(A)) == approved(C)
    assert heirs.applied(approved(C)) == approved(C)
    assert heirs.applied(approved()) == approved()


def test_a_second_line_from_an_old_key_inherits_no_approval() -> None:
    for later in ((A,), (B, A)):
        heirs = Heirs()
        heirs.add(B, (A,))
        heirs.add(C, (B, A))
        heirs.add(THIEF, later)
        assert heirs.applied(approved(A)) == approved(C)


def test_a_revocation_goes_to_all_heirs_until_a_person_says_otherwise() -> None:
    heirs = Heirs()
    heirs.add(B, (A,))
    heirs.add(THIEF, (A,))
    assert heirs.applied(Trust(revoked=frozenset([A]))).revoked == {A, B, THIEF}
    decided = heirs.applied(Trust(approved=frozenset([B]), revoked=frozenset([A])))
    assert decided == Trust(frozenset([B]), frozenset([A, THIEF]))


@given(st.lists(st.tuples(st.sampled_from([A, B, C, THIEF]), st.lists(st.sampled_from([A, B, C, THIEF])))))
def test_whatever_is_said_nobody_is_both(lines: list[tuple[PeerId, list[PeerId]]]) -> None:
    heirs = Heirs()
    for peer_id, former in lines:
        heirs.add(peer_id, tuple(dict.fromkeys(old for old in former if old != peer_id)))
    decided = heirs.applied(Trust(frozenset([A]), frozenset([B])))
    assert not decided.approved & decided.revoked
    assert B in decided.revoked


def test_what_is_remembered_is_bounded() -> None:
    heirs = Heirs()
    for number in range(MAX_HEIRS + 10):
        heirs.add(PeerId(f"{number:064x}"), (PeerId(f"{number + 10**6:064x}"),))
    assert len(heirs._former) == len(heirs._heir) == MAX_HEIRS


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
    source.kill()
    source.start("--trust", "approve")
    assert fetch_code(source, stolen) is grpc.StatusCode.PERMISSION_DENIED
    heirs = source.state.trust_heirs
    heirs.write_bytes(b'{"contract": 1, "heirs": [{"peer_id": "../x", "former": []}]}')
    assert "trust_heirs.json is damaged" in refused(3, "list", source)


def fetch_code(peer: Peer, caller: Identity) -> grpc.StatusCode:
    """How a fetch by whoever has this key ends."""
    with calling(peer.port, caller) as channel:
        call = channel.unary_stream(FETCH_MODEL_METHOD, None, None)(b"", timeout=CALL_TIMEOUT_S)
        with suppress(grpc.RpcError):
            list(call)
        code: grpc.StatusCode = call.code()
        return code
