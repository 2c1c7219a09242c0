"""Hypothesis strategies for everything the core's messages carry."""

from __future__ import annotations

from hypothesis import strategies as st

from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import MAX_INCARNATION, Record, Status

PEERS = [PeerId(f"{number:064x}") for number in range(4)]

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
peer_ids = digests.map(PeerId)
ips = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(lambda ip: getattr(ip, "ipv4_mapped", None) or ip)
hosts = ips.filter(lambda ip: not ip.is_unspecified and not ip.is_multicast).map(str)
addresses = st.builds(Address, hosts, st.integers(1, 65535))
few_addresses = st.lists(addresses, max_size=8, unique=True).map(tuple)
incarnations = st.integers(0, MAX_INCARNATION)
statuses = st.sampled_from(Status)


@st.composite
def records(
    draw: st.DrawFn,
    ids: st.SearchStrategy[PeerId] = peer_ids,
    incarnations: st.SearchStrategy[int] = incarnations,
    statuses: st.SearchStrategy[Status] = statuses,
    addresses: st.SearchStrategy[tuple[Address, ...]] = few_addresses,
) -> Record:
    task = draw(st.none() | digests.map(TaskDigest))
    published = task is not None and draw(st.booleans())
    return Record(draw(ids), draw(incarnations), draw(statuses), draw(addresses), task, published)


@st.composite
def rumours(draw: st.DrawFn) -> Record:
    """Records about few peers in few incarnations; who lives has an address, as rumours always have."""
    few = st.lists(st.integers(1, 3), max_size=3, unique=True)
    status = draw(st.sampled_from(Status))
    ports = draw(few if status in (Status.DEAD, Status.LEFT) else few.filter(bool))
    record = draw(
        records(
            ids=st.sampled_from(PEERS),
            incarnations=st.integers(0, 3),
            statuses=st.just(status),
            addresses=st.just(tuple(Address("10.0.0.1", port) for port in ports)),
        )
    )
    return Record(record.peer_id, record.incarnation, status, record.addresses)
