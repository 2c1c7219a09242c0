"""One daemon from start to stop: lock, key, server, core, signals. The only broad `except` is here."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType

from p2pfl_state import atomic, home, lock, markers
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Manifest

from p2pfl_net.config import ServeConfig
from p2pfl_net.core.events import InterfacesChanged, ModelPublished, Stop
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import Equivocation, Record
from p2pfl_net.core.node import Node, PeerList
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.core.twins import CONFLICT_EVENT
from p2pfl_net.errors import BootFailed, PeerFailed, UsageError
from p2pfl_net.rpc.client import MembershipClient, resolve
from p2pfl_net.rpc.connections import Credentials
from p2pfl_net.rpc.fetching import ModelClient
from p2pfl_net.rpc.keys import Identity, check_signature
from p2pfl_net.rpc.ledger import Ledger
from p2pfl_net.rpc.rotations import FormerIds
from p2pfl_net.rpc.server import Server
from p2pfl_net.runtime import identity, rotations
from p2pfl_net.runtime.booting import Booting
from p2pfl_net.runtime.descriptors import connections_with_room
from p2pfl_net.runtime.driver import Driver
from p2pfl_net.runtime.evicted import EvictedFile
from p2pfl_net.runtime.interfaces import InterfaceWatch, listening_hosts
from p2pfl_net.runtime.known_peers import KnownPeers
from p2pfl_net.runtime.outgoing import Outgoing
from p2pfl_net.runtime.published import PublishedModel
from p2pfl_net.runtime.rounds import RoundFiles
from p2pfl_net.runtime.statedir import (
    EventLog,
    TrainerWatch,
    first_incarnation,
    peers_value,
    remembered_peers,
)
from p2pfl_net.runtime.trust import REQUEST_EVENT, TrustKeeper
from p2pfl_net.runtime.versions import Signer, VersionLog
from p2pfl_net.wire import records
from p2pfl_net.wire.records import Opener

REQUEST_QUIET_S = 60.0
"""Whoever reads the terminal is told of requests at most this often."""


class Daemon:
    """The daemon around the core: it owns the state directory's daemon side."""

    def __init__(self, config: ServeConfig, say: Callable[[str], None]) -> None:
        """`say` prints one line for the person who started it."""
        self._config = config
        self._say = say
        self._state = StateDir(config.state)
        self._instance = markers.new_instance()
        self._model_version = 0
        self._asked_quiet_until = 0.0
        self._former_ids: tuple[FormerIds, ...] = ()

    def serve(self) -> None:
        """Runs until a signal. Raises `NetError` or `StateError` for what stops it otherwise."""
        home.prepare(self._state)
        process_lock = lock.ProcessLock(self._state.daemon_lock)
        if not lock.is_held(self._state.daemon_lock):
            # A killed daemon's marker would count again from the moment that we hold the lock.
            atomic.remove(self._state.boot_done)
        process_lock.acquire()
        try:
            atomic.remove(self._state.boot_done)
            home.claim(self._state)
            own = identity.load_or_create(self._state.key)
            own = rotations.with_former(own, self._state.rotations)
            remembered = remembered_peers(self._state)
            known_peers = KnownPeers(self._state.known_peers, self._config.boot, remembered, self.note)
            self._evicted = EvictedFile(self._state)
            self._trust = TrustKeeper(
                self._state,
                own.peer_id,
                approved_only=self._config.approved_only,
                evicted=self._evicted.peer_ids,
                shown=lambda: [shown for source in self._former_ids for shown in source.all()],
            )
            self._versions = VersionLog(self._state)
            signer = Signer(self._state, own, self._versions)
            self._published = PublishedModel(self._state, signer)
            self._log = EventLog(self._state, time.time)
            try:
                if signer.left_out is not None:
                    self.note("restored", {"next_version": signer.left_out.version + 1})
                self._run(own, known_peers)
            finally:
                atomic.remove(self._state.boot_done)
                self._versions.close()
                self._log.close()
        finally:
            process_lock.release()

    def _run(self, own: Identity, known_peers: KnownPeers) -> None:
        config, me = self._config, own.peer_id
        credentials = Credentials(own, config.network_key)
        models = ModelClient(credentials)
        opener = Opener(check_signature)
        calls = MembershipClient(credentials, known_peers, opener)
        ledger = Ledger(self._trust, lambda upload: outgoing.served(upload))
        server = Server(
            own,
            lambda message, host: driver.exchange(message, host),
            self._published,
            opener,
            self._versions.get,
            ledger,
            config.network_key,
            replace(config.limits, max_connections=connections_with_room(config.limits.max_connections)),
            lambda event, fields: outgoing.tell(event, fields),
        )
        self._former_ids = (credentials.former_ids, server.former_ids)
        for former_ids in self._former_ids:
            former_ids.on_news = self._trust.follow
        port = server.bind(config.host, config.port)
        advertise = None if config.advertise is None else _resolved(config.advertise)
        hosts = listening_hosts(config.host)
        reach = Reachability(port, hosts, advertise, config.params.max_addresses)
        seed = random.Random(secrets.randbits(128))
        incarnation = first_incarnation(self._state, time.time())
        node = Node(me, reach, incarnation, config.params, seed, config.tags, partial(_sealed, own))
        node.membership.evictions.restore(self._evicted.proofs)
        rounds = RoundFiles(self._state, models, config.max_model_bytes, self._versions)
        driver = Driver(node, calls, rounds, self)
        outgoing = Outgoing(driver, ledger, self.note)
        self._trust.open(outgoing)
        self._booting = Booting(config, tuple(known_peers.remembered), driver, self.note)
        self._booting.open(me, hosts, port, advertise)
        self._server = server
        self._interfaces = InterfaceWatch(config.host, hosts, lambda found: self._moved(driver, found))
        self._watch = TrainerWatch(
            self._state,
            self._published,
            on_model=lambda manifest: self._model_changed(driver, outgoing, manifest),
            on_request=driver.post_request,
            on_damage=lambda reason: outgoing.tell("error", {"reason": reason}),
            others=(self._trust.look,),
        )
        with stopping_on_signals(lambda: driver.post(Stop())):
            try:
                self._start(me, port)
                boot_failure = driver.run()
            except Exception as error:
                self.note("crashed", {"reason": f"{type(error).__name__}: {error}"})
                raise
            finally:
                atomic.remove(self._state.boot_done)
                self._interfaces.close()  # before what it moves
                self._booting.close()
                self._watch.close()
                driver.close()
                server.stop(config.drain_s)
                calls.close()
                models.close()
                self._published.close()
        if boot_failure is not None:
            self.note("boot_failed", {"reason": boot_failure})
            boots = ", ".join(str(address) for address in config.boot)
            raise BootFailed(
                f"no boot peer let this one in within {config.boot_timeout_s:g} s ({boot_failure}): mend "
                f"what that says, or check that {boots} runs and is reachable; without --boot this is the "
                "first peer of another network"
            )
        self.note("stopped", {})

    def _start(self, me: PeerId, port: int) -> None:
        config = self._config
        self._server.start()
        is_private = config.network_key is not None
        network = "private network" if is_private else "open network (--network-key makes it private)"
        if config.approved_only:
            network += ", models to and from approved peers only (p2pfl-net trust)"
        where = f"{config.host} port {port}, state {self._state.root}"
        self._say(f"peer {me[:16]} listens on {where}, {network}")
        started = {"peer": me, "port": port, "pid": os.getpid(), "instance": self._instance}
        trust = "approve" if config.approved_only else "open"
        self.note("started", {**started, "private": is_private, "trust": trust})
        self._booting.start()
        self._interfaces.start()

    def _moved(self, driver: Driver, hosts: tuple[str, ...]) -> None:
        driver.post(InterfacesChanged(hosts))
        self._booting.move(hosts)

    def _model_changed(self, driver: Driver, outgoing: Outgoing, manifest: Manifest | None) -> None:
        if self._published.is_withdrawn:
            outgoing.withdrawn()
        task = None if manifest is None else TaskDigest(manifest.task)
        self._model_version = 0 if manifest is None else manifest.version
        driver.post(ModelPublished(task, self._model_version))

    # what the driver asks for ----------------------------------------------------------------------

    def joined(self, peers: PeerList, *, first: bool) -> None:
        """The network is up: the list first, then the marker, then whoever waits for it."""
        self.write_peers(peers)
        address = str(peers.address)
        known = len(peers.peers)
        self.note("joined", {"first": first, "address": address, "peers": known})
        markers.write_boot_done(
            self._state, markers.BootDone(self._instance, peers.me.peer_id, address, known)
        )
        self._server.say_serving()
        self._watch.start()
        self._say("first peer of a new network" if first else f"joined, {known} other peers known")
        if first and self._booting.found:
            found = ", ".join(str(address) for address in self._booting.found)
            self._say(f"found on the LAN, but no answer yet: {found}; check that TCP gets through to it")

    def write_peers(self, peers: PeerList) -> None:
        offset_s = (
            time.time() - time.monotonic()
        )  # anew each time: only one of them stands still in a suspend
        value = peers_value(peers, self._model_version, lambda at: at + offset_s)
        atomic.write_json(self._state.peers, value, durable=False)

    def write_answer(self, answer: markers.AggregateAnswer) -> None:
        markers.write_answer(self._state, answer)

    def evict(self, proof: Equivocation, forgotten: PeerId | None) -> None:
        self._evicted.add(proof, forgotten)
        self._trust.evict(self._evicted.peer_ids)

    def note(self, event: str, fields: dict[str, object]) -> None:
        self._log.append(event, fields)
        if event == REQUEST_EVENT and time.monotonic() >= self._asked_quiet_until:
            self._asked_quiet_until = time.monotonic() + REQUEST_QUIET_S
            peer = str(fields["peer"])[:16]
            self._say(f"peer {peer} asks to be approved: p2pfl-net trust list --state {self._state.root}")
        if event == CONFLICT_EVENT:
            where = fields["address"] or "an address that is not known"
            self._say(
                f"ANOTHER PROCESS USES THE KEY OF THIS PEER, at {where}: stop one of the two; if it is not "
                f"yours, the key was stolen: stop this peer, p2pfl-net key rotate --state {self._state.root}"
            )


def _sealed(own: Identity, record: Record) -> Record:
    """This peer's record under its signature."""
    return records.seal(record, own.public_key, own.sign, secrets.token_bytes(records.SALT_BYTES))


def _resolved(address: Address) -> Address:
    """`--advertise` as an IP literal, for records carry no names that others would have to look up."""
    try:
        literal, *_ = resolve(address)
    except PeerFailed as error:
        raise UsageError(f"--advertise {address}: {error}; give an IP address") from None
    if literal.is_loopback and not address.is_loopback:
        raise UsageError(
            f"--advertise {address}: the name means {literal.host} on this machine, which no other reaches: "
            "give its IP address"
        )
    return literal


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`; a second one ends the process at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
