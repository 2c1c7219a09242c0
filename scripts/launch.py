"""`make launch` and `make stop`: peers on many machines over ssh, each booted to the one before.

Each host needs the project with `make setup` done, and a login without a password. What ssh is told beside
that stands in the environment variable SSH_OPTIONS; host keys are checked as your ssh does it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from p2pfl_net import config
from p2pfl_net.usage import Parser
from scripts import detached
from scripts.failures import ScriptFailed, WrongUsage
from scripts.hosts import PASSED, Host, read_hosts
from scripts.signals import EXIT_INTERRUPTED, StopSignals

CONNECT_S = 10
ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
"""A host that falls silent ends the connection after a minute."""
START_LIMIT_S = detached.JOIN_PATIENCE_S + detached.STOP_PATIENCE_S + 30.0
CHECK_LIMIT_S = detached.TRAIN_PATIENCE_S + 30.0
STOP_LIMIT_S = detached.STOP_PATIENCE_S + 2 * detached.GONE_PATIENCE_S + 30.0
"""Each above what the host itself allows, plus the time to connect."""
HOSTS_AT_ONCE = 16
LOOK_S = 0.1
MAX_WORDS = 2000
EPILOG = "exit codes: 0 done on all hosts; 1 not on some, each told in a line; 2 wrong usage; 130 Ctrl-C"


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(program, __doc__, EPILOG)
    add = parser.add_argument
    add("--hosts", type=Path, metavar="FILE", help="a host a line, see scripts/hosts.py")
    add(
        "--boot",
        default="",
        metavar="HOST:PORT,...",
        help="a running peer that the first joins; auto: all also find, and are found by, peers of their LAN",
    )
    for name in PASSED:
        add(f"--{name.replace('_', '-')}", default="", help="for lines that do not say it")
    return parser


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `ScriptFailed`, `NetError`."""
    options = build_parser(program).parse_args(arguments)
    if options.hosts is None:
        raise WrongUsage("name a file with a host a line: HOSTS=hosts.txt")
    config.parse_boot([options.boot])
    defaults = {name: getattr(options, name) for name in PASSED if getattr(options, name)}
    hosts = read_hosts(options.hosts, defaults)
    ssh = ssh_command(os.environ.get("SSH_OPTIONS", ""))
    failed = stop(ssh, hosts, signals) if program == "stop" else launch(ssh, hosts, options.boot, signals)
    if signals.asked:
        if program == "launch":
            say(f"interrupted; make stop HOSTS={options.hosts} ends the peers that run")
        return EXIT_INTERRUPTED
    if failed:
        raise ScriptFailed(f"{failed} of {len(hosts)} hosts failed, see above")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def ssh_command(options: str) -> list[str]:
    """`ssh` with what every call needs; the user's options come first, for ssh takes the first of each."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise ScriptFailed(f"SSH_OPTIONS {options!r}: {error}".lower()) from None
    return ["ssh", *words, "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", *ALIVE]


def launch(ssh: Sequence[str], hosts: Sequence[Host], boot: str, signals: StopSignals) -> int:
    """Starts the peers one after another, each booted to the last that joined; how many failed."""
    joined: list[Host] = []
    always = f"{config.AUTO}," if config.asks_for_discovery([boot]) else ""
    for host in hosts:
        answer = run_on(ssh, host, start_words(host, boot), START_LIMIT_S, lambda: signals.asked)
        if signals.asked:
            return len(hosts) - len(joined)
        if answer.reason:
            sys.stderr.write(f"launch: {host.name}: {answer.reason}\n")
            if answer.value.get("in_use"):  # of an earlier launch: the next may join through it
                boot = always + host.address
            continue
        peer_id, shard = str(answer.value.get("peer_id"))[:16], host.shard or "all its data"
        say(f"{host.name} joined: peer {peer_id}, shard {shard}, {host.folder}/{host.state}")
        boot = always + host.address
        joined.append(host)
    training = 0
    for host, answer in _on_all(ssh, joined, "check", CHECK_LIMIT_S, lambda: signals.asked):
        if answer.reason:
            sys.stderr.write(f"launch: {host.name}: {answer.reason}\n")
            continue
        training += 1
        say(f"{host.name} {'trains' if answer.value.get('training') else 'runs, without a first cycle yet'}")
    return len(hosts) - training


def stop(ssh: Sequence[str], hosts: Sequence[Host], signals: StopSignals) -> int:
    """Ends the peers of the file, several at once; how many hosts failed."""
    failed = 0
    for host, answer in _on_all(ssh, hosts, "stop", STOP_LIMIT_S, lambda: signals.insisted):
        if answer.reason:
            failed += 1
            sys.stderr.write(f"stop: {host.name}: {answer.reason}\n")
        else:
            say(f"{host.name} {'stopped' if answer.value.get('ended') else 'was not running'}")
    return failed


def _on_all(
    ssh: Sequence[str], hosts: Sequence[Host], command: str, limit_s: float, given_up: Callable[[], bool]
) -> Iterator[tuple[Host, Answer]]:
    """Runs a command of `detached` for every host's peer, several at once; the answers in their order."""

    def run(host: Host) -> Answer:
        return run_on(ssh, host, [command, f"--state={host.state}"], limit_s, given_up)

    with ThreadPoolExecutor(HOSTS_AT_ONCE) as pool:
        yield from zip(hosts, pool.map(run, hosts), strict=True)


