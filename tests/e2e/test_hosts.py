"""The hosts file of `make launch`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from scripts.failures import WrongUsage
from scripts.hosts import parse_hosts, read_hosts
from scripts.launch import remote_script, start_words
from tests.processes import Processes


def test_each_line_is_a_peer_with_its_shard() -> None:
    lines = [
        "# the lab",
        "",
        "lab1",
        "ann@lab2:2222 port=8001 dir=~/p2pfl-b 'args=--local-steps 20 --fan-out 8'  # the slow one",
        "[fd00::3] data=mnist shard=none address=lab3.example:9000 tags=vision,mnist",
    ]
    first, second, third = parse_hosts(lines, {"data": "digits"}, "hosts.txt")
    assert (first.target, first.ssh_port, first.port, first.folder) == ("lab1", None, 8000, "~/p2pfl")
    assert (first.address, first.shard, first.state) == ("lab1:8000", "1/3", "state/lab1-8000")
    assert (second.target, second.ssh_port, second.shard) == ("ann@lab2", 2222, "2/3")
    assert second.options == {"data": "digits", "args": "--local-steps 20 --fan-out 8"}
    assert (third.target, third.address, third.shard) == ("fd00::3", "lab3.example:9000", None)
    assert third.options == {"data": "mnist", "tags": "vision,mnist"}
    assert start_words(third, "")[-1] == "--tags=vision,mnist"
    assert start_words(second, "lab1:8000") == [
        "start",
        "--state=state/lab2-8001",
        "--",
        "--port=8001",
        "--boot=lab1:8000",
        "--shard=2/3",
        "--data=digits",
        "--args=--local-steps 20 --fan-out 8",
    ]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], "0 hosts"),
        (["# only a comment"], "0 hosts"),
        (["lab1", "-oProxyCommand=true"], "line 2: '-oProxyCommand=true' is not [user@]host[:ssh port]"),
        (["-l@lab1"], "is not [user@]host"),
        (["lab1;reboot"], "is not [user@]host"),
        (["lab1:70000"], "the ssh port '70000' must be from 1 to 65535"),
        (["lab1 port=0"], "port '0' must be from 1 to 65535"),
        (["lab1 port=8k"], "port '8k'"),
        (["lab1 prot=8001"], "'prot=8001' is none of port, dir"),
        (["lab1 --verbose"], "'--verbose' is none of"),
        (["lab1", "ann@lab1"], "line 2: lab1:8000 is there twice"),
        (["lab1 'data=open"], "line 1: no closing quotation"),
        (["lab1 'data=a\x01b'"], "data holds a control character"),
    ],
)
def test_a_mistake_is_told_with_its_line(lines: list[str], text: str) -> None:
    with pytest.raises(WrongUsage) as told:
        parse_hosts(lines, {}, "hosts.txt")
    assert text in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="No such file"):
        read_hosts(tmp_path / "hosts.txt", {})
    (tmp_path / "hosts.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(WrongUsage, match="not a text file"):
        read_hosts(tmp_path / "hosts.txt", {})


@pytest.mark.parametrize("folder", ["~/a b", "~", "{root}/it's $(touch pwned)", "{root}/-n `touch pwned`"])
def test_the_remote_command_takes_every_value_as_text(tmp_path: Path, folder: str) -> None:
    place = Path(folder.replace("~", str(tmp_path)).replace("{root}", str(tmp_path)))
    python = place / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\npwd -P\nfor word; do printf "[%s]" "$word"; done\n')
    python.chmod(0o755)
    words = ["start", "--state=a;b", "--data=$(touch pwned)", "--args=`touch pwned` 'x' \"y\" \\ *"]
    script = remote_script(folder.replace("{root}", str(tmp_path)), words)
    ran = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    where, _, said = ran.stdout.partition("\n")
    assert where == str(place.resolve())
    assert said == "".join(f"[{word}]" for word in ["-m", "scripts", "detached", *words])
    assert not list(tmp_path.rglob("pwned"))
    assert len(shlex.split(script)) == 4, "the login shell sees one quoted argument"


def test_data_of_a_hosts_own_is_not_shared_out() -> None:
    lines = ["lab1", "lab2 data=/srv/xrays", "lab3 data=/srv/common shard=3/3", "lab4 data=digits"]
    hosts = parse_hosts(lines, {"data": "mnist"}, "hosts.txt")
    assert [host.shard for host in hosts] == ["1/4", None, "3/3", "4/4"]


@pytest.mark.parametrize(
    ("boot", "asked"),
    [
        ([], [None, "lab1:8000", "lab2:8000"]),
        (["--boot=lab0:8000"], ["lab0:8000", "lab1:8000", "lab2:8000"]),
        (["--boot=auto"], ["auto", "auto,lab1:8000", "auto,lab2:8000"]),
        (["--boot=lab0:8000,auto"], ["lab0:8000,auto", "auto,lab1:8000", "auto,lab2:8000"]),
    ],
)
def test_each_is_booted_to_the_one_before(
    processes: Processes, tmp_path: Path, boot: list[str], asked: list[str | None]
) -> None:
    """With an ssh that writes down what it is to run, and says that it did."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f"""#!/bin/sh
echo "$*" >> {shlex.quote(str(tmp_path / "ran"))}
echo '{{"peer_id": "0123456789abcdef", "training": true}}'
""")
    ssh.chmod(0o755)
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("lab1\nlab2\nlab3\n")
    env = {"PATH": f"{ssh.parent}:{os.environ['PATH']}"}
    launch = processes.start_script("launch", f"--hosts={hosts}", *boot, env=env)
    assert launch.wait() == 0, launch.output()
    started = [line for line in (tmp_path / "ran").read_text().splitlines() if " start " in line]
    named = [re.search(r"--boot=([\w:,]+)", line) for line in started]
    assert [match and match[1] for match in named] == asked
