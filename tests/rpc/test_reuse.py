"""Weights that are here already are not downloaded again, and nobody can lie about another's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import grpc
from p2pfl_proto.v1.models_pb2 import FetchModelRequest

from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import ModelFile, assemble, make_model, publish
from tests.rpc.peers import Network
from tests.rpc.scripted_peer import ScriptedPeer, header_part, honest, stall

SIZE_BYTES = 5_000_000


def same_weights(model: ModelFile, *, version: int = 1, samples: int = 7) -> ModelFile:
    """Another publication of the same weights."""
    said = replace(model.manifest, version=version, samples=samples)
    return ModelFile(assemble(said, model.data[-SIZE_BYTES:]), said)


def sent_bytes(peer_events: list[dict[str, int]]) -> list[int]:
    return [event["bytes"] for event in peer_events]


def test_the_same_weights_of_the_same_peer(network: Network) -> None:
    asker, other = network.chain(2)
    model = publish(other.state, make_model(1, SIZE_BYTES))
    asker.wait_published([other.peer_id])
    with FakeTrainer(asker.state) as trainer:
        assert [m.reused for m in trainer.ask().models] == [False]
        second = publish(other.state, same_weights(model, version=2))
        [again] = trainer.ask(delete_below=1).models
        assert (again.reused, again.manifest.version) == (True, 2)
        assert again.manifest == second.manifest
        publish(other.state, make_model(2, SIZE_BYTES, version=3))
        assert [m.reused for m in trainer.ask(delete_below=2).models] == [False]
    asker.wait_event("round_answered", 3)
    assert sent_bytes(asker.events("round_answered")) == [len(model.data), 0, len(model.data)]


def test_the_same_weights_of_another_peer(network: Network) -> None:
    asker, first, second = network.chain(3)
    model = publish(first.state, make_model(1, SIZE_BYTES))
    asker.wait_published([first.peer_id])
    with FakeTrainer(asker.state) as trainer:
        assert [m.peer_id for m in trainer.ask().models] == [first.peer_id]
        publish(second.state, same_weights(model, samples=7))
        asker.wait_published([second.peer_id])
        answer = trainer.ask(fan_out=2, delete_below=1)
        assert {m.peer_id: m.reused for m in answer.models} == {first.peer_id: True, second.peer_id: True}
        assert {m.manifest.samples for m in answer.models} == {101, 7}
        assert {m.manifest.weights for m in answer.models} == {model.manifest.weights}


def test_the_same_weights_of_two_peers_at_once_are_downloaded_once(network: Network) -> None:
    asker, first, second = network.chain(3)
    model = publish(first.state, make_model(1, SIZE_BYTES))
    publish(second.state, same_weights(model))
    asker.wait_published([first.peer_id, second.peer_id])
    with FakeTrainer(asker.state) as trainer:
        answer = trainer.ask(fan_out=2)
    assert sorted(m.reused for m in answer.models) == [False, True]
    assert {m.manifest.samples for m in answer.models} == {101, 7}


def test_a_liar_that_announces_the_weights_of_another_and_stalls_does_not_keep_them_away(
    network: Network,
) -> None:
    def stalls(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield header_part(request, true)
        stall(context)

    asker, other = network.chain(2)
    true = publish(other.state, make_model(1, SIZE_BYTES))
    with FakeTrainer(asker.state) as trainer, ScriptedPeer(stalls) as liar:
        liar.join(asker)
        asker.wait_published([other.peer_id, liar.peer_id])
        answer = trainer.ask(fan_out=2, deadline_s=12.0)
    assert [(m.peer_id, m.file_digest) for m in answer.models] == [(other.peer_id, true.digest)]


def test_weights_whose_files_were_deleted_are_fetched_again(network: Network) -> None:
    asker, other = network.chain(2)
    publish(other.state, make_model(1, SIZE_BYTES))
    with FakeTrainer(asker.state) as trainer:
        for _ in range(3):
            asker.wait_published([other.peer_id])
            assert [m.reused for m in trainer.ask().models] == [False]
            shutil.rmtree(asker.state.round_dir(trainer.round))


def test_a_liar_cannot_speak_for_the_weights_of_another(network: Network) -> None:
    """It sends a file of its own under the digest of an honest peer's weights, before that peer is asked."""
    asker, honest_peer = network.chain(2)
    true = make_model(1, SIZE_BYTES)
    poison = make_model(2, SIZE_BYTES, weights=true.manifest.weights)
    with FakeTrainer(asker.state) as trainer, ScriptedPeer(honest(poison)) as liar:
        liar.join(asker)
        asker.wait_published([liar.peer_id])
        assert [m.file_digest for m in trainer.ask().models] == [poison.digest]
        publish(honest_peer.state, true)
        asker.wait_published([honest_peer.peer_id])
        answer = trainer.ask(fan_out=2)
        files = {model.peer_id: (model.file_digest, model.reused) for model in answer.models}
        assert files[honest_peer.peer_id] == (true.digest, False)


def test_a_peer_that_claims_weights_of_another_gets_those_and_no_others(network: Network) -> None:
    def not_modified(request: FetchModelRequest, context: grpc.ServicerContext) -> list[bytes]:
        return [header_part(request, true, not_modified=True)]

    asker, other = network.chain(2)
    true = publish(other.state, make_model(1, SIZE_BYTES))
    asker.wait_published([other.peer_id])
    with (
        FakeTrainer(asker.state) as trainer,
        ScriptedPeer(lambda r, c: iter(not_modified(r, c))) as parrot,
    ):
        trainer.ask()
        parrot.join(asker)
        asker.wait_published([parrot.peer_id])
        answer = trainer.ask(fan_out=2)
        assert {m.peer_id: m.file_digest for m in answer.models} == {
            other.peer_id: true.digest,
            parrot.peer_id: true.digest,
        }