def start_words(host: Host, boot: str) -> list[str]:
    """The arguments of `detached` that start this host's peer."""
    words = ["start", f"--state={host.state}", "--", f"--port={host.port}"]
    if boot:
        words.append(f"--boot={boot}")
    if host.shard is not None:
        words.append(f"--shard={host.shard}")
    return words + [f"--{name.replace('_', '-')}={value}" for name, value in host.options.items()]


def remote_script(folder: str, words: Sequence[str]) -> str:
    """One argument for ssh: a shell command in which nothing of `folder` and `words` is more than text."""
    home, _, rest = folder.partition("/")
    place = f'"$HOME"/{shlex.quote(rest)}' if home == "~" else shlex.quote(folder)
    missing = shlex.quote(f"no .venv in {folder}: clone the project there and run make setup")
    script = (
        f"cd -- {place} 2>/dev/null && test -x .venv/bin/python || {{ echo {missing} >&2; exit 1; }}; "
        f"exec .venv/bin/python -m scripts detached {shlex.join(words)}"
    )
    return f"exec sh -c {shlex.quote(script)}"  # a login shell may be none of sh's family


@dataclass(frozen=True)
class Answer:
    """What a host said."""

    value: Mapping[str, object]
    """The JSON object that it printed; empty when it printed none."""
    reason: str
    """Why it failed, in one line; empty when it did not."""


def run_on(
    ssh: Sequence[str], host: Host, words: Sequence[str], limit_s: float, given_up: Callable[[], bool]
) -> Answer:
    """Runs `detached` on a host; bounded by `limit_s`, and ended when `given_up` says so."""
    port = ["-p", str(host.ssh_port)] if host.ssh_port is not None else []
    line = [*ssh, *port, "--", host.target, remote_script(host.folder, words)]
    try:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,  # a Ctrl-C is for us to handle
        )
    except OSError as error:
        return Answer({}, f"ssh cannot be run: {error.strerror}; install openssh-client")
    give_up_at_s = time.monotonic() + limit_s
    while True:
        try:
            output, complaints = process.communicate(timeout=LOOK_S)
            break
        except subprocess.TimeoutExpired:
            if given_up() or time.monotonic() >= give_up_at_s:
                process.kill()
                process.communicate()
                return Answer({}, f"no answer within {limit_s:g} s")
    return _judge(process.returncode, output, complaints)


def _judge(code: int, output: str, complaints: str) -> Answer:
    try:
        value = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        value = None
    if isinstance(value, dict) and code == 0:
        return Answer(value, "")
    said = " | ".join(line.strip() for line in complaints.splitlines() if line.strip())
    readable = "".join(character if character.isprintable() else "?" for character in said[-MAX_WORDS:])
    reason = readable.removeprefix("detached: ") or f"ended with exit code {code} and said nothing"
    return Answer(value if isinstance(value, dict) else {}, reason)
