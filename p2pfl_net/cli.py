"""What a person types: `p2pfl-net serve | peers | status | get | key | trust | provenance | …`.

argparse, not typer: typer's parser brings 10 MB into a daemon that idles at 50.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from p2pfl_net import limitoptions, trust
from p2pfl_net.usage import Parser, positive, share, whole

EPILOG = """exit codes: 0 done; 1 a fault of this program; 2 wrong usage; 3 the state directory cannot be used
(in use, read-only, full, another host's); 4 no boot peer answered; 5 the port is taken or not allowed;
6 multicast DNS does not work here (--boot auto); 7 the key is damaged; 8 a model could not be fetched,
or a peer does not take a trust request"""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the command. Raises `NetError` and `StateError`."""
    options = build_parser().parse_args(arguments)
    options.run(options)


def say(line: str) -> None:
    """One line for the person who started the program."""
    sys.stderr.write(f"p2pfl-net: {line}\n")
    sys.stderr.flush()


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        "p2pfl-net", "The networking daemon of a peer, and commands that read what it knows.", EPILOG
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "Join the network, serve the published model, fetch those of others.")
    _add_serve(serve)
    peers = command("peers", _peers, "Show the peer list of a running or stopped peer.")
    status = command("status", _status, "Show what a peer is doing: processes, network, model, last round.")
    unpublish = command("unpublish", _unpublish, "Serve nothing more, whatever the trainer publishes.")
    publish = command("publish", _publish, "Serve again what the trainer has published.")
    for reader in (peers, status, unpublish, publish):
        reader.add_argument("--state", type=Path, required=True, metavar="DIR", help="the peer's directory")
    peers.add_argument(
        "--tag", action="append", default=[], metavar="TAG", help="only peers with this tag; repeatable"
    )
    simulated = command(
        "simulate",
        _simulate,
        "Run the membership of many peers on a virtual clock, over bad wires.",
    )
    _add_simulate(simulated)
    get = command("get", _get, "Fetch a peer's published model without joining; a broken download resumes.")
    get.add_argument("address", metavar="[ID@]HOST:PORT", help="any peer's address, and who must live there")
    get.add_argument("--state", type=Path, metavar="DIR", help="call as this peer (as a stranger)")
    get.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    get.add_argument(
        "--patience",
        type=positive,
        default=30.0,
        metavar="S",
        help="give up after S seconds without a byte (30)",
    )
    trust.add_commands(command("trust", None, trust.DESCRIPTION), EPILOG)
    keygen = command("keygen", _keygen, "Make the key of a private network, to be given to its members.")
    keygen.add_argument("file", type=Path, metavar="FILE", help="the file to write, for --network-key")
    _add_key(command("key", _key, "Show, copy or replace the key of a peer."))
    for caller in (serve, get):
        caller.add_argument(
            "--network-key", type=Path, metavar="FILE", help="the key of a private network (it is open)"
        )
    provenance = command("provenance", _provenance, "Say what went into a model, as this peer saw it signed.")
    provenance.add_argument("digest", metavar="DIGEST", help="its weights digest, or the start of it")
    provenance.add_argument(
        "--limit",
        type=whole,
        default=100,
        metavar="N",
        help="tell of so many, the nearest first (100)",
    )
    provenance.add_argument("--state", type=Path, required=True, metavar="DIR", help="the peer's directory")
    for reader in (peers, status, get, provenance):
        reader.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument
    add("--port", required=True, help="TCP port; 0 chooses one and needs --state")
    add(
        "--boot",
        action="append",
        default=[],
        metavar="[ID@]HOST:PORT",
        help="peer to join through, with its id where that is known; repeatable; auto finds peers on the LAN "
        "by multicast DNS, none for 3 s means the first peer (with --host 127.0.0.1: peers of this machine, "
        "started likewise)",
    )
    add(
        "--boot-timeout",
        type=positive,
        default=60.0,
        metavar="S",
        help="go on trying the boot peers (60)",
    )
    add("--state", type=Path, metavar="DIR", help="state directory (state/PORT)")
    add("--host", default="::", metavar="IP", help="interface to listen on (::, which is all)")
    add("--advertise", metavar="HOST:PORT", help="announce this address instead of learned ones")
    add(
        "--tags",
        action="append",
        default=[],
        metavar="TAG,...",
        help="what this peer trains for, as vision,mnist: it collects only from peers of its task that have "
        "all of its tags (none: from all of its task); repeatable",
    )
    add(
        "--max-model-gb",
        type=positive,
        default=1000.0,
        metavar="GB",
        help="refuse larger models (1000)",
    )
    add(
        "--trust",
        choices=("open", "approve"),
        default="open",
        help="whom models go to and come from: all but the revoked (open), or only whom `p2pfl-net trust "
        "approve` names (approve)",
    )
    add("--drain", type=positive, default=5.0, metavar="S", help="let uploads finish at a stop (5)")
    limitoptions.add_options(serve)


