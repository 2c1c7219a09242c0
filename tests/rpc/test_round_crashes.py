"""`kill -9` of the daemon at any point of a round: the restarted one answers it."""

from __future__ import annotations

import random
import threading

import pytest
from p2pfl_state.manifest import file_weights_digest

from tests.processes import wait_for
from tests.rpc.fake_trainer import FakeTrainer, names_of
from tests.rpc.model_files import digest_of, make_model, publish
from tests.rpc.peers import Network

pytestmark = pytest.mark.timeout(600)
MODELS = 3
SIZE_BYTES = 8_000_000
ROUND_S = 0.12
"""About how long a round of these models takes: the kills are spread over twice of it."""


@pytest.mark.parametrize("part", range(3))
def test_a_killed_daemon_answers_the_open_request_when_it_is_back(network: Network, part: int) -> None:
    asker, *others = network.chain(1 + MODELS)
    digests = {}
    for seed, peer in enumerate(others):
        digests[peer.peer_id] = publish(peer.state, make_model(10 * part + seed, SIZE_BYTES)).digest
    asker.wait_published(digests)
    chance = random.Random(part)
    with FakeTrainer(asker.state) as trainer:
        for _ in range(5):
            trainer.request(fan_out=MODELS, delete_below=trainer.round + 1)
            # the one wait on a clock here: the moment of the kill is what is varied
            threading.Event().wait(chance.uniform(0.0, 2 * ROUND_S))
            asker.kill()
            for path in asker.state.aggregation.glob("*/[!.]*.safetensors"):
                assert digest_of(path) == digests[path.stem], "a file under its final name is whole"
                file_weights_digest(path)
            asker.start(boot=others[0])
            answer = trainer.wait_answer()
            asker.wait_known(set(digests))
            assert {m.peer_id for m in answer.models} <= set(digests)
            trainer.wait_files(names_of(answer))
            asker.wait_published(digests)
            whole = trainer.ask(fan_out=MODELS)
            assert {m.peer_id: m.file_digest for m in whole.models} == digests
            trainer.wait_files(names_of(whole))


def test_a_request_written_while_the_daemon_is_dead_is_answered(network: Network) -> None:
    asker, other = network.chain(2)
    publish(other.state, make_model(1))
    asker.wait_published([other.peer_id])
    with FakeTrainer(asker.state) as trainer:
        asker.kill()
        trainer.request()
        asker.start(boot=other)
        answer = trainer.wait_answer()
        trainer.wait_files(names_of(answer))


def test_what_a_killed_daemon_left_is_tidied(network: Network) -> None:
    asker, other = network.chain(2)
    publish(other.state, make_model(1))
    asker.wait_published([other.peer_id])
    with FakeTrainer(asker.state) as trainer:
        trainer.ask()
        asker.kill()
        folder = asker.state.round_dir(1)
        (folder / f".{'a' * 64}.safetensors.tmp").write_bytes(b"half a model")
        (asker.state.aggregation / "not a round").mkdir()
        asker.start(boot=other)
        asker.wait_published([other.peer_id])
        trainer.ask(delete_below=2)
        left = asker.state.aggregation
        wait_for(lambda: {path.name for path in left.iterdir()} == {"2"}, what="the removal of the rest")
