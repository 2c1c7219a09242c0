"""Rounds of a simulation: the same for the same seed, and what liars do in them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from p2pfl_train.datasets.examples import Examples
from p2pfl_train.redteam.attacks import dissensus, parse_attack
from p2pfl_train.redteam.crew import Crew
from p2pfl_train.redteam.options import Defence
from p2pfl_train.redteam.simulation import distances_of, members, simulate
from p2pfl_train.rules.rule import parse_rule
from p2pfl_train.tasks import TaskOptions
from tests.processes import ROOT
from tests.train import naive_rules as naive
from tests.train.simulating import SMALL, Halves, Listening, accuracies, build_shard, make, run, weights_after

torch.set_num_threads(1)


# The same seed


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_seed_gives_the_same_run_on_any_number_of_threads(dropout: float) -> None:
    task = replace(SMALL, model_arguments={"hidden": 16, "dropout": dropout})
    runs = [accuracies(run(make("alie", task=task, threads=threads))) for threads in (1, 1, 2, 3)]
    assert all(one == runs[0] for one in runs)
    assert accuracies(run(make("alie", task=task, seed=1))) != runs[0]


@pytest.mark.parametrize("attack", ["alie", "label-flip", "dissensus"])
def test_the_same_seed_gives_the_same_run_however_the_peers_are_spread(attack: str) -> None:
    setting = make(attack, task=replace(SMALL, model_arguments={"hidden": 16, "dropout": 0.2}))
    alone = weights_after(setting, Crew(setting, members(setting)))
    spread = weights_after(setting, Halves(setting))
    assert alone.keys() == spread.keys()
    for index, row in alone.items():
        torch.testing.assert_close(spread[index], row, rtol=1e-5, atol=1e-6)


NOISY = """
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
    def forward(self, x):
        return self.fc(nn.functional.dropout(x.flatten(1), 0.2, self.training))
