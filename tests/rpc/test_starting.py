"""What stops a daemon at its start: one clear line, a documented exit code, nothing lost."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from p2pfl_state import lock, markers
from p2pfl_state.errors import DirectoryInUse
from p2pfl_state.layout import StateDir

from p2pfl_net.config import ServeConfig
from p2pfl_net.core.ids import Address
from p2pfl_net.errors import UsageError
from p2pfl_net.runtime import supervisor
from p2pfl_net.runtime.supervisor import Daemon
from tests.processes import Processes, wait_for
from tests.rpc.peers import Network, Peer, run_command


def refusal(peer: Peer, *options: str | Path, host: str = "127.0.0.1") -> tuple[int, str]:
    """Starts a daemon that will not run: its exit code and its one line, after at most the greeting."""
    process = peer.launch(*options, host=host)
    status = process.wait()
    lines = process.output().splitlines()
    assert 1 <= len(lines) <= 2, lines
    assert all(line.startswith("p2pfl-net: ") for line in lines), lines
    return status, lines[-1].removeprefix("p2pfl-net: ")


# options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["70000", "-1", "abc", "", "8000.0", "٣"])
def test_a_port_that_is_none_is_wrong_usage(tmp_path: Path, port: str) -> None:
    said = run_command("serve", "--port", port, "--state", tmp_path / "state")
    assert said.returncode == 2
    assert said.stderr == (
        f"p2pfl-net: --port {port!r}: a port is a whole number from 0 (choose one) to 65535\n"
    )
    assert not (tmp_path / "state").exists()


def test_port_0_needs_a_state_directory() -> None:
    said = run_command("serve", "--port", "0")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "--state" in said.stderr


@pytest.mark.parametrize("advertise", ["0.0.0.0:8000", "[::]:8000", "224.0.0.1:8000"])
def test_an_address_that_nobody_can_dial_is_not_advertised(tmp_path: Path, advertise: str) -> None:
    said = run_command("serve", "--port", "0", "--state", tmp_path / "state", "--advertise", advertise)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "--advertise" in said.stderr


def test_a_name_to_advertise_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    said = run_command(
        *("serve", "--port", "0", "--state", tmp_path / "state", "--advertise", "no-such-host.invalid:8000")
    )
    assert (said.returncode, "--advertise" in said.stderr) == (2, True)


def test_a_name_that_means_loopback_here_is_not_advertised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian has it for the own host name."""
    monkeypatch.setattr(supervisor, "resolve", lambda address: (Address("127.0.1.1", address.port),))
    with pytest.raises(UsageError, match="no other reaches"):
        supervisor._resolved(Address("this-machine", 8000))
    assert supervisor._resolved(Address("localhost", 8000)) == Address("127.0.1.1", 8000)


def test_a_host_that_no_interface_has(tmp_path: Path) -> None:
    said = run_command("serve", "--host", "192.0.2.1", "--port", "0", "--state", tmp_path / "state")
    assert said.returncode == 5
    assert "--host" in said.stderr
    assert "taken" not in said.stderr


def test_a_machine_without_an_interface(network: Network) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a machine of its own needs root, and util-linux")
    peer = network.peer(prefix=["unshare", "--net", "--"])
    peer.start(host="0.0.0.0")
    assert peer.stop() == 0


def test_a_chosen_port_is_told(network: Network) -> None:
    peer = network.peer()
    peer.start("--port", "0")
    assert f"port {peer.port}," in peer.process.output()
    assert peer.boot_done() is not None
    assert peer.peers_file()["self"]["address"] == peer.address


@pytest.mark.parametrize("boot", ["lab1", "lab1:0", "lab1:99999", "lab 1:8000", "[::1:8000", ":8000"])
def test_a_boot_address_that_is_none_is_wrong_usage(tmp_path: Path, boot: str) -> None:
    said = run_command("serve", "--port", "0", "--state", tmp_path / "state", "--boot", boot)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "--boot" in said.stderr


