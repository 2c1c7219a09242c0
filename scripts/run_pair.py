"""`make run`: one peer in the foreground, its daemon and its trainer, until Ctrl-C or until one dies."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from p2pfl_state import atomic
from p2pfl_state.layout import StateDir
from p2pfl_state.trust import read_trust

from p2pfl_net import config
from p2pfl_net.errors import UsageError
from p2pfl_net.usage import Parser
from scripts import pairs, watching
from scripts.failures import ScriptFailed
from scripts.signals import EXIT_INTERRUPTED, StopSignals

RECEIVE_ONLY = "none"
NEWS_S = 10.0
"""Between two lines about the training."""
EPILOG = """exit codes: 0 stopped by Ctrl-C or SIGTERM, or the trainer has done what it was asked; 1 it did
not stop in time and was killed; 2 wrong usage; 3 the state directory cannot be used; 1x the daemon ended, 2x
the trainer ended, x is its own exit code (see p2pfl-net --help, p2pfl-train --help) or 9 for a signal; 130
killed by a second Ctrl-C"""


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(program, __doc__, EPILOG)
    add = parser.add_argument
    add("--port", required=True, help="TCP port of the daemon; 0 chooses one and needs --state")
    add(
        "--boot",
        default="",
        metavar="HOST:PORT,...",
        help="peers to join through; none or itself: the first; auto: those found on the LAN",
    )
    add("--host", default="::", metavar="IP", help="interface to listen on (::, which is all)")
    add("--state", type=Path, metavar="DIR", help="state directory (state/PORT)")
    add("--data", default="digits", help=f"as for p2pfl-train run (digits); {RECEIVE_ONLY}: only receive")
    add("--data-dir", metavar="DIR", help="where data sets known by name are kept")
    add("--shard", metavar="K/N", help="this peer's part of the data, as 3/10")
    add("--model", help="as for p2pfl-train run")
    add("--tags", default="", metavar="TAG,...", help="as for p2pfl-net serve")
    add("--network-key", metavar="FILE", help="as for p2pfl-net serve")
    add("--trust", metavar="open|approve", help="as for p2pfl-net serve")
    add("--args", default="", help="more options for p2pfl-train run, in one text")
    add("--net-args", default="", help="more options for p2pfl-net serve, in one text")
    return parser


def pair_options(options: argparse.Namespace) -> pairs.PairOptions:
    """What to start. Raises `UsageError`."""
    port = config.parse_port(options.port)
    config.parse_boot([options.boot])
    if port == 0 and options.state is None:
        raise UsageError("PORT=0 needs STATE=DIR: the directory cannot be named after the port")
    net = ["--port", str(port), "--host", config.parse_host(options.host)]
    if options.boot:
        net += ["--boot", options.boot]
    if config.parse_tags("--tags", [options.tags]):
        net += ["--tags", options.tags]
    if options.network_key:
        net += ["--network-key", options.network_key]
    if options.trust:
        net += ["--trust", options.trust]
    train = [] if options.data == RECEIVE_ONLY else ["--data", options.data]
    for option, value in (
        ("--data-dir", options.data_dir),
        ("--shard", options.shard),
        ("--model", options.model),
    ):
        if value:
            train += [option, value]
    return pairs.PairOptions(
        state=options.state or Path("state") / str(port),
        net=(*net, *_words("--net-args", options.net_args)),
        train=(*train, *_words("--args", options.args)),
    )


def _words(option: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} {text[:60]!r}: {error}".lower()) from None


def say(text: str) -> None:
    print(text, flush=True)


def run(options: pairs.PairOptions, signals: StopSignals) -> int:
    """Runs the pair to its end; the exit code. Raises `PairFailed`, `StateError`."""
    pair = pairs.Pair(options)
    watcher = watching.Watcher(pair.state)
    daemon = watching.Tail(pair.state.daemon_log)
    try:
        pair.start()
        say(f"logs: {pair.state.daemon_log} {pair.state.trainer_log}")
        marker = pairs.wait_joined(pair, lambda: signals.asked, lambda: _tell_who_is_silent(pair.state))
        _say_lines(daemon)
        if marker is not None:
            say(
                f"peer {marker.peer_id[:16]} at {marker.address}, {marker.peers} other peers; Ctrl-C stops it"
            )
        _follow(pair, watcher, daemon, signals)
        failure = None if signals.asked else pair.failure()
        if signals.asked:
            say("stopping after a last average; Ctrl-C again kills")
    finally:
        clean = pairs.stop([pair], lambda: signals.insisted)
    if signals.insisted:
        return EXIT_INTERRUPTED
    if failure is None and not clean:
        raise ScriptFailed(f"not stopped in time, killed; see the logs in {pair.state.root}")
    failure = failure or pair.failure_in_stop()
    if failure is not None:
        raise failure
    final = watcher.look().final
    if final is not None:
        seen = watcher.figures  # measured at the end, or else the last that was
        accuracies = _accuracies(seen.accuracy_trained, seen.accuracy_averaged)
        say(f"stopped after cycle {final.cycle}, {accuracies}")
    return 0


def _tell_who_is_silent(state: StateDir) -> None:
    """Nobody has let us in yet, and it may take a while until that is given up."""
    silent: dict[str, object] = {}
    for event in atomic.read_json_lines(state.events):
        if event.get("event") == "started":  # another life
            silent.clear()
        elif event.get("event") == "boot_unanswered":
            silent[str(event.get("address"))] = event.get("reason")
    reasons = ", ".join(f"{address} ({reason})" for address, reason in silent.items())
    say(f"no boot peer has answered yet{': ' if reasons else ''}{reasons}; they are asked again and again")


def _why_nothing(pair: pairs.Pair) -> str:
    """Where to look when there are peers, and no model of theirs was averaged."""
    if "approve" in pair.options.net and not read_trust(pair.state).approved:
        return f" (nobody is approved here: p2pfl-net trust list --state {pair.state.root})"
    return f" (why: {pair.state.trainer_log})"


def _say_lines(log: watching.Tail) -> None:
    for line in log.lines():
        say(line.decode("utf-8", "replace"))


def _follow(pair: pairs.Pair, watcher: watching.Watcher, daemon: watching.Tail, signals: StopSignals) -> None:
    """Says how the training goes, and what the daemon has to tell, such as another process with its key."""
    next_news_at_s = time.monotonic() + NEWS_S
    while not signals.asked and pair.death() is None:
        time.sleep(pairs.LOOK_S)
        if time.monotonic() >= next_news_at_s:
            next_news_at_s += NEWS_S
            _say_lines(daemon)
            seen = watcher.look()
            accuracies = _accuracies(seen.accuracy_trained, seen.accuracy_averaged)
            why = _why_nothing(pair) if seen.peers_known and not seen.models else ""
            if seen.too_few:
                why = f", now too few to outvote liars (why: {pair.state.trainer_log})"
            averaged = f"{seen.models} models averaged{why}"
            say(f"cycle {seen.cycle}, {seen.peers_known} peers, {averaged}, {accuracies}")


def _accuracies(trained: float | None, averaged: float | None) -> str:
    first, second = ("–" if value is None else f"{value:.4f}" for value in (trained, averaged))
    return f"accuracy {first} trained {second} averaged"


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `NetError`, `ScriptFailed`, `StateError`."""
    return run(pair_options(build_parser(program).parse_args(arguments)), signals)
