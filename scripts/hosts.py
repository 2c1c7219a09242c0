"""The hosts file of `make launch`: a peer a line, in the order in which they join.

    # [user@]host[:ssh port]   name=value ...
    lab1                       data=mnist data_dir=/srv/data
    ann@lab2:2222              port=8001 dir=~/p2pfl-b "args=--local-steps 20 --fan-out 8"

Names: `port` (8000) of the daemon; `dir` (~/p2pfl) where the project is installed on that host; `address`
at which the others reach it (the host's name); `data`, `data_dir`, `model`, `tags`, `network_key` (a path on
that host), `trust`, `args`, `net_args`, `host` as for `make run`; `shard` (line k of n: k/n where the data
set is known by name; none, which is the default for data of the host's own: all of it). Quotes as in a
shell; # starts a comment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from p2pfl_train.datasets.names import NAMES
from scripts.failures import WrongUsage

_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<ssh_port>[0-9]{1,5}))?"
)
"""No part can begin with a dash, so that none is taken for an option of ssh."""
_OWN = ("port", "dir", "address", "shard")
PASSED = ("data", "data_dir", "model", "tags", "network_key", "trust", "args", "net_args", "host")
"""Names that become options of `run`, underscores as dashes."""
MAX_LINES = 10_000


@dataclass(frozen=True)
class Host:
    """One line of the file."""

    target: str
    """What ssh connects to: `[user@]host`."""
    host: str
    ssh_port: int | None
    port: int
    folder: str
    address: str
    """`host:port` at which the other peers reach it."""
    shard: str | None
    options: Mapping[str, str] = field(default_factory=dict)
    """Of `PASSED`."""

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def state(self) -> str:
        """The state directory, in the host's folder: unique also where hosts share their disk."""
        return f"state/{self.host.strip('[]').replace(':', '_')}-{self.port}"


def read_hosts(path: Path, defaults: Mapping[str, str]) -> list[Host]:
    """The hosts of the file; `defaults` fill what a line does not say. Raises `WrongUsage`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(f"HOSTS={path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    return parse_hosts(lines, defaults, str(path))


def parse_hosts(lines: Sequence[str], defaults: Mapping[str, str], where: str) -> list[Host]:
    """The hosts of a file's lines. Raises `WrongUsage` that names the line."""
    told: list[tuple[str, list[str]]] = []
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise WrongUsage(f"{where} line {number}: {error}".lower()) from None
        if words:
            told.append((f"{where} line {number}", words))
    if not 1 <= len(told) <= MAX_LINES:
        raise WrongUsage(f"{where} has {len(told)} hosts: write one a line, as lab1 port=8000")
    hosts: dict[str, Host] = {}
    for number, (line_name, words) in enumerate(told, 1):
        host = _parse(line_name, words, defaults, f"{number}/{len(told)}")
        if host.name in hosts:
            raise WrongUsage(f"{line_name}: {host.name} is there twice: give it another port=")
        hosts[host.name] = host
    return list(hosts.values())


def _parse(line: str, words: Sequence[str], defaults: Mapping[str, str], shard: str) -> Host:
    match = _TARGET.fullmatch(words[0])
    if match is None:
        raise WrongUsage(f"{line}: {words[0][:80]!r} is not [user@]host[:ssh port]")
    values = dict(defaults)
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if not equals or name not in (*_OWN, *PASSED):
            known = ", ".join((*_OWN, *PASSED))
            raise WrongUsage(f"{line}: {word[:80]!r} is none of {known}, each as name=value")
        if any(ord(character) < 32 for character in value):
            raise WrongUsage(f"{line}: {name} holds a control character")
        values[name] = value
    name = match["host"]
    port = _port(line, "port", values.get("port", "8000"))
    shared = values.get("data", NAMES[0]) in NAMES
    wanted = values.get("shard", shard if shared else "none")
    return Host(
        target=f"{match['user']}@{name.strip('[]')}" if match["user"] else name.strip("[]"),
        host=name,
        ssh_port=_port(line, "the ssh port", match["ssh_port"]) if match["ssh_port"] else None,
        port=port,
        folder=values.get("dir", "~/p2pfl"),
        address=values.get("address", f"{name}:{port}"),
        shard=None if wanted == "none" else wanted,
        options={key: value for key, value in values.items() if key in PASSED and value},
    )


def _port(line: str, what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise WrongUsage(f"{line}: {what} {text[:20]!r} must be from 1 to 65535")
    return int(text)
