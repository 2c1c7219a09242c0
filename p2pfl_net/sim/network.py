"""A discrete-event network: peers, calls that take time and fail, clocks, pauses, partitions.

Each call ends as `Answered` or `Failed`, as over gRPC: refused at once where no process listens, at its
time-out where a machine is silent, stopped or cut off.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from p2pfl_net.core.events import (
    Answered,
    BootFailed,
    CallId,
    Event,
    Failed,
    FailureKind,
    Joined,
    Note,
    Output,
    Received,
    Refuse,
    Reply,
    RequestId,
    Send,
    Start,
    Stop,
    Stopped,
    Tick,
)
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Accuse, Accused, Join, JoinReply, Relay, Request, Response
from p2pfl_net.core.node import Node
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.sim.conditions import Conditions, Wires

PORT = 8000
BOOT_TIMEOUT_S = 60.0
"""The daemon's default."""
EPOCH_S = 1000
"""What the clocks show when a run begins."""
MESSAGE_BYTES = 150
"""Of a request or reply without records: the sender's record, ids, framing. An estimate."""
RECORD_BYTES = 90
"""Of one record with one address and a task. An estimate, within a fifth of the wire's encoding."""


@dataclass(eq=False, slots=True)
class SimPeer:
    """One core and what surrounds it."""

    index: int
    node: Node
    address: Address
    rate: float
    """How fast its clock runs."""
    clock: float = 0.0
    """The latest time that it was told."""
    alive: bool = True
    joined: bool = False
    resumes_at: float | None = None
    """Until when the process is stopped; None: it runs."""
    resumed_at: float = 0.0
    """Since when it runs without a stop."""
    island: int = 0
    """Which side of a partition it is on."""
    tick_at: float | None = None
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """What reached a stopped process."""
    sent: int = 0
    """Messages: requests and replies."""
    sent_bytes: int = 0

    @property
    def id(self) -> PeerId:
        return self.node.membership.me.peer_id

    @property
    def runs(self) -> bool:
        return self.alive and self.resumes_at is None


def peer_id_of(index: int) -> PeerId:
    return PeerId(hashlib.sha256(f"peer {index}".encode()).hexdigest())


