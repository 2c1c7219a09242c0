"""The membership core on a virtual clock: how fast it runs, and how its times grow with the network.

Usage: python -m scripts.bench.simulator [--quick]
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import dataclass

from p2pfl_net.sim.cluster import Cluster, Outcome, Scenario
from p2pfl_net.sim.conditions import Conditions
from scripts.bench.harness import Result, at_most, median, report

SIZES = (100, 1_000, 10_000)
SECONDS = 60.0
EVENTS = 5
"""Of each kind in a run of the table: newcomers, and deaths."""


@dataclass(frozen=True)
class Run:
    """One scenario in a process of its own."""

    outcome: Outcome
    seconds: float
    """Real ones, until the scenario's virtual ones are over: until all is settled, it may go on."""
    memory_mb: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="without the networks of ten thousand")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        _run_here(options.run)
        return
    sizes = SIZES[:-1] if options.quick else SIZES
    lossy = _run("lossy", 2_000)
    results = [
        at_most("2,000 peers, 5 % loss, 60 virtual seconds", lossy.seconds, "s", 60.0),
        at_most("living peers that a view lost in it", lossy.outcome.living_dropped, "", 0),
    ]
    if not options.quick:
        churn = _run("churn", 10_000)
        results += [
            at_most("10,000 peers, 1 % churn a minute, 60 virtual seconds", churn.seconds, "s", 300.0),
            at_most("its memory", churn.memory_mb, "MB", 12_000.0),
            Result("its newcomers are in every view, median", median(churn.outcome.join_spread_s), "s"),
            Result("its dead are out of every view, median", median(churn.outcome.detection_s), "s"),
            Result("its messages of a peer", churn.outcome.messages_per_peer_s, "1/s"),
        ]
    results += _growth({size: _run("events", size) for size in sizes})
    report("The simulator, and the membership in it", results)


def _growth(runs: dict[int, Run]) -> list[Result]:
    """Times by size, and how they grow."""
    results = []
    for size, run in runs.items():
        joined_s, detected_s = median(run.outcome.join_spread_s), median(run.outcome.detection_s)
        results += [
            Result(f"{size:,} peers: a newcomer is in every view, median", joined_s, "s"),
            Result(f"{size:,} peers: a dead peer is out of every view, median", detected_s, "s"),
            Result(f"{size:,} peers: messages of a peer", run.outcome.messages_per_peer_s, "1/s"),
        ]
    smallest, *_, largest = runs
    digits = math.log(largest) / math.log(smallest)
    for what, of in (("newcomers", "join_spread_s"), ("deaths", "detection_s")):
        factor = median(getattr(runs[largest].outcome, of)) / median(getattr(runs[smallest].outcome, of))
        results.append(
            at_most(f"{what}: growth to {largest:,} peers over that of log n", factor / digits, "", 1.5)
        )
    rates = [run.outcome.messages_per_peer_s for run in runs.values()]
    results.append(at_most("messages of a peer: most over least", max(rates) / min(rates), "", 1.1))
    return results


def _scenario(kind: str, peers: int) -> tuple[Scenario, Conditions]:
    match kind:
        case "lossy":
            return Scenario(peers, SECONDS, joined=True), Conditions(loss=0.05)
        case "churn":
            return Scenario(peers, SECONDS, joined=True, churn=0.01), Conditions()
        case _:
            times = [SECONDS * (number + 0.5) / (2 * EVENTS) for number in range(2 * EVENTS)]
            kill = tuple((1.0 / peers, at) for at in times[::2])
            join = tuple((1, at) for at in times[1::2])
            return Scenario(peers, SECONDS, joined=True, kill=kill, join=join), Conditions()


def _run(kind: str, peers: int) -> Run:
    """In its own process, so that its memory is its own."""
    command = [sys.executable, "-m", "scripts.bench.simulator", "--run", f"{kind}:{peers}"]
    done = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return Run(Outcome(**done["outcome"]), done["seconds"], done["memory_mb"])


def _run_here(what: str) -> None:
    kind, _, peers = what.partition(":")
    gc.disable()  # as the command does
    times: list[float] = []
    started = time.perf_counter()
    outcome = Cluster(*_scenario(kind, int(peers)), seed=1).run(lambda now: times.append(time.perf_counter()))
    seconds = times[-1] - started
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"outcome": outcome.to_json(), "seconds": seconds, "memory_mb": memory_mb}))


if __name__ == "__main__":
    main()
