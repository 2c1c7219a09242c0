"""Rounds between real daemons: what a trainer asks for is what it finds."""

from __future__ import annotations

import pytest
from p2pfl_state import atomic, lock, markers
from p2pfl_state.markers import Refusal
from p2pfl_state.taskfile import read_task

from tests.processes import wait_for
from tests.rpc.fake_trainer import FakeTrainer, damage, last_request_unanswered, names_of
from tests.rpc.model_files import TASK, make_model, make_task, publish
from tests.rpc.peers import Network, Peer


def serving(peers: list[Peer], asker: Peer, *, size_bytes: int = 3_000_000) -> dict[str, str]:
    """Lets each of `peers` publish a model of its own; the file digests by peer id, once `asker` knows."""
    digests = {}
    for seed, peer in enumerate(peers):
        digests[peer.peer_id] = publish(peer.state, make_model(seed, size_bytes)).digest
    asker.wait_published(digests)
    return digests


def test_rounds_bring_as_many_models_as_asked_each_as_its_source_has_it(network: Network) -> None:
    asker, *others = network.chain(4)
    digests = serving(others, asker)
    with FakeTrainer(asker.state) as trainer:
        seen: set[str] = set()
        while seen != set(digests):
            asker.wait_published(digests)
            answer = trainer.ask(fan_out=2)
            assert len(answer.models) == 2
            assert (answer.candidates, answer.peers, answer.failed) == (3, 3, ())
            assert all(digests[model.peer_id] == model.file_digest for model in answer.models)
            trainer.wait_files(names_of(answer))
            seen |= {model.peer_id for model in answer.models}


def test_more_models_than_there_are_peers(network: Network) -> None:
    asker, *others = network.chain(3)
    digests = serving(others, asker)
    with FakeTrainer(asker.state) as trainer:
        answer = trainer.ask(fan_out=10)
    assert {model.peer_id: model.file_digest for model in answer.models} == digests


def test_a_round_without_candidates_is_answered(network: Network) -> None:
    asker, _ = network.chain(2)
    with FakeTrainer(asker.state) as trainer:
        answer = trainer.ask(fan_out=3)
        assert (answer.models, answer.failed, answer.candidates, answer.peers) == ((), (), 0, 1)
        trainer.wait_files(set())
        answer = trainer.ask(fan_out=3, task=None, want_task=True)
        assert (answer.models, answer.candidates) == ((), 0)


@pytest.mark.parametrize("fan_out", [1, 4])
def test_a_newcomer_gets_the_task_with_the_models(network: Network, fan_out: int) -> None:
    asker, *others = network.chain(5)
    digests = serving(others, asker, size_bytes=1000)
    with FakeTrainer(asker.state) as trainer:
        for _ in range(4):
            asker.wait_published(digests)
            answer = trainer.ask(fan_out, task=None, want_task=True)
            assert (len(answer.models), answer.failed) == (fan_out, ())
            assert read_task(asker.state.fetched_task(trainer.round)) == TASK
            trainer.wait_files(names_of(answer) | {"task.json"})


def test_peers_of_another_task_are_never_chosen(network: Network) -> None:
    asker, same, other = network.chain(3)
    publish(same.state, make_model(1))
    another = make_task("another")
    publish(other.state, make_model(2, task=another.digest), another)
    with FakeTrainer(asker.state) as trainer:
        for _ in range(5):
            asker.wait_published([same.peer_id, other.peer_id])
            answer = trainer.ask(fan_out=2)
            assert [model.peer_id for model in answer.models] == [same.peer_id]
            assert (answer.candidates, answer.failed) == (1, ())


def test_a_new_publication_is_what_the_next_round_brings(network: Network) -> None:
    asker, other = network.chain(2)
    publish(other.state, make_model(1))
    with FakeTrainer(asker.state) as trainer:
        for version in range(2, 6):
            asker.wait_published([other.peer_id])
            new = publish(other.state, make_model(version, version=version))
            answer = trainer.ask()
            assert [model.manifest.version for model in answer.models] == [version]
            assert answer.models[0].file_digest == new.digest


