"""Finds peers on the LAN, and is found: multicast DNS (RFC 6762) through `zeroconf`, for `--boot auto`.

Imported only then, for it costs 3 MB and a tenth of a second. Everything here runs in one thread with an
asyncio loop of its own, which ends with `close`. Multicast DNS is neither encrypted nor authenticated: what
it brings is checked (`announcement`), bounded, and no more than a hint where a peer may live.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import ifaddr
import zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2pfl_net.core.ids import is_loopback
from p2pfl_net.errors import DiscoveryFailed, MalformedMessage
from p2pfl_net.wire.announcement import (
    SERVICE,
    Announcement,
    Network,
    is_name,
    nearest_first,
    parse_announcement,
)

ALONE_S = 3.0
"""Without an answer for so long, nobody is there. The library asks at 0.1 and 1.1 s, and answers are due
within half a second: time for one of the two to get lost, as multicast on Wi-Fi does."""
GATHER_S = 0.5
"""After the first peer was found: in case it cannot be reached. Answers to one question come within 0.12 s
(RFC 6762, section 6), on an idle machine."""
SETTLE_S = 3.0
"""Whoever is found is told again after this time, or up to twice as long: of peers that start together, some
have joined these and some those. Not at once, for a newcomer that joins by itself is known until then, and
would else be called by its whole network."""
LOOKUPS = 8
"""Services that are asked for at once. A guess: usually the first answer brings all there is to know."""
LOOKUP_MS = 3000
MAX_WAITING = 256
"""Services that wait to be looked up; more are passed over."""
MAX_REMEMBERED = 256
"""Peers whose announcements are remembered, so as to tell news; the oldest are forgotten first. What is
told twice does no harm."""
MAX_COMPLAINTS = 16
"""Refusals that are told in one life: a liar could fill the event log."""
QUESTION = zeroconf.DNSQuestionType.QM
"""To be answered by multicast: an answer to our host alone would reach any one of the peers there, for they
share the port."""
MULTICAST_LOOPBACK = "127.0.0.1"
"""Peers of this machine only meet here, also those that listen on ::1."""


class Finder(Protocol):
    """Who is told, from the thread of the discovery."""

    def gathered(self, peers: tuple[Announcement, ...]) -> None:
        """Once, after a few seconds at most: who was found until then."""

    def discovered(self, peer: Announcement) -> None:
        """Some seconds after a peer was found, or has moved; also of those that were gathered."""

    def refused(self, reason: str) -> None:
        """A service of our type is none that we can use."""

    def discovery_crashed(self, error: Exception) -> None:
        """A fault of this program. Nothing further is found."""


class Discovery:
    """Announces one peer and browses for others."""

    def __init__(self, me: Announcement, hosts: Sequence[str]) -> None:
        """Opens the sockets on the interfaces with the IP literals `hosts`. Raises `DiscoveryFailed`."""
        self._me = me
        self._over_loopback = all(is_loopback(host) for host in hosts)
        self._found: dict[str, Announcement] = {}
        self._first = asyncio.Event()
        self._settling: set[str] = set()
        self._complaints = 0
        self._told: asyncio.Queue[AsyncServiceInfo] = asyncio.Queue(MAX_WAITING)
        self._queue: asyncio.Queue[str] = asyncio.Queue(MAX_WAITING)
        self._queued: set[str] = set()
        self._stopping = asyncio.Event()
        self._runner = asyncio.Runner()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="discovery")
        interfaces = [MULTICAST_LOOPBACK] if self._over_loopback else list(hosts)
        try:
            self._networks = networks_of(hosts)
            self._zeroconf = self._worker.submit(self._runner.run, self._open(interfaces)).result()
        except BaseException as error:
            self._worker.submit(self._runner.close)
            self._worker.shutdown()
            if isinstance(error, OSError):
                raise DiscoveryFailed(
                    f"--boot auto: cannot open UDP port 5353 for multicast DNS ({error.strerror or error}): "
                    "stop the program that keeps it to itself, or name a peer, as --boot HOST:PORT"
                ) from None
            raise

    def start(self, finder: Finder) -> None:
        """Announces the peer, which must listen, and begins to browse."""
        self._finder = finder
        self._worker.submit(self._runner.run, self._browse()).add_done_callback(self._report_crash)

    def close(self) -> None:
        """Withdraws the announcement and ends the thread, within a second."""
        self._runner.get_loop().call_soon_threadsafe(self._stopping.set)
        self._worker.submit(self._runner.run, self._zeroconf.async_close())
        self._worker.submit(self._runner.close)
        self._worker.shutdown()

    def _report_crash(self, done: Future[None]) -> None:
        error = done.exception()
        if isinstance(error, Exception):
            self._finder.discovery_crashed(error)

    # in the thread of the discovery ----------------------------------------------------------------

    async def _open(self, interfaces: list[str]) -> AsyncZeroconf:
        # What a packet makes the library raise is dropped with the packet; it would print a traceback.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        try:
            opened = AsyncZeroconf(interfaces=interfaces)
        except RuntimeError as error:  # an interface that was there is gone
            raise _no_multicast(str(error)) from None
        await opened.zeroconf.async_wait_for_start()
        if not opened.zeroconf.engine.senders:
            await opened.async_close()
            raise _no_multicast(", ".join(interfaces))
        return opened

    async def _browse(self) -> None:
        browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, SERVICE, handlers=[self._service_changed], question_type=QUESTION
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work()) for work in (self._announce, self._gather, self._listen)]
            tasks += [group.create_task(self._look_up()) for _ in range(LOOKUPS)]
            await self._stopping.wait()
            for task in tasks:
                task.cancel()
        await browser.async_cancel()

    async def _announce(self) -> None:
        me = self._me
        service = zeroconf.ServiceInfo(
            SERVICE,
            me.name,
            port=me.addresses[0].port,
            properties=me.properties,
            server=f"p2pfl-{me.label}.local.",  # the host's own name has addresses that are not ours to tell
            parsed_addresses=[address.host for address in me.addresses],
        )
        await (await self._zeroconf.async_register_service(service, cooperating_responders=True))

    async def _gather(self) -> None:
        try:
            async with asyncio.timeout(ALONE_S):
                await self._first.wait()
            await asyncio.sleep(GATHER_S)
        except TimeoutError:
            pass
        self._finder.gathered(tuple(self._found.values()))

    def _service_changed(
        self, *, name: str, state_change: zeroconf.ServiceStateChange, **_others: Any
    ) -> None:
        if not is_name(name) or name == self._me.name:
            return
        if state_change is zeroconf.ServiceStateChange.Removed:
            self._found.pop(name, None)
            return
        service = AsyncServiceInfo(SERVICE, name)
        if service.load_from_cache(self._zeroconf.zeroconf):
            if not self._told.full():
                self._told.put_nowait(service)
        elif name not in self._queued and not self._queue.full():
            self._queued.add(name)
            self._queue.put_nowait(name)

    async def _listen(self) -> None:
        """Takes services that came with all that is asked of them: these never wait for a look-up."""
        while True:
            self._take(await self._told.get())

    async def _look_up(self) -> None:
        while True:
            name = await self._queue.get()
            self._queued.discard(name)
            service = AsyncServiceInfo(SERVICE, name)
            try:
                is_complete = await service.async_request(self._zeroconf.zeroconf, LOOKUP_MS, QUESTION)
            except zeroconf.Error:  # it names a host that cannot be asked for
                continue
            if is_complete:
                self._take(service)

    def _take(self, service: zeroconf.ServiceInfo) -> None:
        try:
            told = parse_announcement(
                service.name,
                service.properties,
                service.port,
                service.parsed_scoped_addresses(),
                over_loopback=self._over_loopback,
            )
        except MalformedMessage as error:
            self._complaints += 1
            if self._complaints <= MAX_COMPLAINTS:
                self._finder.refused(str(error))
            return
        peer = nearest_first(told, self._networks)
        if peer.peer_id == self._me.peer_id or self._found.get(service.name) == peer:
            return
        self._found[service.name] = peer
        if len(self._found) > MAX_REMEMBERED:
            del self._found[next(iter(self._found))]
        self._first.set()
        if service.name not in self._settling and len(self._settling) < MAX_REMEMBERED:
            self._settling.add(service.name)
            delay_s = SETTLE_S * (1 + random.random())
            asyncio.get_running_loop().call_later(delay_s, self._settled, service.name)

    def _settled(self, name: str) -> None:
        self._settling.discard(name)
        if name in self._found:
            self._finder.discovered(self._found[name])


def _no_multicast(what: str) -> DiscoveryFailed:
    return DiscoveryFailed(
        f"--boot auto: no multicast DNS on {what}: connect this machine to a network, or name a peer, as "
        "--boot HOST:PORT"
    )


def networks_of(hosts: Sequence[str]) -> tuple[Network, ...]:
    """The networks of our interfaces with the IP literals `hosts`."""
    networks = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            if host in hosts:
                networks.append(ipaddress.ip_network(f"{host}/{ip.network_prefix}", strict=False))
    return tuple(networks)