def _add_key(key: argparse.ArgumentParser) -> None:
    actions = key.add_subparsers(metavar="ACTION", required=True, dest="action")
    for action, text in {
        "show": "Say a peer's id and its public key.",
        "export": "Write a peer's secret key to a file, to be kept in a safe place.",
        "import": "Take the key in a file for a state directory that has none.",
        "rotate": "Replace a peer's key by a new one, which the old one vouches for before it is gone.",
    }.items():
        added = actions.add_parser(action, help=text, description=text, epilog=EPILOG)
        added.add_argument("--state", type=Path, required=True, metavar="DIR", help="the peer's directory")
        if action in ("export", "import"):
            added.add_argument("file", type=Path, metavar="FILE", help="the file of the secret key (PEM)")
            added.add_argument(
                "--passphrase-file",
                type=Path,
                metavar="FILE",
                help="its first line encrypts the key",
            )
        if action in ("show", "rotate"):
            added.add_argument("--json", action="store_true", help="print JSON for programs")


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--peers", type=int, required=True, metavar="N", help="how many peers there are at first")
    add("--seconds", type=float, default=60.0, metavar="S", help="virtual seconds (60)")
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same run (0)")
    add("--joined", action="store_true", help="all know all at first; else they join within ten seconds")
    add("--latency", default="0.5-5", metavar="A-B", help="milliseconds one way, between A and B (0.5-5)")
    add("--loss", type=share, default=0.0, metavar="P", help="share of packets that TCP must send again")
    add("--drop", type=share, default=0.0, metavar="P", help="share of messages that never come")
    add("--duplicate", type=share, default=0.0, metavar="P", help="share of requests that arrive twice")
    add("--reorder", type=share, default=0.0, metavar="P", help="share of messages overtaken by later ones")
    add("--one-way", type=share, default=0.0, metavar="P", help="share of pairs that connect one way only")
    add("--skew", type=share, default=0.0, metavar="P", help="clocks run up to so much too fast or slow")
    add("--churn", type=share, default=0.0, metavar="P", help="share of the peers replaced each minute")
    add("--kill", action="append", default=[], metavar="P@T", help="kill the share P at T seconds")
    add("--join", action="append", default=[], metavar="N@T", help="N more peers join at T seconds")
    add("--partition", action="append", default=[], metavar="P@T-U", help="cut the share P off from T to U")
    add("--pause", action="append", default=[], metavar="P@T-U", help="stop the share P from T to U")
    add("--trace", type=Path, metavar="FILE", help="write every event of every peer, a line of JSON each")
    add("--json", action="store_true", help="print JSON for programs")


def _serve(options: argparse.Namespace) -> None:
    from p2pfl_net import config
    from p2pfl_net.rpc import allocator
    from p2pfl_net.runtime.supervisor import Daemon

    allocator.tune()
    Daemon(
        config.serve_config(
            state=options.state,
            port=options.port,
            host=options.host,
            boot=options.boot,
            boot_timeout_s=options.boot_timeout,
            advertise=options.advertise,
            tags=options.tags,
            network_key=options.network_key,
            trust=options.trust,
            max_model_bytes=int(options.max_model_gb * 1e9),
            drain_s=options.drain,
            limits=limitoptions.limits_of(options),
        ),
        say,
    ).serve()


def _peers(options: argparse.Namespace) -> None:
    from p2pfl_net import views
    from p2pfl_net.inspect import daemon_runs, read_peers, with_tags

    tags: tuple[str, ...] = ()
    if options.tag:
        from p2pfl_net import config

        tags = config.parse_tags("--tag", options.tag)
    listed = with_tags(read_peers(options.state), tags)
    views.show_peers(listed, tags=tags, is_old=not daemon_runs(options.state), as_json=options.json)


def _status(options: argparse.Namespace) -> None:
    from p2pfl_net import views
    from p2pfl_net.inspect import read_status

    views.show_status(read_status(options.state), as_json=options.json)


def _unpublish(options: argparse.Namespace) -> None:
    from p2pfl_net import publication

    say(publication.withdraw(options.state))


def _publish(options: argparse.Namespace) -> None:
    from p2pfl_net import publication

    say(publication.restore(options.state))


def _simulate(options: argparse.Namespace) -> None:
    from p2pfl_net import simulate

    simulate.run(options)


def _key(options: argparse.Namespace) -> None:
    from p2pfl_net import key

    key.run(options, say)


def _provenance(options: argparse.Namespace) -> None:
    from p2pfl_net import provenance

    provenance.run(options.state, options.digest, limit=options.limit, as_json=options.json)


def _keygen(options: argparse.Namespace) -> None:
    from p2pfl_net import networkkey

    networkkey.make(options.file)
    say(f"{options.file} made: give it to those who may join, over a channel that you trust")


def _get(options: argparse.Namespace) -> None:
    from p2pfl_state.layout import StateDir

    from p2pfl_net import config, get, networkkey, views
    from p2pfl_net.rpc import allocator
    from p2pfl_net.runtime.known_peers import latest, read_successors

    allocator.tune()
    address, peer_id = config.parse_target(options.address)
    key = None if options.network_key is None else networkkey.read(options.network_key)
    present = peer_id
    if options.state is not None and peer_id is not None:
        present = latest(read_successors(StateDir(options.state)), peer_id)
    with views.progress_bar(hidden=options.json) as progress:
        header = get.get(
            address,
            present,
            options.out,
            get.credentials(options.state, key),
            patience_s=options.patience,
            progress=progress,
        )
    views.show_fetched(header, options.out, as_json=options.json)
