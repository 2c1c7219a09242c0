"""`make launch` and `make stop` through a real sshd on loopback."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from p2pfl_state import atomic, lock, markers
from p2pfl_state.layout import StateDir

from tests.conftest import MARK
from tests.processes import ROOT, Process, Processes, wait_for_trainer

SSHD = Path("/usr/sbin/sshd")
TOOLS = all(shutil.which(tool) for tool in ("ssh", "ssh-keygen"))
pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (SSHD.exists() and TOOLS),
        reason="needs openssh-server: make test-lab installs it when it is run by root on Debian",
    ),
]
FOLDER = "it's $(touch pwned) a;folder"
"""Of the project on the hosts: what a careless quoting would run."""
LAUNCH_S = 600.0
"""How long a launcher may take: it gives the hosts themselves more than a minute for each step."""


@dataclass
class Lab:
    """An sshd of our own, and what a host of it looks like."""

    processes: Processes
    folder: Path
    ssh_port: int
    installed: Path
    """The project on the hosts, for all of them are this machine."""

    def line(self, port: int, *words: str, ssh_port: int | None = None) -> str:
        quoted = shlex.quote(str(self.installed))
        target = f"{getpass.getuser()}@127.0.0.1:{ssh_port or self.ssh_port}"
        return " ".join([target, f"port={port} host=127.0.0.1 dir={quoted}", *words])

    def hosts(self, *lines: str) -> Path:
        path = self.folder / "hosts.txt"
        path.write_text("# the lab\n\n" + "\n".join(lines) + "\n")
        return path

    def state(self, port: int) -> StateDir:
        return StateDir(self.installed / "state" / f"127.0.0.1-{port}")

    def run(self, command: str, hosts: Path, *options: str, known: bool = True) -> Process:
        known_hosts = self.folder / ("known_hosts" if known else "nobody")
        ssh_options = (
            f"-F none -i {self.folder}/key -o IdentitiesOnly=yes -o SendEnv={MARK} "
            f"-o UserKnownHostsFile={known_hosts} -o GlobalKnownHostsFile=none"
        )
        line = [f"--hosts={hosts}", *options]
        return self.processes.start_script(command, *line, env={"SSH_OPTIONS": ssh_options})


@pytest.fixture
def lab(processes: Processes, tmp_path: Path) -> Iterator[Lab]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    port = processes.port()
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    (folder / "nobody").write_text("")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nPermitRootLogin prohibit-password\nAcceptEnv {MARK}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # an sshd of root's refuses to start without
    sshd = processes.start("sshd", [SSHD, "-D", "-e", "-f", folder / "config"])
    sshd.wait_output("listening")
    installed = tmp_path / FOLDER
    installed.mkdir()
    (installed / ".venv").symlink_to(sys.prefix)
    (installed / "scripts").symlink_to(ROOT / "scripts")
    lab = Lab(processes, folder, port, installed)
    yield lab
    for state in (installed / "state").glob("*"):  # whatever a failed test has left running
        processes.start_script("detached", "stop", f"--state={state}").wait(LAUNCH_S)
    assert not (installed / "pwned").exists()


def wait_averaged(state: StateDir) -> None:
    """Until the trainer has averaged a model of another peer."""
    wait_for_trainer(
        lambda: any(line.get("models") for line in atomic.read_json_lines(state.metrics)),
        what="an average",
    )


def runs(state: StateDir) -> tuple[bool, bool]:
    return lock.is_held(state.daemon_lock), lock.is_held(state.trainer_lock)


def test_peers_are_launched_in_order_and_exactly_they_are_stopped(
    lab: Lab, processes: Processes, tmp_path: Path
) -> None:
    ports = [lab.processes.port(), lab.processes.port()]
    hosts = lab.hosts(lab.line(ports[0]), lab.line(ports[1], "'args=--local-steps 2 --fan-out 3'"))
    launch = lab.run("launch", hosts, "--data=digits")
    assert launch.wait(LAUNCH_S) == 0
    states = [lab.state(port) for port in ports]
    assert [runs(state) for state in states] == [(True, True)] * 2, "they survive the ssh session"
    second = markers.read_boot_done(states[1])
    assert second is not None
    assert second.address == f"127.0.0.1:{ports[1]}"
    assert second.peers == 1, "it joined through the one before"
    for number, state in enumerate(states, 1):
        wait_averaged(state)
        assert f"→ {number}/2" in state.trainer_log.read_text()
        assert f"127.0.0.1:{ports[number - 1]} trains" in launch.output()

    again = lab.run("launch", hosts)
    assert again.wait(LAUNCH_S) == 1
    assert f"launch: 127.0.0.1:{ports[0]}: " in again.output()
    assert "is in use by another daemon" in again.output()
    assert "2 of 2 hosts failed" in again.output()

    stop_second = processes.start_script("detached", "stop", f"--state={states[1].root}")
    assert stop_second.wait(LAUNCH_S) == 0
    repaired = lab.run("launch", hosts)
    assert repaired.wait(LAUNCH_S) == 1
    assert "1 of 2 hosts failed" in repaired.output()
    second = markers.read_boot_done(states[1])
    assert second is not None
    assert second.peers == 1, "it joined through the one that runs already"

    stranger = processes.start_daemon(tmp_path / "stranger")
    stop = lab.run("stop", hosts)
    assert stop.wait(LAUNCH_S) == 0
    assert stop.output().count("stopped") == 2
    assert [runs(state) for state in states] == [(False, False)] * 2
    for state in states:
        *_, last = atomic.read_json_lines(state.metrics)
        assert last["final"] is True, "it was a clean stop"
        assert not state.launcher.exists()
    assert stranger.alive
    assert stranger.stop() == 0

    once_more = lab.run("stop", hosts)
    assert once_more.wait(LAUNCH_S) == 0
    assert once_more.output().count("was not running") == 2


def test_a_failing_host_is_one_line_and_the_next_is_launched_all_the_same(lab: Lab) -> None:
    ports = [lab.processes.port(), lab.processes.port(), lab.processes.port()]
    hosts = lab.hosts(
        lab.line(ports[0], ssh_port=lab.processes.port()),
        lab.line(ports[1], "data=no/such/data"),
        lab.line(ports[2]),
    )
    launch = lab.run("launch", hosts, "--data=digits")
    assert launch.wait(LAUNCH_S) == 1
    told = [line for line in launch.output().splitlines() if line.startswith("launch: ")]
    assert told[0].startswith(f"launch: 127.0.0.1:{ports[0]}: ssh: connect to host 127.0.0.1")
    assert told[0].endswith("Connection refused")
    assert told[1].startswith(f"launch: 127.0.0.1:{ports[1]}: the trainer ended with exit code 6")
    assert "no/such/data" in told[1]
    assert told[2] == "launch: 2 of 3 hosts failed, see above"
    assert len(told) == 3
    assert runs(lab.state(ports[1])) == (False, False), "the daemon without a trainer was stopped"
    assert runs(lab.state(ports[2])) == (True, True)
    stop = lab.run("stop", hosts)
    assert stop.wait(LAUNCH_S) == 1, "the first host cannot be asked"
    assert runs(lab.state(ports[2])) == (False, False)


def test_a_host_with_an_unknown_key_is_refused(lab: Lab) -> None:
    port = lab.processes.port()
    launch = lab.run("launch", lab.hosts(lab.line(port)), known=False)
    assert launch.wait(LAUNCH_S) == 1
    assert "Host key verification failed" in launch.output()
    assert not lab.state(port).root.exists()


def test_values_of_the_file_are_text_and_never_run(lab: Lab) -> None:
    port = lab.processes.port()
    values = ("'data=x; touch pwned'", "'model=`touch pwned`'", "'args=$(touch pwned)'")
    hosts = lab.hosts(lab.line(port, *values))
    launch = lab.run("launch", hosts)
    assert launch.wait(LAUNCH_S) == 1
    assert "launch: 127.0.0.1" in launch.output()
    assert not list(lab.installed.rglob("pwned"))
    assert not (Path.home() / "pwned").exists()


def test_a_host_without_the_project_says_so(lab: Lab) -> None:
    hosts = lab.hosts(lab.line(lab.processes.port()).replace("folder", "other"))
    launch = lab.run("launch", hosts)
    assert launch.wait(LAUNCH_S) == 1
    assert "clone the project there and run make setup" in launch.output()
