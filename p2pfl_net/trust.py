"""`p2pfl-net trust`: who may have this peer's model and bring theirs, decided by a person.

The module is imported with the command line: what it needs besides, it imports when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl_state.layout import StateDir
    from p2pfl_state.trust import TrustFile

    from p2pfl_net.core.ids import Address, PeerId

DESCRIPTION = "Say whom models go to and come from; see who asks, and ask others."
MIN_PREFIX = 8
"""Hex digits of an id that may stand for all of it: whoever can make a key with the same ones makes it
ambiguous, not another."""


def add_commands(trust: argparse.ArgumentParser, epilog: str) -> None:
    """Adds the commands below `p2pfl-net trust`."""
    commands = trust.add_subparsers(metavar="COMMAND", required=True, dest="trust_command")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, epilog=epilog)
        added.set_defaults(run=run)
        added.add_argument("--state", type=Path, required=True, metavar="DIR", help="the peer's directory")
        return added

    listed = command("list", _list, "Show who is approved, who is revoked, and who asks.")
    listed.add_argument("--json", action="store_true", help="print JSON for programs")
    approve = command("approve", _approve, "Let a peer have this one's models, and take its.")
    revoke = command("revoke", _revoke, "Neither give a peer models nor take its, from this moment on.")
    for decision in (approve, revoke):
        decision.add_argument(
            "peer", metavar="ID", help=f"its id, or {MIN_PREFIX} or more of its first digits"
        )
        decision.add_argument("--note", type=_line, metavar="TEXT", help="why, for whoever reads the list")
    request = command("request", _request, "Ask a peer's operator to approve this one.")
    request.add_argument("peer", metavar="ID|[ID@]HOST:PORT", help="a peer of the list, or where one lives")
    request.add_argument(
        "--reason", type=_line, required=True, metavar="TEXT", help="what its operator reads"
    )
    request.add_argument("--network-key", type=Path, metavar="FILE", help="the key of a private network")


def _line(text: str) -> str:
    """For `add_argument(type=…)`."""
    from p2pfl_state.trust import MAX_TEXT, is_line

    if not is_line(text):
        raise argparse.ArgumentTypeError(f"give one printable line of at most {MAX_TEXT} characters")
    return text


def _list(options: argparse.Namespace) -> None:
    from p2pfl_state import trust as files

    from p2pfl_net.core.ids import PeerId
    from p2pfl_net.runtime.known_peers import latest, read_successors

    state = _state(options)
    decided, following = files.read_trust(state), read_successors(state)
    requests = decided.undecided(files.read_requests(state))

    def now(peer: str) -> str | None:
        present = latest(following, PeerId(peer))
        return None if present == peer else present

    lists = (("approved", decided.approved), ("revoked", decided.revoked))
    if options.json:
        value: dict[str, Any] = {
            name: [
                {"id": peer, "time": made.time, "note": made.note, "now": now(peer)}
                for peer, made in decisions.items()
            ]
            for name, decisions in lists
        }
        value["requests"] = [
            {"id": r.peer_id, "time": r.time, "address": r.address, "reason": r.reason} for r in requests
        ]
        _print(json.dumps(value))
        return
    for name, decisions in lists:
        for peer, made in decisions.items():
            present = f"(its key was replaced, it is {now(peer)} now)  " if now(peer) else ""
            _print(f"{name:<8}  {peer}  {_date(made.time)}  {present}{made.note or ''}".rstrip())
    for request in requests:
        _print(
            f"asks      {request.peer_id}  {_date(request.time)}  from {request.address}: {request.reason}"
        )
    if not (decided.approved or decided.revoked or requests):
        _print("nobody is approved or revoked, and nobody asks")


def _approve(options: argparse.Namespace) -> None:
    from p2pfl_state.trust import Decision, change_trust

    from p2pfl_net.core.ids import PeerId
    from p2pfl_net.runtime.known_peers import latest, read_successors

    state = _state(options)
    _check_other(options.peer, state)
    named = _known_id(options.peer, state)
    peer_id = latest(read_successors(state), PeerId(named))
    change_trust(state, lambda decided: decided.approve(peer_id, Decision(_now(), options.note)))
    _print(f"approved {peer_id}{_before(named, peer_id)}")


def _revoke(options: argparse.Namespace) -> None:
    from p2pfl_state.trust import Decision, change_trust

    from p2pfl_net.core.ids import PeerId
    from p2pfl_net.runtime.known_peers import latest, read_successors

    state = _state(options)
    _check_other(options.peer, state)
    named = _known_id(options.peer, state)
    peer_id = latest(read_successors(state), PeerId(named))

    def revoke(decided: TrustFile) -> TrustFile:
        for one in dict.fromkeys((named, peer_id)):
            earlier = decided.approved.get(one) or decided.revoked.get(one)
            note = options.note or (earlier.note if earlier else None)  # it often says who the peer is
            decided = decided.revoke(one, Decision(_now(), note))
        return decided

    change_trust(state, revoke)
    _print(f"revoked {peer_id}{_before(named, peer_id)}")


def _before(named: str, peer_id: str) -> str:
    return "" if named == peer_id else f" ({named[:16]} before its key was replaced)"


def _request(options: argparse.Namespace) -> None:
    from p2pfl_net import get, networkkey
    from p2pfl_net.errors import RemoteError, RequestFailed
    from p2pfl_net.rpc.trusting import ask_for_trust
    from p2pfl_net.runtime.known_peers import latest, read_successors
    from p2pfl_net.wire.trust import Standing

    state = _state(options)
    if ":" not in options.peer:
        _check_other(options.peer, state)
    addresses, wanted = _target(options.peer, state)
    if wanted is not None:
        _check_other(wanted, state)
        wanted = latest(read_successors(state), wanted)
    key = None if options.network_key is None else networkkey.read(options.network_key)
    try:
        peer_id, said = ask_for_trust(get.credentials(options.state, key), addresses, wanted, options.reason)
    except RemoteError as error:
        raise RequestFailed(f"{addresses[0]}: {error}") from None
    if said is Standing.APPROVED:
        _print(f"peer {peer_id} has approved this one already")
    else:
        _print(f"peer {peer_id} keeps the request: its operator reads it by p2pfl-net trust list")


def _target(text: str, state: StateDir) -> tuple[tuple[Address, ...], PeerId | None]:
    """Where to ask, and who must live there. Raises `UsageError`, `StateError`."""
    from p2pfl_net import config
    from p2pfl_net.core.ids import PeerId, parse_address
    from p2pfl_net.errors import UsageError
    from p2pfl_net.inspect import read_peers

    if ":" in text:
        address, named = config.parse_target(text)
        return (address,), named
    listed = {str(entry.get("id")): entry.get("addresses") for entry in read_peers(state.root)["peers"]}
    peer_id = _whole_id(text, set(listed))
    try:
        addresses = listed.get(peer_id)
        parsed = tuple(parse_address(str(a)) for a in addresses) if isinstance(addresses, list) else ()
    except ValueError:
        parsed = ()
    if not parsed:
        raise UsageError(f"no address of peer {peer_id} is known: name it as {peer_id}@HOST:PORT")
    return parsed, PeerId(peer_id)


def _known_id(text: str, state: StateDir) -> str:
    """Whom a person means. Raises `UsageError`, `StateError`."""
    from p2pfl_state import trust as files
    from p2pfl_state.errors import DirectoryUnusable, MalformedFile

    from p2pfl_net.inspect import read_peers

    decided = files.read_trust(state)
    known = {*decided.approved, *decided.revoked, *(r.peer_id for r in files.read_requests(state))}
    with suppress(DirectoryUnusable, MalformedFile):  # it has never run, or writes its list anew
        known.update(str(entry.get("id")) for entry in read_peers(state.root)["peers"])
    return _whole_id(text, known)


def _check_other(peer_id: str, state: StateDir) -> None:
    """Raises `UsageError` for the peer of this directory itself, or the start of its id; `KeyUnusable`."""
    from p2pfl_net.errors import UsageError
    from p2pfl_net.runtime import identity

    own = identity.load(state.key)
    if own is not None and len(peer_id) >= MIN_PREFIX and own.peer_id.startswith(peer_id):
        raise UsageError(f"{peer_id[:16]} is this peer itself: name another")


def _whole_id(text: str, known: set[str]) -> str:
    from p2pfl_net.core.ids import is_peer_id
    from p2pfl_net.errors import UsageError

    if is_peer_id(text):
        return text
    if not MIN_PREFIX <= len(text) < 64 or not is_peer_id(text.ljust(64, "0")):
        raise UsageError(
            f"{text!r}: a peer id is 64 lower-case hex digits, or {MIN_PREFIX} or more of its first"
        )
    found = sorted(peer_id for peer_id in known if is_peer_id(peer_id) and peer_id.startswith(text))
    if not found:
        raise UsageError(f"{text!r}: no peer known here has such an id: give all its 64 digits")
    if len(found) > 1:
        raise UsageError(f"{text!r}: {len(found)} peers known here have such an id: give more of its digits")
    return found[0]


def _state(options: argparse.Namespace) -> StateDir:
    """Raises `StateError` for what is no peer's directory."""
    from p2pfl_state.layout import StateDir

    from p2pfl_net.inspect import check_peer

    check_peer(options.state)
    return StateDir(options.state)


def _now() -> float:
    return round(time.time(), 3)


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # a year that no calendar has
        return f"{seconds:.0f}"


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
