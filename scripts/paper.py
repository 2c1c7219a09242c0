"""`make paper`: the experiment of the paper on this machine, and its report.

'P2PFL: Peer to Peer Federated Learning System' (Laws & Vosburg): ten peers, started one after another, each
booted to the one before, each with the examples of 7 of MNIST's 10 digits; one torch thread a peer.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from p2pfl_state.layout import StateDir

from p2pfl_net.usage import Parser
from scripts import pairs
from scripts.experiment import Member, Network, fresh_folder
from scripts.failures import WrongUsage
from scripts.paper_plan import Plan, Times
from scripts.signals import EXIT_INTERRUPTED, StopSignals

MAX_PEERS = 100
KILLED_PAUSE_S = 60.0
"""From the kill of a peer to its restart; less in a short run."""
CYCLES = 4
"""Unless --cycles says otherwise: for three averages."""
LONGEST_CYCLES_S = 300.0
"""Before a peer is killed and after its restart it gets its cycles in that time, in which a busy machine also
loads the libraries."""
LINE_S = 10.0
"""Between two lines about the training."""
FINAL_PATIENCE_S = 60.0
FINAL_PATIENCE_PER_PEER_S = 60.0
"""Each peer measures two models on all dev examples at the end, and they share the processors."""
EPILOG = """exit codes: 0 the report is written; 1x a daemon ended, 2x a trainer ended, x is its own exit code
or 9 for a signal; 2 wrong usage; 3 the folder is in use; 130 Ctrl-C"""


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(program, __doc__, EPILOG)
    add = parser.add_argument
    add("--peers", type=int, default=10, help="how many (10)")
    add("--minutes", type=float, default=10.0, help="from the last start to the stop (10)")
    add("--model", default="paper-cnn", help="as for p2pfl-train run (paper-cnn)")
    add("--data", default="mnist", help="as for p2pfl-train run (mnist)")
    add("--data-dir", metavar="DIR", help="where data sets known by name are kept")
    add("--args", default="", help="more options for every p2pfl-train run, in one text")
    add("--kill", action="store_true", help="kill one peer half-way and restart it a minute later")
    add(
        "--cycles",
        type=int,
        default=CYCLES,
        help=f"at least, of each before a kill and of the killed one after it, in bounded time ({CYCLES})",
    )
    add("--out", type=Path, metavar="DIR", help="folder of the report (report/MODEL, or report/MODEL-kill)")
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """Raises `WrongUsage`."""
    if not 2 <= options.peers <= MAX_PEERS:
        raise WrongUsage(f"PEERS={options.peers} must be from 2 to {MAX_PEERS}")
    if not (math.isfinite(options.minutes) and 0 < options.minutes <= 1e5):
        raise WrongUsage(f"MINUTES={options.minutes} must be above 0")
    if options.cycles < 1:
        raise WrongUsage(f"--cycles {options.cycles} must be at least 1")
    try:
        extra = shlex.split(options.args)
    except ValueError as error:
        raise WrongUsage(f"ARGS={options.args!r}: {error}".lower()) from None
    train = ["--data", options.data, "--model", options.model, "--partition", "paper", "--threads", "1"]
    train.append("--final-evaluation")
    name = f"{Path(options.model.partition(':')[0]).stem}{'-kill' if options.kill else ''}"
    return Plan(
        peers=options.peers,
        minutes=options.minutes,
        model=options.model,
        data=options.data,
        data_dir=options.data_dir,
        train=(*train, *extra),
        kill=options.kill,
        cycles=options.cycles,
        out=options.out or Path("report") / name,
    )


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `ScriptFailed`, `StateError`, `TrainError`."""
    plan = plan_of(build_parser(program).parse_args(arguments))
    with fresh_folder(plan.out), Network(plan.states, lambda: signals.insisted) as network:
        times = Times([])
        say(f"{plan.peers} peers, {plan.model} on {plan.data}, {plan.minutes:g} minutes, in {plan.out}")
        _run(plan, network, times, lambda: signals.asked)
        times.stopped = time.time()
        say("stopping: each peer takes a last average and measures it on all dev examples")
        network.stop(FINAL_PATIENCE_S + FINAL_PATIENCE_PER_PEER_S * len(network.members))
        if signals.asked:
            say("interrupted: no report; nothing runs any more")
            return EXIT_INTERRUPTED
        _report(plan, [member.pair.state for member in network.members], times)
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def _run(plan: Plan, network: Network, times: Times, asked: Callable[[], bool]) -> None:
    """Starts the peers and lets them learn until the time is up or `asked`."""
    killed = plan.peers // 2 + 1 if plan.kill else None
    shared = [*plan.train, "--data-dir", plan.data_dir] if plan.data_dir else plan.train
    for number in range(1, plan.peers + 1):
        train = [*shared, "--shard", f"{number}/{plan.peers}"]
        if number == killed:  # measured at every average, to see in which one it is back
            train += ["--evaluate-every", "1"]
        member = network.start(f"peer-{number:02}", train, asked)
        if member is None:
            return
        times.started.append(member.started_at)
        say(f"{member.name} joined at {member.address}")
    seconds = 60 * plan.minutes
    _learn(network, times.last_start, times.last_start + (seconds / 2 if killed else seconds), asked)
    if killed is None or asked():
        return
    # A short run on a slow machine is half over while trainers still load their libraries.
    _wait_cycles(network, times, network.members, plan.cycles, asked)
    member = network.members[killed - 1]
    cycle = member.watcher.look().cycle
    _kill_and_restart(member, network, times, min(KILLED_PAUSE_S, seconds / 6), asked)
    _learn(network, times.last_start, times.last_start + seconds, asked)
    _wait_cycles(network, times, [member], cycle + plan.cycles, asked)


