"""`p2pfl-train plan`, as a person types it."""

from __future__ import annotations

import json

import pytest

from tests.train.command_line import Capture, call, fails

HUNDRED = ["plan", "--peers", "100", "--byzantine", "10", "--rounds", "200"]


def test_a_safe_plan_as_a_table(capsys: Capture) -> None:
    code, out, err = call(capsys, *HUNDRED, "--fan-out", "15")
    assert (code, err) == (0, "")
    for words in (
        "100 peers, 10 of them liars",
        "18,000 of 15 models, in 200 rounds of 90 honest peers",
        "7 of 16 models, the own one included",
        "at most 0.05 is accepted",
        "97.5 MB in for each peer, 9,750 MB in all",
    ):
        assert words in out
    assert out.splitlines()[0].strip() == "plan"


def test_a_safe_plan_as_json(capsys: Capture) -> None:
    code, out, err = call(capsys, *HUNDRED, "--fan-out", "15", "--json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    wanted = {
        "peers": 100,
        "byzantine": 10,
        "rounds": 200,
        "risk": 0.05,
        "draws": 18_000,
        "fan_out": 15,
        "effective_byzantine": 7,
        "models": 16,
        "safe": True,
        "mb_per_peer_and_round": 97.5,
        "mb_per_round": 9750.0,
    }
    assert {name: figures[name] for name in wanted} == wanted
    assert 0 < figures["exceeded"] <= 0.05
    assert 10 < figures["smallest_safe_fan_out"] <= 15
    assert 2 * figures["smallest_safe_effective_byzantine"] < figures["smallest_safe_fan_out"] + 1


def test_an_unsafe_plan_is_shown_and_refused(capsys: Capture) -> None:
    said = fails(capsys, 9, *HUNDRED, "--fan-out", "10")
    assert "6 of 11 models may be liars' when 10 are pulled" in said
    code, out, err = call(capsys, *HUNDRED, "--fan-out", "10", "--json")
    assert code == 9
    figures = json.loads(out)
    assert (figures["safe"], figures["effective_byzantine"], figures["models"]) == (False, 6, 11)
    assert f"--fan-out {figures['smallest_safe_fan_out']}" in err
    _, out, _ = call(capsys, *HUNDRED, "--fan-out", "10")
    assert "none: liars may be half or more" in out
    assert call(capsys, *HUNDRED, "--fan-out", str(figures["smallest_safe_fan_out"]))[0] == 0


def test_where_no_fan_out_is_safe(capsys: Capture) -> None:
    line = ["plan", "--peers", "10", "--byzantine", "5", "--fan-out", "9"]
    assert "no fan-out is safe" in fails(capsys, 9, *line)
    _, out, _ = call(capsys, *line, "--json")
    figures = json.loads(out)
    assert figures["smallest_safe_fan_out"] is None
    assert figures["smallest_safe_effective_byzantine"] is None


def test_traffic_is_that_of_the_model(capsys: Capture) -> None:
    _, out, _ = call(capsys, *HUNDRED, "--fan-out", "15", "--json", "--model-mb", "0.5")
    figures = json.loads(out)
    assert figures["mb_per_peer_and_round"] == 7.5
    assert figures["mb_per_round"] == 750.0


def test_a_smaller_risk_or_a_longer_run_reckons_with_more_liars(capsys: Capture) -> None:
    def effective(*options: str) -> int:
        _, out, _ = call(capsys, *HUNDRED, "--fan-out", "20", "--json", *options)
        found: int = json.loads(out)["effective_byzantine"]
        return found

    assert effective("--risk", "1e-9") > effective() > effective("--risk", "0.5", "--rounds", "1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--peers 1", "--peers 1 must be from 2"),
        ("--peers 20000", "--peers 20000 must be from 2 to 10000"),
        ("--byzantine 100", "--byzantine 100 must be from 0 to below --peers, 100"),
        ("--byzantine -1", "--byzantine -1"),
        ("--rounds 0", "--rounds 0 must be from 1"),
        ("--fan-out 0", "--fan-out 0 must be from 1 to the other peers, 99"),
        ("--fan-out 100", "--fan-out 100 must be from 1 to the other peers, 99"),
        ("--risk 0", "--risk 0.0 must be above 0, at most 0.5"),
        ("--risk nan", "--risk nan"),
        ("--model-mb 0", "--model-mb 0.0 must be above 0"),
        ("--model-mb nan", "--model-mb nan"),
        ("--model-mb inf", "--model-mb inf"),
        ("--peers many", "--peers"),
    ],
)
def test_a_wrong_option_is_one_line(capsys: Capture, options: str, words: str) -> None:
    assert words in fails(capsys, 2, *HUNDRED, *options.split())


def test_what_is_needed_is_asked_for(capsys: Capture) -> None:
    assert "--byzantine" in fails(capsys, 2, "plan", "--peers", "10")


def test_the_least_fan_out_that_is_safe_is_the_default(capsys: Capture) -> None:
    for peers, byzantine, fan_out in ((10, 1, 2), (100, 10, 14), (10, 0, 1)):
        code, out, _ = call(
            capsys, "plan", "--peers", peers, "--byzantine", byzantine, "--rounds", 200, "--json"
        )
        assert code == 0
        assert json.loads(out)["fan_out"] == fan_out


def test_the_remedy_is_a_fan_out_that_is_safe(capsys: Capture) -> None:
    """An odd one may not be where the even one before it is."""
    line = ["plan", "--peers", "100", "--byzantine", "10", "--rounds", "500"]
    said = fails(capsys, 9, *line, "--fan-out", "15")
    advised = said.rpartition("--fan-out ")[2].rstrip(")\n")
    assert int(advised) > 15
    assert call(capsys, *line, "--fan-out", advised)[0] == 0
    assert "at least 3 peers" in fails(capsys, 9, "plan", "--peers", "2", "--byzantine", "1")