"""


def test_a_model_that_draws_without_a_dropout_layer_is_the_same_too(
    model_file: Callable[[str], TaskOptions],
) -> None:
    setting = make(task=model_file(NOISY))
    alone = weights_after(setting, Crew(setting, members(setting)))
    spread = weights_after(setting, Halves(setting))
    for index, row in alone.items():
        torch.testing.assert_close(spread[index], row, rtol=1e-5, atol=1e-6)


def test_draws_are_uniform_without_the_receiver_and_without_repetition() -> None:
    setting = make(seed=3)
    rounds = range(1, 2001)
    for receiver in (0, 4, 7):
        draws = [setting.senders(number, receiver) for number in rounds]
        assert all(len(set(draw)) == 5 and receiver not in draw for draw in draws)
        counts = Counter(sender for draw in draws for sender in draw)
        assert set(counts) == set(range(8)) - {receiver}
        share = 5 / 7
        allowed = 5 * math.sqrt(len(rounds) * share * (1 - share))
        assert all(abs(count - len(rounds) * share) < allowed for count in counts.values())
    assert setting.senders(1, 0) != setting.senders(2, 0)
    assert setting.senders(1, 0) != replace(setting, seed=4).senders(1, 0)


def test_liars_are_chosen_by_the_seed() -> None:
    chosen = [make(seed=seed).liars for seed in range(200)]
    assert chosen == [make(seed=seed).liars for seed in range(200)]
    assert all(len(liars) == 2 and list(liars) == sorted(set(liars)) for liars in chosen)
    assert {peer for liars in chosen for peer in liars} == set(range(8))
    for setting in (make(seed=seed) for seed in range(5)):
        assert sorted(setting.liars + setting.honest) == list(range(8))


def test_draws_and_liars_are_the_same_in_any_process() -> None:
    setting = make(seed=3)
    program = (
        "import json; from tests.train.test_simulation import make; s = make(seed=3);"
        "print(json.dumps([s.liars, [s.senders(n, r) for n in (1, 2) for r in range(8)]]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=100,
    )
    drawn = [setting.senders(number, receiver) for number in (1, 2) for receiver in range(8)]
    assert json.loads(found.stdout) == [list(setting.liars), drawn]


# Liars


@pytest.mark.parametrize("attack", ["alie:5", "sign-flip:10"])
def test_plain_averaging_collapses_where_the_robust_rule_does_not(attack: str) -> None:
    average, robust = (run(make(attack, rule, rounds=20)) for rule in ("fedavg", "nnm+trimmed_mean"))
    assert average.final.mean < 0.5
    assert robust.final.worst > 0.7
    assert robust.final.factor == parse_attack(attack).factor


def test_only_label_flippers_train_on_flipped_labels() -> None:
    setting = make("label-flip", seed=2)
    crew = Crew(setting, members(setting))
    assert crew.members == tuple(range(8))
    for index, peer in crew._peers.items():
        own = build_shard(setting, index)
        train = peer.task.train
        assert isinstance(train, Examples)
        assert torch.equal(train.x, own.x)
        assert torch.equal(train.y, 9 - own.y if index in setting.liars else own.y)
        evaluation = peer.task.evaluation
        assert isinstance(evaluation, Examples)
        assert torch.equal(evaluation.y, crew._everything.y)  # type: ignore[attr-defined]


def test_free_riders_publish_the_honest_mean_of_earlier_rounds() -> None:
    setting = make("free-rider:2")
    crew = Listening(setting)
    means = [crew.initial]
    simulate(setting, crew)
    for number, published in enumerate(crew.heard, start=1):
        means.append(published[list(setting.honest)].mean(dim=0))
        for liar in setting.liars:
            assert torch.equal(published[liar], means[max(0, number - 2)])


@pytest.mark.parametrize("rule", ["mean", "krum", "nnm+median"])
def test_dissensus_is_said_to_each_receiver(rule: str) -> None:
    """With plain averaging everyone who drew a liar ends where it was."""
    setting = make("dissensus", defence=Defence(parse_rule(rule), 6, 1))
    crew = Listening(setting)
    rows, _ = crew.train(1)
    rows, _ = crew.train(2)
    published = torch.zeros(8, rows.shape[1])
    published[list(setting.honest)] = rows
    published[list(setting.liars)] = rows.mean(dim=0)
    distances = distances_of(published, setting.honest) if setting.defence.rule.needs_distances else None
    crew.settle(published, distances, 3)
    for index in setting.honest:
        senders = setting.senders(3, index)
        liars = [sender for sender in senders if sender in setting.liars]
        assert liars, "six of seven others, of whom two lie"
        honest = [published[sender] for sender in senders if sender not in liars]
        said = dissensus(published[index], honest, len(liars), 1.0)
        votes = [published[index], *(said if s in liars else published[s] for s in senders)]
        wanted = brute(rule, torch.stack(votes))
        torch.testing.assert_close(crew._peers[index].weights(), wanted, rtol=1e-4, atol=1e-5)
        if rule == "mean":
            torch.testing.assert_close(crew._peers[index].weights(), published[index], rtol=1e-4, atol=1e-5)


def brute(rule: str, votes: Tensor) -> Tensor:
    points = votes.double().numpy()
    shares = torch.full((len(votes),), 1 / len(votes)).double().numpy()
    return torch.from_numpy(naive.apply(rule, points, 1, shares, 0)).float()


def test_no_liar_publishes_what_every_peer_would_refuse() -> None:
    setting = make("sign-flip", task=replace(SMALL, model="cnn-bn", model_arguments={"width": 2}), rounds=2)
    crew = Listening(setting)
    simulate(setting, crew)
    peer = next(iter(crew._peers.values()))
    start = 0
    for name, tensor in peer._floating():
        if name.endswith("running_var"):
            for published in crew.heard:
                assert bool((published[:, start : start + tensor.numel()] >= 0).all()), name
        start += tensor.numel()


def test_a_run_that_is_stopped_is_measured_where_it_is() -> None:
    setting = make(rounds=1000)
    looks = iter([False, False, True])
    outcome = simulate(setting, Crew(setting, members(setting)), stop=lambda: next(looks))
    assert [measured.round for measured in outcome.measured] == [2, 3]
    assert not any(measured.final for measured in outcome.measured)