def _wait_cycles(
    network: Network, times: Times, members: Sequence[Member], cycle: int, asked: Callable[[], bool]
) -> None:
    """Lets all go on until `members` have finished `cycle`, in bounded time."""

    def enough() -> bool:
        return asked() or all(member.watcher.look().cycle >= cycle for member in members)

    _learn(network, times.last_start, time.time() + LONGEST_CYCLES_S, enough)


def _learn(network: Network, since: float, until: float, asked: Callable[[], bool]) -> None:
    """Watches until `until` (unix seconds), `asked`, or the end of all trainers. Raises `PairFailed`."""
    next_line_at = time.time() + LINE_S
    while not asked() and time.time() < until and not network.done:
        network.check()
        time.sleep(pairs.LOOK_S)
        if time.time() >= next_line_at:
            next_line_at += LINE_S
            figures = [member.watcher.look() for member in network.members]
            shown = " ".join(
                "–" if seen.accuracy_averaged is None else f"{seen.accuracy_averaged:.3f}" for seen in figures
            )
            failed = sum(seen.rounds_failed for seen in figures)
            say(f"{time.time() - since:5.0f} s: accuracy {shown}; {failed} failed rounds")


def _kill_and_restart(
    member: Member, network: Network, times: Times, pause_s: float, asked: Callable[[], bool]
) -> None:
    """Both processes of a peer with -9, then the same command again. Raises `PairFailed`, `StateError`."""
    member.pair.kill()
    times.killed, times.killed_at = member.name, time.time()
    say(f"{member.name} killed with {signal.SIGKILL.name}")
    place = network.members.index(member)
    network.members.remove(member)
    _learn(network, times.last_start, times.killed_at + pause_s, asked)
    if asked():
        return
    network.members.insert(place, member)
    member.pair = pairs.Pair(member.pair.options)
    times.restarted_at = time.time()
    member.pair.start()
    pairs.wait_joined(member.pair, asked)
    say(f"{member.name} restarted")


def _report(plan: Plan, states: Sequence[StateDir], times: Times) -> None:
    from scripts import paper_report  # the pictures' libraries take a second: the peers start before

    paths = paper_report.write(plan, states, times)
    say(paths[0].read_text(encoding="utf-8"))
    say(f"report: {paths[0]}, {paths[1]}, pictures in {plan.out}")
