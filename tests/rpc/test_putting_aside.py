"""Real daemons and peers whose models are wrong time and again."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from p2pfl_proto.v1.models_pb2 import FetchModelRequest
from p2pfl_state.markers import Refusal

from p2pfl_net.core.params import Params
from tests.processes import wait_for
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer
from tests.rpc.scripted_peer import ScriptedPeer, chunk_part, header_part

LIMIT = Params.offences_in_a_row
MODEL = make_model(1, 100_000)


def wrong_bytes(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield header_part(request, MODEL)
    yield chunk_part(bytes(len(MODEL.data)))


def wait_aside(asker: Peer, aside: dict[str, bool]) -> None:
    wait_for(
        lambda: {entry["id"]: entry["aside"] for entry in asker.peers_file()["peers"]} == aside,
        what="the list saying who is put aside",
    )


def test_a_liar_is_put_aside_and_an_honest_peer_goes_on(network: Network) -> None:
    asker = network.start()
    source = network.start(boot=asker)
    publish(source.state, MODEL)
    with FakeTrainer(asker.state) as trainer, ScriptedPeer(wrong_bytes) as liar:
        liar.join(asker)
        asker.wait_published([source.peer_id, liar.peer_id])
        for _ in range(LIMIT):
            assert [model.peer_id for model in trainer.ask(fan_out=2).models] == [source.peer_id]
        told = asker.wait_event("peer_put_aside")
        assert (told["peer"], told["seconds"]) == (liar.peer_id, Params.aside_s)
        assert "digest" in told["reason"]
        asked = len(liar.requests)
        answer = trainer.ask(fan_out=2)
        assert (answer.candidates, answer.failed, len(answer.models)) == (1, (), 1)
        assert len(liar.requests) == asked
        wait_aside(asker, {source.peer_id: False, liar.peer_id: True})


def test_who_is_refused_by_the_trainer_is_put_aside_unless_it_does_better(network: Network) -> None:
    asker, source = network.chain(2)
    publish(source.state, MODEL)
    asker.wait_published([source.peer_id])
    refusal = (Refusal(source.peer_id, MODEL.manifest.weights, "NaN in tensor w"),)
    with FakeTrainer(asker.state) as trainer:
        trainer.ask()
        found = []
        for refused in [refusal] * (LIMIT - 1) + [()] + [refusal] * LIMIT:
            trainer.request(refused=refused)
            found.append(trainer.wait_answer().candidates)
        assert found == [1] * (2 * LIMIT - 1) + [0]
        assert asker.wait_event("peer_put_aside")["reason"] == "NaN in tensor w"
        wait_aside(asker, {source.peer_id: True})
        assert len(asker.events("model_refused")) == 2 * LIMIT - 1
