"""`--boot auto`: peers that find each other on a LAN, without an address and without a first one.

Every daemon that speaks multicast DNS runs in a network namespace of the test: nothing is heard outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from p2pfl_net.runtime.discovery import MAX_COMPLAINTS
from tests.processes import ROOT, Processes
from tests.rpc.machines import Machine
from tests.rpc.peers import Network, Peer, run_command, wait_complete

AUTO = ("--boot", "auto")
ATTEMPTS = 3
Machines = tuple[Machine, Machine]


def joined_first(peer: Peer) -> bool:
    return bool(peer.events("joined")[-1]["first"])


def start_later(network: Network, machine: Machine, *boot: str) -> Peer:
    """A peer that has found the network before it booted. On a busy machine an answer can come too late."""
    for _ in range(ATTEMPTS):
        peer = network.peer(prefix=machine.prefix)
        peer.start(*boot, host="::")
        if not joined_first(peer):
            return peer
        peer.stop()
    raise AssertionError("nobody was found in time")


def refusal(peer: Peer, *options: str, host: str = "::") -> tuple[int, str]:
    """Starts a daemon that will not run: its exit code and its one line."""
    process = peer.launch(*options, host=host)
    status = process.wait()
    (line,) = process.output().splitlines()
    return status, line


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_peers_that_start_at_the_same_moment_become_one_network(
    network: Network, machines: Machines, host: str
) -> None:
    peers = [network.peer(name, machine.prefix) for name, machine in zip("abcd", machines * 2, strict=True)]
    for peer in peers:
        peer.launch(*AUTO, host=host)
    for peer in peers:
        peer.wait_up()
    wait_complete(peers)


def test_who_starts_later_finds_the_network(network: Network, machines: Machines) -> None:
    first, second = machines
    a = network.peer(prefix=first.prefix)
    a.start(*AUTO, host="::")
    assert joined_first(a), "nobody is there, and nobody needs to be"
    b = start_later(network, second, *AUTO)
    assert a.peer_id in {event["peer"] for event in b.events("discovered")}
    wait_complete([a, b])
    a.kill()
    b.wait_event("peer_lost", peer=a.peer_id)
    c = start_later(network, first, *AUTO)
    wait_complete([b, c])


@pytest.mark.slow
def test_two_networks_that_could_not_hear_each_other_become_one(network: Network, machines: Machines) -> None:
    first, second = machines
    a, b = network.peer("a", first.prefix), network.peer("b", second.prefix)
    first.run("ip", "link", "set", "cable", "down")
    for peer in (a, b):
        peer.start(*AUTO, host="0.0.0.0")
        assert joined_first(peer)
    first.run("ip", "link", "set", "cable", "up")
    wait_complete([a, b])


@pytest.mark.slow
def test_a_machine_that_is_put_on_a_network_later_finds_it(network: Network, machines: Machines) -> None:
    first, second = machines
    a, b = network.peer("a", first.prefix), network.peer("b", second.prefix)
    first.run("ip", "address", "del", f"{first.address(4)}/24", "dev", "cable")
    first.run("ip", "address", "add", "10.79.0.1/32", "dev", "lo")  # of no use but to start with
    for peer in (a, b):
        peer.start(*AUTO, host="0.0.0.0")
        assert joined_first(peer)
    first.run("ip", "address", "add", f"{first.address(4)}/24", "dev", "cable")
    wait_complete([a, b])
    first.run("ip", "address", "del", "10.79.0.1/32", "dev", "lo")
    first.run("ip", "address", "del", f"{first.address(4)}/24", "dev", "cable")
    assert "no address" in a.wait_event("discovery_failed")["reason"]
    for peer in (a, b):
        assert peer.stop() == 0


def test_a_peer_that_stops_is_no_longer_announced(network: Network, machines: Machines) -> None:
    first, second = machines
    a, b = network.peer("a", first.prefix), network.peer("b", second.prefix)
    a.start(*AUTO, host="::")
    assert a.stop() == 0
    b.start(*AUTO, host="::")
    assert joined_first(b)
    assert b.events("discovered") == []


def test_who_is_found_need_not_answer(network: Network, machines: Machines) -> None:
    """As a machine that sleeps, for which a proxy speaks, or one whose firewall lets only mDNS through."""
    first, second = machines
    a, b = network.peer("a", first.prefix), network.peer("b", second.prefix)
    a.start(*AUTO, "--advertise", "10.77.0.99:8000", host="::")
    b.start(*AUTO, host="::")
    assert joined_first(b)
    b.process.wait_output("10.77.0.99:8000; check")


def test_named_and_found_peers_go_together(network: Network, machines: Machines) -> None:
    first, second = machines
    a = network.peer(prefix=first.prefix)
    a.start(host="::")
    b = start_later(network, second, "--boot", f"auto,{first.address(4)}:{a.port}")
    c = start_later(network, first, "--boot", "auto", "--boot", f"{first.address(4)}:1")
    wait_complete([a, b, c])


def test_on_loopback_peers_of_this_machine_find_each_other_and_no_others(
    network: Network, machines: Machines
) -> None:
    here, there = machines
    a, b, elsewhere, wide = peers = [
        network.peer(name, machine.prefix)
        for name, machine in (("a", here), ("b", here), ("elsewhere", there), ("wide", here))
    ]
    for peer in peers:
        peer.launch(*AUTO, host="::" if peer is wide else "127.0.0.1")
    for peer in peers:
        peer.wait_up()
    wait_complete([a, b])
    wait_complete([elsewhere])
    wait_complete([wide])


def test_a_peer_that_still_looks_for_others_can_be_stopped(network: Network, machines: Machines) -> None:
    peer = network.peer(prefix=machines[0].prefix)
    process = peer.launch(*AUTO, host="::")
    process.wait_output("listens on")
    assert peer.stop() == 0
    assert peer.boot_done() is None


def test_what_anybody_announces_does_no_harm(
    network: Network, machines: Machines, processes: Processes
) -> None:
    first, second = machines
    liar = processes.start(
        "liar", [*second.prefix, sys.executable, "-m", "tests.rpc.lying_announcer", second.address(4)]
    )
    liar.wait_output("lied")
    a, b = network.peer("a", first.prefix), network.peer("b", second.prefix)
    a.launch(*AUTO, host="::")
    b.launch(*AUTO, host="::")
    for peer in (a, b):
        peer.wait_up()
        peer.wait_event("discovery_refused")
    wait_complete([a, b])
    assert liar.alive, liar.output()
    for peer in (a, b):
        assert len(peer.events("discovery_refused")) <= MAX_COMPLAINTS
        assert peer.stop() == 0


# what stops it -------------------------------------------------------------------------------------

KEEPER = """
import socket
kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
kept.bind(("", 5353))
print("kept", flush=True)
import signal
signal.pause()
"""


@pytest.fixture
def deaf(machines: Machines, processes: Processes) -> Machine:
    """A machine on which another program keeps the port of multicast DNS to itself."""
    keeper = processes.start("keeper", [*machines[0].prefix, sys.executable, "-c", KEEPER])
    keeper.wait_output("kept")
    return machines[0]


def test_without_the_port_of_multicast_dns_it_says_so(network: Network, deaf: Machine) -> None:
    status, line = refusal(network.peer(prefix=deaf.prefix), *AUTO)
    assert status == 6
    assert "5353" in line
    assert "--boot HOST:PORT" in line


def test_without_it_the_peers_that_are_named_do(network: Network, deaf: Machine) -> None:
    a, b = network.peer("a", deaf.prefix), network.peer("b", deaf.prefix)
    a.start(host="::")
    b.start(*AUTO, "--boot", f"{deaf.address(4)}:{a.port}", host="::")
    wait_complete([a, b])
    assert "5353" in b.wait_event("discovery_failed")["reason"]


@pytest.mark.parametrize("host", ["::", "0.0.0.0"])
def test_without_a_network_it_says_so(network: Network, host: str) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a machine of its own needs root, and util-linux")
    status, line = refusal(network.peer(prefix=["unshare", "--net", "--"]), *AUTO, host=host)
    assert status == 6
    assert "no address on a network" in line


def test_auto_is_a_word_and_no_name_of_a_host(tmp_path: Path) -> None:
    said = run_command("serve", "--port", "0", "--state", tmp_path / "state", "--boot", "automatic")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)


def test_without_auto_the_library_is_not_even_loaded() -> None:
    program = "import p2pfl_net.runtime.supervisor, sys; sys.exit('zeroconf' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
