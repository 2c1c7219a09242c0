"""What a person does about other peers, by commands."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.rpc.peers import Peer, run_command


def decide(what: str, peer: Peer, *arguments: str) -> str:
    """`p2pfl-net trust WHAT` for a peer; what it says."""
    said = run_trust(what, peer, *arguments)
    assert (said.returncode, said.stderr) == (0, "")
    return said.stdout


def refused(status: int, what: str, peer: Peer, *arguments: str) -> str:
    """The one line with which the command ends instead."""
    said = run_trust(what, peer, *arguments)
    assert (said.returncode, said.stdout) == (status, "")
    assert said.stderr.count("\n") == 1
    assert said.stderr[:-1].isprintable()
    return said.stderr


def run_trust(what: str, peer: Peer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("trust", what, *arguments, "--state", peer.state.root)


def listed(peer: Peer) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(decide("list", peer, "--json"))
    return value


def ids(peer: Peer, name: str) -> list[str]:
    """Of one of the three lists."""
    return [entry["id"] for entry in listed(peer)[name]]