def test_rounds_that_nobody_reads_are_deleted(network: Network) -> None:
    asker, *others = network.chain(2)
    serving(others, asker)
    with FakeTrainer(asker.state) as trainer:
        for _ in range(4):
            trainer.ask()
        assert trainer.rounds() == {1, 2, 3, 4}
        trainer.ask(delete_below=4)
        wait_for(lambda: trainer.rounds() == {4, 5}, what="the removal of the older rounds")


def test_a_request_of_a_dead_trainer_is_not_answered(network: Network) -> None:
    asker, *others = network.chain(2)
    serving(others, asker)
    trainer = FakeTrainer(asker.state)
    trainer.request()  # without ever having held the lock
    assert not lock.is_held(asker.state.trainer_lock)
    for number in (1, 2):  # two more looks at the folder: by then the daemon has seen the request
        damage(asker.state)
        asker.wait_event("error", number)
    with FakeTrainer(asker.state) as living:
        living.round = 1
        assert len(living.ask().models) == 1
        asker.wait_event("round_answered")
        assert [event["round"] for event in asker.events("round_answered")] == [2]
        assert living.files(1) == set()


def test_a_restarted_trainer_is_answered_whatever_its_round_number(network: Network) -> None:
    asker, *others = network.chain(2)
    serving(others, asker)
    for _ in range(3):
        with FakeTrainer(asker.state) as trainer:
            assert len(trainer.ask().models) == 1
            assert trainer.round == 1


def test_what_a_trainer_refused_counts_against_the_sender(network: Network) -> None:
    asker, *others = network.chain(2)
    serving(others, asker)
    with FakeTrainer(asker.state) as trainer:
        [model] = trainer.ask().models
        refusal = Refusal(model.peer_id, model.manifest.weights, "NaN in tensor w")
        trainer.request(refused=(refusal,))
        trainer.wait_answer()
    assert asker.wait_event("model_refused", peer=model.peer_id)["reason"] == "NaN in tensor w"
    wait_for(
        lambda: [entry["offences"] for entry in asker.peers_file()["peers"]] == [1],
        what="the offence in the peer list",
    )


def test_a_malformed_request_is_survived(network: Network) -> None:
    asker, *others = network.chain(2)
    digests = serving(others, asker)
    with FakeTrainer(asker.state) as trainer:
        for content in (b"", b"{", b"[1]", b'{"contract": 99}', b"\x00" * 1000, b"9" * 10_000):
            known = len(asker.events("error"))
            atomic.write_bytes(asker.state.aggregate, content)
            asker.wait_event("error", count=known + 1)
        asker.wait_published(digests)
        assert len(trainer.ask().models) == 1


def test_a_peer_that_dies_before_the_round_is_replaced(network: Network) -> None:
    asker, *others = network.chain(3)
    digests = serving(others, asker)
    others[0].kill()
    with FakeTrainer(asker.state) as trainer:
        trainer.request(fan_out=2)
        answer = trainer.wait_answer()
        assert [model.peer_id for model in answer.models] == [others[1].peer_id]
        assert answer.models[0].file_digest == digests[others[1].peer_id]
        # on a slow machine it may already be forgotten
        gone = [others[0].peer_id] if answer.candidates == 2 else []
        assert [failure.peer_id for failure in answer.failed] == gone
        trainer.wait_files(names_of(answer))


def test_a_daemon_killed_between_rounds_answers_the_next(network: Network) -> None:
    asker, *others = network.chain(2)
    serving(others, asker)
    with FakeTrainer(asker.state) as trainer:
        trainer.ask()
        asker.wait_event("round_answered")
        asker.kill()
        before = markers.read_answer(asker.state)
        asker.start(boot=others[0])
        asker.wait_published([others[0].peer_id])
        assert not last_request_unanswered(asker.state)
        assert len(trainer.ask().models) == 1
        assert before is not None
        asker.wait_event("round_answered", round=2)
        answered = [event["round"] for event in asker.events("round_answered")]
        assert answered == [1, 2]


def test_a_disk_that_fails_for_a_moment_does_not_make_the_daemon_deaf(network: Network) -> None:
    peer = network.start()
    peer.state.aggregate.symlink_to(peer.state.aggregate)  # looking at it is an OSError
    peer.wait_event("error")
    peer.state.aggregate.unlink()
    with FakeTrainer(peer.state) as trainer:
        assert trainer.ask().models == ()
