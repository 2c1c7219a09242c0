"""A network in memory: joins cores without sockets, on a virtual clock, from one seed.

Machines have addresses, peers listen on machines, and a call goes where its address leads from the
caller's machine: loopback to the same machine, a LAN address to its owner, a bridge only at home. Calls
take time, get lost, meet dead or frozen peers; each ends as `Answered` or `Failed` within its timeout.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar, assert_never

from p2pfl_net.core.events import (
    Answered,
    BootFailed,
    CallId,
    CancelFetch,
    CollectionDone,
    Event,
    Evicted,
    Failed,
    FailureKind,
    Fetch,
    FetchFailed,
    FetchFinished,
    FetchId,
    FetchProgressed,
    Joined,
    Note,
    Output,
    PeersChanged,
    Received,
    Refuse,
    Reply,
    Send,
    Start,
    Stop,
    Stopped,
    Tick,
)
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Ack, Join, JoinReply, Ping, Relay, RelayReply, Request, Response
from p2pfl_net.core.node import Node
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability

M = TypeVar("M", Request, Response, Join, Ping, Relay, JoinReply, Ack, RelayReply)

LOOPBACK = "127.0.0.1"
STEP_S = 0.05
"""How exactly `run_until` tells when its condition came true."""


@dataclass(eq=False)
class Machine:
    """A host on the network."""

    lan: tuple[str, ...] = ()
    """Addresses that every machine reaches, the one its own calls come from first."""
    bridges: tuple[str, ...] = ()
    """Addresses of its interfaces that mean nothing elsewhere."""
    outside: str | None = None
    """An address that leads here through a port map, and that its calls come from."""
    listeners: dict[int, Peer] = field(default_factory=dict)
    silent: bool = False
    """Unplugged: calls to it time out instead of being refused."""

    @property
    def interfaces(self) -> tuple[str, ...]:
        return (LOOPBACK, *self.bridges, *self.lan)


@dataclass(eq=False)
class Peer:
    """One core with its place in the network. `alive` False: killed, or stopped."""

    name: str
    node: Node
    machine: Machine
    port: int
    alive: bool = True
    tick_at: float | None = None
    frozen: bool = False
    busy: bool = False
    """Its daemon runs, and refuses every call as one whose queue is full."""
    fetch_s: float = 0.05
    """How long a fetch from this peer takes."""
    outputs: list[tuple[float, Output]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """Messages by type: join, ping, news (pings that carried updates)."""
    dialled: Counter[Address] = field(default_factory=Counter)

    @property
    def id(self) -> PeerId:
        return self.node.membership.me.peer_id

    @property
    def view(self) -> set[PeerId]:
        """The live peers that it lists."""
        return set(self.node.membership.table.live.members())

    def of(self, kind: type[Output]) -> list[Output]:
        return [output for _, output in self.outputs if isinstance(output, kind)]

    @property
    def joined(self) -> bool:
        return any(isinstance(output, Joined) for _, output in self.outputs)


def peer_id(name: str) -> PeerId:
    return PeerId(hashlib.sha256(name.encode()).hexdigest())


class Network:
    """The clock, the wires and the peers. The same seed gives the same run."""

    def __init__(
        self,
        seed: int,
        *,
        params: Params | None = None,
        latency_s: tuple[float, float] = (0.0005, 0.01),
        loss: float = 0.0,
        through_wire: bool = False,
    ) -> None:
        self.seed = seed
        self.now = 0.0
        self.params = params or Params()
        self.loss = loss
        self.peers: list[Peer] = []
        self._latency_s = latency_s
        self._random = Random(seed)
        self._through_wire = through_wire
        self._machines: list[Machine] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._entered = 0
        self._replies: dict[CallId, Callable[[Response | Refuse], None]] = {}
        self._fetching: set[tuple[str, FetchId]] = set()

    # building --------------------------------------------------------------------------------------

    def machine(self, *lan: str, bridges: tuple[str, ...] = (), outside: str | None = None) -> Machine:
        machine = Machine(lan, bridges, outside)
        self._machines.append(machine)
        return machine

    def peer(
        self,
        name: str,
        machine: Machine | None = None,
        port: int = 8000,
        *,
        incarnation: int = 1000,
        hosts: tuple[str, ...] | None = None,
    ) -> Peer:
        """A peer that listens, by default on all interfaces of a machine of its own."""
        if machine is None:
            number = len(self._machines)
            machine = self.machine(f"10.0.{number // 200}.{number % 200 + 1}")
        assert port not in machine.listeners, "port taken"
        reachability = Reachability(port, hosts or machine.interfaces, None, self.params.max_addresses)
        seed = Random(self._random.getrandbits(64))
        node = Node(peer_id(name), reachability, incarnation, self.params, seed)
        peer = Peer(name, node, machine, port)
        machine.listeners[port] = peer
        self.peers.append(peer)
        return peer

    def start(
        self, peer: Peer, *boot: Address, timeout_s: float = 30.0, remembered: tuple[Address, ...] = ()
    ) -> Peer:
        self.handle(peer, Start(boot, timeout_s, remembered))
        return peer

    def address(self, peer: Peer) -> Address:
        """Where other machines reach `peer`; loopback when they do not."""
        host = peer.machine.lan[0] if peer.machine.lan else LOOPBACK
        return Address(host, peer.port)

    def chain(self, count: int, apart_s: float = 0.2) -> list[Peer]:
        """`count` peers on machines of their own, each booted to the one before."""
        chain: list[Peer] = []
        for number in range(count):
            peer = self.peer(f"peer {number}")
            self.start(peer, *([self.address(chain[-1])] if chain else []))
            chain.append(peer)
            self.run(apart_s)
        return chain

    # what happens to peers -------------------------------------------------------------------------

    def kill(self, peer: Peer) -> None:
        """The process is gone: its port refuses."""
        peer.alive = False
        del peer.machine.listeners[peer.port]

    def stop(self, peer: Peer) -> None:
        """A clean stop; the peer is gone once it says `Stopped`."""
        self.handle(peer, Stop())

    def call(self, peer: Peer, message: Request, host: str) -> Response | Refuse:
        """A stranger at `host` calls `peer`; what it answers at once."""
        answers: list[Response | Refuse] = []
        self.deliver(peer, message, host, answers.append)
        (answer,) = answers
        return answer

    # running ---------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Lets virtual time pass."""
        self.run_until(lambda: False, seconds)

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> float | None:
        """Runs until `condition`, looking every `STEP_S`; the seconds it took, None past the limit."""
        began, end = self.now, self.now + limit_s
        while not condition():
            if self.now >= end:
                return None
            step = min(self.now + STEP_S, end)
            while self._agenda and self._agenda[0][0] <= step:
                self.now, _, action = heapq.heappop(self._agenda)
                action()
            self.now = step
        return self.now - began

    def converged(self) -> bool:
        """Whether every living peer lists exactly the other living ones."""
        living = [peer for peer in self.peers if peer.alive]
        ids = {peer.id for peer in living}
        return all(peer.view == ids - {peer.id} for peer in living)

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._entered += 1
        heapq.heappush(self._agenda, (time, self._entered, action))

    def handle(self, peer: Peer, event: Event) -> None:
        if not peer.alive:
            return
        for output in peer.node.handle(event, self.now):
            self._carry_out(peer, output)
        wakeup = peer.node.wakeup()
        if wakeup is not None and peer.alive:
            assert not (isinstance(event, Tick) and wakeup <= self.now), f"{peer.name} spins"
            self._plan_tick(peer, max(wakeup, self.now))

    def _plan_tick(self, peer: Peer, time: float) -> None:
        if peer.tick_at is None or time < peer.tick_at:
            peer.tick_at = time
            self.at(time, lambda: self._tick(peer, time))

    def _tick(self, peer: Peer, planned: float) -> None:
        if peer.tick_at != planned or peer.frozen:
            return
        peer.tick_at = None
        wakeup = peer.node.wakeup()
        if wakeup is None:
            return
        if wakeup <= self.now:
            self.handle(peer, Tick())
        else:
            self._plan_tick(peer, wakeup)

    def _carry_out(self, peer: Peer, output: Output) -> None:
        peer.outputs.append((self.now, output))
        match output:
            case Send():
                self._send(peer, output)
            case Reply():
                self._replies.pop(output.call)(output.message)
            case Refuse():
                self._replies.pop(output.call)(output)
            case Fetch():
                self._fetch(peer, output)
            case CancelFetch():
                self._fetching.discard((peer.name, output.fetch))
            case Stopped() | BootFailed():
                self.kill(peer)
            case Joined() | CollectionDone() | Evicted() | PeersChanged() | Note():
                pass
            case _:
                assert_never(output)

    # calls -----------------------------------------------------------------------------------------

    def _latency(self) -> float:
        return self._random.uniform(*self._latency_s)

    def _send(self, caller: Peer, send: Send) -> None:
        message = send.message
        caller.sent[type(message).__name__.lower()] += 1
        caller.sent["news"] += isinstance(message, Ping) and bool(message.updates)
        caller.dialled[send.address] += 1
        done: list[Event] = []

        def end(event: Event) -> None:
            if not done:
                done.append(event)
                self.handle(caller, event)

        def answer(reply: Response | Refuse) -> None:
            if self._random.random() < self.loss:
                return
            event: Event = (
                Failed(send.request, reply.kind, reply.reason)
                if isinstance(reply, Refuse)
                else Answered(send.request, self._passed(reply))
            )
            self.at(self.now + self._latency(), lambda: end(event))

        def arrive() -> None:
            found = self._route(caller.machine, send.address)
            if found is None:
                end(Failed(send.request, FailureKind.REFUSED, "connection refused"))
                return
            target, host = found
            if target.busy:
                answer(Refuse(CallId(0), FailureKind.BUSY, "this peer is overloaded"))
            elif not target.frozen:
                self.deliver(target, message, host, answer)

        lost = Failed(send.request, FailureKind.UNREACHABLE, f"no answer within {send.timeout_s:.3g} s")
        self.at(self.now + send.timeout_s, lambda: end(lost))
        if self._random.random() >= self.loss and not self._silent(send.address):
            self.at(self.now + self._latency(), arrive)

    def deliver(
        self, target: Peer, message: Request, host: str, answer: Callable[[Response | Refuse], None]
    ) -> None:
        self._entered += 1
        call = CallId(self._entered)
        self._replies[call] = answer
        self.handle(target, Received(call, self._passed(message), host))

    def _passed(self, message: M) -> M:
        return copied(message) if self._through_wire else message

    def _silent(self, address: Address) -> bool:
        return any(m.silent and address.host in (*m.lan, m.outside) for m in self._machines)

    def _route(self, source: Machine, address: Address) -> tuple[Peer, str] | None:
        """Who listens at `address` as seen from `source`, and from where the call comes."""
        if address.is_loopback:
            machine, host = source, LOOPBACK
        elif address.host in source.interfaces:
            machine, host = source, address.host
        else:
            owners = [m for m in self._machines if address.host in m.lan or address.host == m.outside]
            if not owners or (not source.lan and source.outside is None):
                return None
            machine, host = owners[0], source.outside or source.lan[0]
        peer = machine.listeners.get(address.port)
        return None if peer is None else (peer, host)

    # fetches ---------------------------------------------------------------------------------------

    def _fetch(self, peer: Peer, fetch: Fetch) -> None:
        key = (peer.name, fetch.fetch)
        self._fetching.add(key)
        found = [self._route(peer.machine, address) for address in fetch.addresses]
        targets = [entry[0] for entry in found if entry is not None and entry[0].id == fetch.peer_id]

        def end(event: Event) -> None:
            if key in self._fetching:
                if not isinstance(event, FetchProgressed):
                    self._fetching.discard(key)
                self.handle(peer, event)

        if not targets or targets[0].frozen:
            wait_s = fetch.timeout_s if targets else self._latency()
            failed = FetchFailed(fetch.fetch, FailureKind.UNREACHABLE, "unreachable")
            self.at(self.now + wait_s, lambda: end(failed))
            return
        seconds = targets[0].fetch_s
        self.at(self.now + seconds / 2, lambda: end(FetchProgressed(fetch.fetch, 50, 100)))
        self.at(self.now + seconds, lambda: end(FetchFinished(fetch.fetch)))


def copied(message: M) -> M:
    """`message` as another process has it: equal, and not the same."""
    return deepcopy(message)
