"""What is believed of a service that somebody announces on the LAN."""

from __future__ import annotations

import ipaddress
import socket

import pytest
import zeroconf
from hypothesis import example, given
from hypothesis import strategies as st

from p2pfl_net.core.ids import Address, PeerId, is_loopback
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.wire.announcement import (
    MAX_ADDRESSES,
    MAX_BOOT_ADDRESSES,
    SERVICE,
    Announcement,
    boot_order,
    is_name,
    nearest_first,
    parse_announcement,
)

ME = PeerId("0123456789abcdef" * 4)
NAME = f"{ME[:16]}.{SERVICE}"
GOOD = {b"id": ME.encode(), b"protocol": b"2-2"}

peer_ids = st.text("0123456789abcdef", min_size=64, max_size=64).map(PeerId)
ports = st.integers(1, 65535)
literals = st.ip_addresses().map(str) | st.sampled_from(
    [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "::",
        "224.0.0.251",
        "ff02::fb",
        "fe80::1",
        "fe80::1%2",
        "::ffff:10.0.0.1",
    ]
)
dialable = st.ip_addresses().filter(
    lambda a: (
        not (
            a.is_multicast
            or a.is_unspecified
            or a.is_loopback
            or a.is_link_local
            or getattr(a, "ipv4_mapped", None)
        )
    )
)


def carried(announcement: Announcement) -> dict[bytes, bytes | None]:
    """The properties as they come out of a TXT record."""
    info = zeroconf.ServiceInfo(SERVICE, announcement.name, port=1, properties=announcement.properties)
    heard = zeroconf.ServiceInfo(SERVICE, announcement.name, port=1, properties=info.text)
    return heard.properties


def understood(
    name: str,
    properties: dict[bytes, bytes | None],
    port: int | None,
    hosts: list[str],
    *,
    over_loopback: bool,
) -> Announcement | str:
    """What is heard, or why nothing is."""
    try:
        return parse_announcement(name, properties, port, hosts, over_loopback=over_loopback)
    except MalformedMessage as error:
        return str(error)


@given(peer_ids, ports, st.sets(dialable, min_size=1, max_size=MAX_ADDRESSES))
def test_what_a_peer_announces_is_understood(
    peer_id: PeerId, port: int, hosts: set[ipaddress.IPv4Address | ipaddress.IPv6Address]
) -> None:
    said = Announcement(peer_id, tuple(Address(str(host), port) for host in hosts))
    assert is_name(said.name)
    heard = parse_announcement(
        said.name, carried(said), port, [address.host for address in said.addresses], over_loopback=False
    )
    assert heard.peer_id == peer_id
    assert set(heard.addresses) == set(said.addresses)
    assert [":" in address.host for address in heard.addresses] == sorted(
        ":" in address.host for address in heard.addresses
    )


@given(
    st.just(NAME) | st.text(),
    st.dictionaries(
        st.sampled_from([b"id", b"protocol", b"other"]),
        st.none() | st.binary(max_size=80) | st.sampled_from([ME.encode(), b"2-2", b"0-9", b"9-1"]),
    )
    | st.just(GOOD),
    st.none() | st.integers(-1, 70000),
    st.lists(literals | st.text(max_size=70), max_size=80),
    st.booleans(),
)
@example(NAME, GOOD, 8000, ["10.0.0.1", "127.0.0.1", "fe80::1", "nonsense"], False)
def test_whatever_is_announced_is_refused_or_can_be_dialled(
    name: str,
    properties: dict[bytes, bytes | None],
    port: int | None,
    hosts: list[str],
    over_loopback: bool,
) -> None:
    heard = understood(name, properties, port, hosts, over_loopback=over_loopback)
    if isinstance(heard, str):
        assert "\n" not in heard
        assert len(heard) < 200
        return
    assert properties[b"id"] == heard.peer_id.encode()
    assert name.startswith(heard.peer_id[:16])
    assert heard.addresses
    for address in heard.addresses:
        literal = ipaddress.ip_address(address.host)
        assert str(literal) == address.host
        assert 1 <= address.port <= 65535
        assert "%" not in address.host
        assert not literal.is_multicast
        assert not literal.is_unspecified
        assert not (literal.version == 6 and literal.is_link_local)
        assert is_loopback(address.host) == over_loopback


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({b"id": b"f" * 64}, "not that of the name"),
        ({b"id": ME.upper().encode()}, "no peer id"),
        ({b"id": None}, "no peer id"),
        ({b"protocol": None}, "no protocol"),
        ({b"protocol": b"1"}, "no protocol"),
        ({b"protocol": "١-١".encode()}, "no protocol"),
        ({b"protocol": b"7-9"}, "install the same version"),
    ],
)
def test_a_service_that_is_no_peer_of_ours_is_refused(changed: dict[bytes, bytes | None], text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        parse_announcement(NAME, {**GOOD, **changed}, 8000, ["10.0.0.1"], over_loopback=False)


@given(st.text() | st.from_regex(r"[0-9a-fA-F]{15,17}\._p2pfl\._tcp\.local\.?", fullmatch=True))
@example(NAME)
@example(NAME + "\n")
@example(f"a.{NAME}")
def test_only_names_of_peers_are_looked_up(name: str) -> None:
    if is_name(name):
        assert name.removesuffix(SERVICE)[:-1].isalnum()
        assert len(name) == len(NAME)
        zeroconf.ServiceInfo(SERVICE, name)  # takes it


def test_the_addresses_on_our_own_networks_come_first() -> None:
    hosts = ["100.64.0.7", "172.17.0.1", "192.168.1.7", "2001:db8::7", "fd77::7"]
    peer = Announcement(ME, tuple(Address(host, 8000) for host in hosts))
    networks = tuple(ipaddress.ip_network(network) for network in ("192.168.1.0/24", "fd77::/64"))
    nearest = nearest_first(peer, networks).addresses
    assert [address.host for address in nearest] == [
        *("192.168.1.7", "fd77::7"),
        *("100.64.0.7", "172.17.0.1", "2001:db8::7"),
    ]


@given(st.lists(st.tuples(peer_ids, st.lists(ports, min_size=1, max_size=20, unique=True)), max_size=20))
def test_everybodys_best_address_is_asked_first(peers: list[tuple[PeerId, list[int]]]) -> None:
    announced = [
        nearest_first(Announcement(peer_id, tuple(Address("10.0.0.1", port) for port in listed)), ())
        for peer_id, listed in peers
    ]
    order = boot_order(announced)
    assert len(order) == len(set(order)) <= MAX_BOOT_ADDRESSES
    best = list(dict.fromkeys(peer.addresses[0] for peer in announced))
    assert list(order[: len(best)]) == best[:MAX_BOOT_ADDRESSES]
    assert set(order) <= {address for peer in announced for address in peer.addresses}


def test_the_service_can_be_registered() -> None:
    """Its name and type keep the rules of RFC 6763, which the library checks."""
    said = Announcement(ME, (Address("10.0.0.1", 8000),))
    info = zeroconf.ServiceInfo(
        SERVICE, said.name, port=8000, properties=said.properties, addresses=[socket.inet_aton("10.0.0.1")]
    )
    assert info.get_name() == said.label
