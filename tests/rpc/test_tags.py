"""Several trainings in one network: peers collect only from those that have all of their tags."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import wait_for
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete

ROUNDS = 3


def wait_tags(viewer: Peer, tags: dict[str, list[str]]) -> None:
    """Waits until the list says that these peers, and no others, have these tags."""

    def told() -> bool:
        return {entry["id"]: entry["tags"] for entry in viewer.peers_file()["peers"]} == tags

    wait_for(told, what=f"the tags in the list of {viewer.state.root}")


def test_two_trainings_in_one_network_never_collect_from_each_other(network: Network) -> None:
    """Both of the same task; one peer without tags is of either."""
    digits, letters = ["mnist", "vision"], ["letters", "vision"]
    tags = [digits, letters, digits, letters, ["vision"], []]
    peers: list[Peer] = []
    for own in tags:
        options = ("--tags", ",".join(own)) if own else ()
        peers.append(network.start(*options, boot=peers[-1] if peers else None))
    wait_complete(peers)
    ids = [peer.peer_id for peer in peers]
    for n, peer in enumerate(peers):
        publish(peer.state, make_model(n, 1000))
        assert peer.peers_file()["self"]["tags"] == tags[n]
    with ExitStack() as stack:
        for n, peer in enumerate(peers):
            others = [m for m in range(len(peers)) if m != n]
            peer.wait_published(ids[m] for m in others)
            wait_tags(peer, {ids[m]: tags[m] for m in others})
            fitting = {ids[m] for m in others if set(tags[n]) <= set(tags[m])}
            trainer = stack.enter_context(FakeTrainer(peer.state))
            for _ in range(ROUNDS):
                answer = trainer.ask(fan_out=len(peers))
                assert {model.peer_id for model in answer.models} == fitting
                assert (answer.candidates, answer.peers) == (len(fitting), len(others))


def test_a_newcomer_takes_the_task_of_its_tags_only(network: Network) -> None:
    asker, same, other = (network.peer() for _ in range(3))
    asker.start("--tags", "vision", "--tags", "mnist, ,")
    same.start("--tags", "mnist,vision,fast", boot=asker)
    other.start("--tags", "mnist", boot=asker)
    wait_complete([asker, same, other])
    for n, peer in enumerate((same, other)):
        publish(peer.state, make_model(n, 1000))
    asker.wait_published([same.peer_id, other.peer_id])
    with FakeTrainer(asker.state) as trainer:
        for _ in range(ROUNDS):
            answer = trainer.ask(fan_out=2, task=None, want_task=True)
            assert [model.peer_id for model in answer.models] == [same.peer_id]


def test_a_peer_that_comes_back_with_other_tags_is_known_by_those(network: Network) -> None:
    first, second = network.peer(), network.peer()
    first.start("--tags", "mnist")
    second.start("--tags", "mnist", boot=first)
    wait_complete([first, second])
    assert second.stop() == 0
    second.start("--tags", "letters", boot=first)
    wait_tags(first, {second.peer_id: ["letters"]})


def test_the_peers_with_a_tag_are_shown(network: Network) -> None:
    first, second, third = (network.peer() for _ in range(3))
    first.start("--tags", "vision,mnist")
    second.start("--tags", "vision", boot=first)
    third.start(boot=second)
    wait_complete([first, second, third])

    def shown(*options: str) -> set[str]:
        said = run_command("peers", "--state", third.state.root, "--json", *options)
        assert (said.returncode, said.stderr) == (0, "")
        return {entry["id"] for entry in json.loads(said.stdout)["peers"]}

    assert shown() == shown("--tag", "vision") == {first.peer_id, second.peer_id}
    assert shown("--tag", "vision", "--tag", "mnist") == shown("--tag", "mnist,vision") == {first.peer_id}
    assert shown("--tag", "letters") == set()
    said = run_command("peers", "--state", third.state.root, "--tag", "mnist")
    assert first.peer_id[:16] in said.stdout
    assert second.peer_id[:16] not in said.stdout
    assert "mnist,vision" in said.stdout


@pytest.mark.parametrize("tags", ["Vision", "mnist vision", "-x", "ä", "x" * 33, "a,b,c,d,e,f,g,h,i"])
def test_a_tag_that_is_none_is_wrong_usage(tmp_path: Path, tags: str) -> None:
    serve = ("serve", "--port", "0", "--state", tmp_path / "state", f"--tags={tags}")
    peers = ("peers", "--state", tmp_path / "state", f"--tag={tags}")
    for command, option in ((serve, "--tags"), (peers, "--tag")):
        said = run_command(*command)
        assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1)
        assert said.stderr.startswith(f"p2pfl-net: {option}: ")
    assert not (tmp_path / "state").exists()