def address_of(index: int) -> Address:
    number = index + (10 << 24) + 1
    return Address(".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0)), PORT)


class SimNetwork:
    """The clock, the wires and the peers. The same seed gives the same run."""

    def __init__(
        self,
        seed: int,
        conditions: Conditions | None = None,
        params: Params | None = None,
        *,
        observe: Callable[[SimPeer, Output], None] = lambda peer, output: None,
        trace: Callable[[float, int, str, Any], None] | None = None,
    ) -> None:
        """`observe` sees each `Note` and `Joined`; `trace` each event of every peer."""
        self.seed = seed
        self.healed_at = 0.0
        """When a partition last ended."""
        self.handling: Event | None = None
        """What the peer that is observed now was told."""
        self.now = 0.0
        self.params = params or Params()
        self.peers: list[SimPeer] = []
        self.random = Random(seed)
        self._conditions = conditions or Conditions()
        self._wires = Wires(self._conditions, Random(self.random.getrandbits(64)))
        self._observe = observe
        self._trace = trace
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entered = 0
        self._at: dict[Address, SimPeer] = {}
        self._replies: dict[CallId, tuple[SimPeer, Send, SimPeer]] = {}
        self._open: set[tuple[int, RequestId]] = set()
        self._is_split = False

    # peers -----------------------------------------------------------------------------------------

    def add(self, key_of: SimPeer | None = None, *, clock_s: float = 0.0) -> SimPeer:
        """A peer that has not started: a new one, or one with the key of another, which is its next life
        where that is dead, and else its twin. `clock_s`: how far its machine's clock is ahead."""
        index = len(self.peers)
        address = address_of(index) if key_of is None or key_of.alive else key_of.address
        reach = Reachability(PORT, (), address, self.params.max_addresses)
        skew = self._conditions.skew
        rate = 1.0 + skew * self.random.uniform(-1.0, 1.0) if skew else 1.0
        incarnation = max(0, EPOCH_S + int(self.now * rate + clock_s))
        peer_id = peer_id_of(index) if key_of is None else key_of.id
        seed = Random(self.random.getrandbits(64))
        node = Node(peer_id, reach, incarnation, self.params, seed)
        peer = SimPeer(index, node, address, rate)
        self.peers.append(peer)
        self._at[address] = peer
        return peer

    def start(self, peer: SimPeer, boot: Iterable[Address] = ()) -> None:
        self.handle(peer, Start(tuple(boot), BOOT_TIMEOUT_S))

    def kill(self, peer: SimPeer) -> None:
        """The process is gone: its machine refuses connections."""
        peer.alive = False
        peer.waiting.clear()
        if self._at.get(peer.address) is peer:
            del self._at[peer.address]

    def leave(self, peer: SimPeer) -> None:
        """A clean stop."""
        self.handle(peer, Stop())

    def pause(self, peer: SimPeer, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later: what comes meanwhile waits."""
        peer.resumes_at = self.now + seconds
        self.at(peer.resumes_at, self._resume, peer)

    def _resume(self, peer: SimPeer) -> None:
        peer.resumes_at, peer.resumed_at = None, self.now
        waiting, peer.waiting = peer.waiting, []
        for action in waiting:
            action()
        if peer.alive:
            self._plan(peer)

    def split(self, islands: Callable[[SimPeer], int]) -> None:
        """Cuts the network: only peers of the same island reach each other."""
        self._is_split = True
        for peer in self.peers:
            peer.island = islands(peer)

    def heal(self) -> None:
        self._is_split = False
        self.healed_at = self.now

    # running ---------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        self._entered += 1
        heapq.heappush(self._agenda, (time, self._entered, action, arguments))

    def run(self, until: float) -> None:
        """Lets virtual time pass up to `until`."""
        agenda = self._agenda
        while agenda and agenda[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(agenda)
            action(*arguments)
        self.now = until

    def run_until(self, condition: Callable[[], bool], limit_s: float, step_s: float = 0.1) -> float | None:
        """Runs until `condition`, looking every `step_s`; the seconds it took, None past the limit."""
        began = self.now
        while not condition():
            if self.now - began >= limit_s:
                return None
            self.run(self.now + step_s)
        return self.now - began

    def handle(self, peer: SimPeer, event: Event, due: float = 0.0) -> None:
        """Gives an event to a peer that runs; its clock shows at least `due`, whatever rounding says."""
        if not peer.alive:
            return
        peer.clock = max(peer.clock, self.now * peer.rate, due)
        if self._trace is not None:
            self._trace(self.now, peer.index, "in", event)
        outputs = peer.node.handle(event, peer.clock)
        self.handling = event
        for output in outputs:
            if self._trace is not None:
                self._trace(self.now, peer.index, "out", output)
            self._carry_out(peer, output)
        if peer.alive:
            self._plan(peer)

    def _plan(self, peer: SimPeer) -> None:
        due = peer.node.wakeup()
        if due is None:
            return
        due = max(due / peer.rate, self.now)
        if peer.tick_at is None or due < peer.tick_at:
            peer.tick_at = due
            self.at(due, self._tick, peer, due)

    def _tick(self, peer: SimPeer, planned: float) -> None:
        if peer.tick_at != planned:
            return
        peer.tick_at = None
        if not peer.runs:
            return
        due = peer.node.wakeup()
        if due is not None and due <= self.now * peer.rate + 1e-9:
            self.handle(peer, Tick(), due)
        else:
            self._plan(peer)

    def _carry_out(self, peer: SimPeer, output: Output) -> None:
        match output:
            case Send():
                self._send(peer, output)
            case Reply():
                self._reply(output.call, output.message)
            case Refuse():
                self._reply(output.call, output)
            case Note():
                self._observe(peer, output)
            case Joined():
                peer.joined = True
                self._observe(peer, output)
            case Stopped() | BootFailed():
                self.kill(peer)
                self._observe(peer, output)
            case _:
                pass

    # calls -----------------------------------------------------------------------------------------

    def _send(self, caller: SimPeer, send: Send) -> None:
        caller.sent += 1
        self._open.add((caller.index, send.request))
        delay = self._wires.delay()
        target = self._at.get(send.address)
        if delay is None or (target is not None and self._is_cut(caller, target)):
            self._time_out(caller, send, self.now)
            return
        self.at(self.now + delay, self._arrive, caller, send)
        if self._wires.is_doubled():
            self.at(self.now + 2 * delay, self._arrive, caller, send)

    def reaches(self, caller: SimPeer, target: SimPeer) -> bool:
        """Whether calls between the two get through now, in both directions."""
        return not self._is_cut(caller, target) and not self._is_cut(target, caller)

    def _is_cut(self, caller: SimPeer, target: SimPeer) -> bool:
        if self._is_split and caller.island != target.island:
            return True
        return self._wires.is_deaf(caller.index, target.index)

    def _time_out(self, caller: SimPeer, send: Send, sent_at: float) -> None:
        at = max(self.now, sent_at + send.timeout_s / caller.rate)
        failed = Failed(send.request, FailureKind.UNREACHABLE, "no answer in time")
        self.at(at, self._end, caller, send.request, failed)

    def _arrive(self, caller: SimPeer, send: Send) -> None:
        target = self._at.get(send.address)
        if target is None or not target.alive:
            refused = Failed(send.request, FailureKind.REFUSED, "connection refused")
            self._end(caller, send.request, refused)
            return
        caller.sent_bytes += size_of(send.message)
        if target.resumes_at is not None:
            self._time_out(caller, send, self.now)
            target.waiting.append(lambda: self._deliver(caller, send, target))
            return
        self._deliver(caller, send, target)

    def _deliver(self, caller: SimPeer, send: Send, target: SimPeer) -> None:
        self._entered += 1
        call = CallId(self._entered)
        self._replies[call] = (caller, send, target)
        if isinstance(send.message, Relay):  # answered later, if the helper lives that long
            self._time_out(caller, send, self.now)
        self.handle(target, Received(call, send.message, caller.address.host))

    def _reply(self, call: CallId, reply: Response | Refuse) -> None:
        caller, send, target = self._replies.pop(call)
        if (caller.index, send.request) not in self._open:
            return
        target.sent += 1
        target.sent_bytes += MESSAGE_BYTES if isinstance(reply, Refuse) else size_of(reply)
        delay = self._wires.delay()
        if delay is None or (self._is_split and caller.island != target.island):
            self._time_out(caller, send, self.now)
            return
        event: Event = (
            Failed(send.request, reply.kind, reply.reason)
            if isinstance(reply, Refuse)
            else Answered(send.request, reply)
        )
        self.at(self.now + delay, self._end, caller, send.request, event)

    def _end(self, caller: SimPeer, request: RequestId, event: Event) -> None:
        if caller.resumes_at is not None:
            caller.waiting.append(lambda: self._end(caller, request, event))
            return
        if (caller.index, request) in self._open:
            self._open.discard((caller.index, request))
            self.handle(caller, event)


def size_of(message: Request | Response) -> int:
    """Bytes on the wire, estimated."""
    if isinstance(message, Join | JoinReply):
        return MESSAGE_BYTES + RECORD_BYTES * len(message.records)
    if isinstance(message, Relay | Accuse | Accused):
        return MESSAGE_BYTES
    return MESSAGE_BYTES + RECORD_BYTES * len(message.updates)