# the port ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_a_taken_port(network: Network, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        peer = network.peer()
        peer.port = taken.getsockname()[1]
        status, line = refusal(peer, host=host)
    assert status == 5
    assert f":{peer.port}" in line
    assert "--port 0" in line


def test_two_daemons_on_one_port_collide(network: Network) -> None:
    first, second = network.start(), network.peer()
    second.port = first.port
    assert refusal(second)[0] == 5
    assert first.process.alive


# the boot peer -------------------------------------------------------------------------------------


@pytest.fixture
def web_server() -> Iterator[str]:
    """The address of an HTTP server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


BOOT_TIMEOUTS_S = (1.5, 6.0, 24.0)


def boot_failure(network: Network, address: str, timeout_s: float = BOOT_TIMEOUTS_S[0]) -> str:
    """The line of a daemon that waits for this boot peer only so long."""
    peer = network.peer()
    status, line = refusal(peer, "--boot-timeout", str(timeout_s), "--boot", address)
    assert status == 4
    assert address in line
    assert f"within {timeout_s:g} s" in line
    assert peer.boot_done() is None
    assert peer.events("boot_failed")
    return line


def boot_failure_with_a_reason(network: Network, address: str) -> str:
    """The same where something answers: on a busy machine not in the shortest time."""
    for timeout_s in BOOT_TIMEOUTS_S:
        line = boot_failure(network, address, timeout_s)
        if "no answer" not in line:
            break
    return line


def test_a_boot_peer_that_is_not_there(network: Network) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "connection refused" in boot_failure_with_a_reason(network, f"127.0.0.1:{port}")


def test_a_boot_peer_that_is_a_web_server(network: Network, web_server: str) -> None:
    assert "not a p2pfl peer" in boot_failure_with_a_reason(network, web_server)


def test_a_boot_peer_that_never_answers(network: Network) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no answer" in boot_failure(network, f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_boot_peer_whose_name_is_unknown(network: Network) -> None:
    boot_failure(network, "no-such-host.invalid:8000")  # its reason depends on how quick the resolver is


def test_one_of_several_boot_peers_is_enough(network: Network, web_server: str) -> None:
    first = network.start()
    peer = network.start("--boot", web_server, "--boot", first.address)
    assert peer.known() == {first.peer_id}


# the state directory -------------------------------------------------------------------------------


def test_a_directory_in_use(network: Network) -> None:
    first = network.start()
    second = network.peer(first.state.root.name)
    status, line = refusal(second)
    assert (status, "in use by another daemon" in line) == (3, True)
    assert first.boot_done() is not None


def test_a_copy_of_a_directory(network: Network) -> None:
    first, copy = network.start(), network.peer("copy")
    assert first.stop() == 0
    shutil.copytree(first.state.root, copy.state.root)
    status, line = refusal(copy)
    assert (status, "is a copy" in line) == (3, True)


def test_a_directory_of_another_host(network: Network) -> None:
    peer = network.start()
    assert peer.stop() == 0
    home = json.loads(peer.state.home.read_bytes())
    peer.state.home.write_text(json.dumps({**home, "host": "another"}))
    status, line = refusal(peer)
    assert (status, "belongs to another host" in line) == (3, True)


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    said = run_command("serve", "--port", "0", "--state", tmp_path / "file")
    assert (said.returncode, said.stderr.count("\n")) == (3, 1)


def fill(folder: Path) -> None:
    """Leaves no byte free."""
    with open(folder / "ballast", "wb", buffering=0) as ballast:
        for piece in (4096, 1):
            try:
                while True:
                    ballast.write(b"\0" * piece)
            except OSError:
                continue


def test_a_read_only_directory(processes: Processes, small_disk: Path) -> None:
    peer = Peer(processes, small_disk / "state")
    peer.start()
    assert peer.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, line = refusal(peer)
    assert status == 3
    assert "--state" in line


def test_a_full_disk_at_the_start(processes: Processes, small_disk: Path) -> None:
    fill(small_disk)
    status, line = refusal(Peer(processes, small_disk / "state"))
    assert status == 3
    assert "no space left" in line


def test_a_disk_that_fills_up(processes: Processes, network: Network, small_disk: Path) -> None:
    peer = Peer(processes, small_disk / "state")
    peer.start()
    key = peer.state.key.read_bytes()
    fill(small_disk)
    other = network.start(boot=peer)
    status = peer.process.wait()
    output = peer.process.output()
    assert status == 3
    assert "Traceback" not in output
    assert sum("no space left" in line for line in output.splitlines()) == 1
    assert peer.state.key.read_bytes() == key
    (small_disk / "ballast").unlink()
    peer.start(boot=other)
    assert peer.known() == {other.peer_id}


def test_a_full_disk_is_told_once_by_whoever_meets_it(processes: Processes, small_disk: Path) -> None:
    peer = Peer(processes, small_disk / "state")
    peer.start()
    damaged = [small_disk / f"damaged{number}" for number in range(100)]
    for path in damaged:
        path.touch()
    fill(small_disk)
    for known, path in enumerate(damaged):  # until the event log needs another page
        path.rename(peer.state.model)
        wait_for(partial(lambda count: len(peer.events("error")) > count or not peer.process.alive, known))
        if not peer.process.alive:
            break
    assert peer.process.wait() == 3
    lines = peer.process.output().splitlines()
    assert all(line.startswith("p2pfl-net: ") for line in lines), lines
    assert "no space left" in lines[-1]


# the key -------------------------------------------------------------------------------------------


def another_kind_of_key() -> bytes:
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\xff" * 100_000, another_kind_of_key()])
def test_a_damaged_key_is_told_and_kept(network: Network, content: bytes) -> None:
    peer = network.start()
    assert peer.stop() == 0
    peer.state.key.write_bytes(content)
    status, line = refusal(peer)
    assert status == 7
    assert str(peer.state.key) in line
    assert peer.state.key.read_bytes() == content


def test_half_a_key_is_told_and_kept(network: Network) -> None:
    peer = network.start()
    assert peer.stop() == 0
    half = peer.state.key.read_bytes()[:100]
    peer.state.key.write_bytes(half)
    assert refusal(peer)[0] == 7
    assert peer.state.key.read_bytes() == half


def test_the_key_is_private(network: Network) -> None:
    assert network.start().state.key.stat().st_mode & 0o777 == 0o600


# what an earlier life left -------------------------------------------------------------------------


def test_the_marker_of_a_killed_daemon_is_removed_first_thing(network: Network) -> None:
    peer = network.start()
    peer.kill()
    stale = peer.boot_done()
    assert stale is not None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer.launch("--boot", f"127.0.0.1:{silent.getsockname()[1]}")
        wait_for(lambda: peer.boot_done() is None, what="the stale marker's removal")
        assert peer.process.alive
        peer.wait_event("started", count=2)
        assert peer.boot_done() is None
        assert peer.stop() == 0


def test_a_path_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    impossible = tmp_path / ("x" * 300)
    for command in (
        ("status", "--state", impossible),
        ("peers", "--state", impossible),
        ("serve", "--port", "0", "--state", impossible),
        ("get", "127.0.0.1:1", "--out", impossible),
        ("get", "127.0.0.1:1", "--out", impossible / "model"),
    ):
        said = run_command(*command)
        assert said.returncode in (2, 3)
        assert said.stderr.count("\n") == 1, said.stderr
        assert said.stderr.startswith("p2pfl-net: ")


def test_a_marker_of_a_killed_daemon_is_gone_before_the_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path)
    markers.write_boot_done(state, markers.BootDone("0" * 32, "1" * 64, "127.0.0.1:1", 0))
    there: list[bool] = []

    def acquire(self: lock.ProcessLock) -> None:
        there.append(state.boot_done.exists())
        raise DirectoryInUse("as if")

    monkeypatch.setattr(lock.ProcessLock, "acquire", acquire)
    with pytest.raises(DirectoryInUse):
        Daemon(ServeConfig(tmp_path, "127.0.0.1", 0), print).serve()
    assert there == [False]
