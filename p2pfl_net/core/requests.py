"""Our own requests under way: each is answered or fails once, and its purpose says what that means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from p2pfl_net.core.events import Output, RequestId, Send
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Request


class Purpose(Enum):
    """Why a request was sent."""

    JOIN = 1
    PROBE = 2
    GOSSIP = 3
    DIAL_BACK = 4
    GOODBYE = 5


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for its answer."""

    purpose: Purpose
    address: Address
    peer_id: PeerId | None = None
    untried: tuple[Address, ...] = ()
    """Further addresses of the same peer, for a probe."""


class Requests:
    """Numbers requests and remembers those under way."""

    def __init__(self, out: list[Output]) -> None:
        """`out` receives each `Send`; whoever owns it hands them on."""
        self._out = out
        self._pending: dict[RequestId, Pending] = {}
        self._last = 0

    def send(self, pending: Pending, message: Request, timeout_s: float) -> None:
        self._last += 1
        request = RequestId(self._last)
        self._pending[request] = pending
        self._out.append(Send(request, pending.address, message, timeout_s))

    def pop(self, request: RequestId) -> Pending | None:
        """What the request was for; None when it is not under way."""
        return self._pending.pop(request, None)

    def count(self, purpose: Purpose) -> int:
        """How many requests of this purpose are under way."""
        return sum(pending.purpose is purpose for pending in self._pending.values())
