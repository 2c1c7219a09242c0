"""All that goes into the core and comes out of it.

    what happens ──► handle(event, now) ──► what to do

Inputs: `Start`, `Tick`, `Received`, `Answered`, `Failed`, `Discovered`, `InterfacesChanged`,
`ModelPublished`, `TrustChanged`, `Proved`, `Ask`, `FetchProgressed`, `FetchFinished`, `FetchFailed`, `Stop`.
Outputs: `Send`, `Reply`, `Refuse`, `Fetch`, `CancelFetch`, `CollectionDone`, `Joined`, `BootFailed`,
`Evicted`, `PeersChanged`, `Note`, `Stopped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NewType

from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import Equivocation, Request, Response
from p2pfl_net.core.trust import Trust

RequestId = NewType("RequestId", int)
"""A request of ours that somebody will answer, or not."""
CallId = NewType("CallId", int)
"""A request of somebody else's that waits for our reply."""
FetchId = NewType("FetchId", int)


class FailureKind(IntEnum):
    """Why something asked of a peer did not come about, as far as decisions depend on it."""

    UNREACHABLE = 1
    """No connection, no answer in time, or a reset."""
    WRONG_PEER = 2
    """Somebody else lives at that address."""
    INCOMPATIBLE = 3
    """Not a p2pfl peer, or one whose protocol version we do not speak."""
    BUSY = 4
    """The peer is there and asks to be tried later."""
    INVALID = 5
    """The peer sent what it must not: counted against it."""
    ABSENT = 6
    """The peer has no such model."""
    LOCAL = 7
    """Our own trouble, such as a full disk."""
    REFUSED = 8
    """Unreachable, and its machine says so itself: nobody listens there."""
    UNPROVED = 9
    """The caller has not shown who it is, or not in a way that still counts."""
    FORBIDDEN = 10
    """The peer serves those whom its operator trusts, and the caller is none of them."""

    @property
    def is_unreachable(self) -> bool:
        return self in (FailureKind.UNREACHABLE, FailureKind.REFUSED)


# inputs --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """The daemon listens; join through `boot`, or be the first peer."""

    boot: tuple[Address, ...]
    """One of them must answer within `boot_timeout_s`, unless they are this peer itself."""
    boot_timeout_s: float
    remembered: tuple[Address, ...] = ()
    """Peers that an earlier life knew: asked where no boot peer is named, or none answers for a while."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `now` has reached `wakeup()`."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request came in from `host` (an IP literal)."""

    call: CallId
    message: Request
    host: str


@dataclass(frozen=True, slots=True)
class Answered:
    request: RequestId
    message: Response


@dataclass(frozen=True, slots=True)
class Failed:
    request: RequestId
    kind: FailureKind
    reason: str


@dataclass(frozen=True, slots=True)
class Discovered:
    """Peers may live at these addresses: join whom we do not know."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class InterfacesChanged:
    """The IP literals on which this peer listens are others now."""

    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelPublished:
    """The trainer's published model: its task and version. `task` None: there is none any more."""

    task: TaskDigest | None
    version: int


@dataclass(frozen=True, slots=True)
class TrustChanged:
    """From now on models may come from whom this allows, and from nobody else."""

    trust: Trust


@dataclass(frozen=True, slots=True)
class Proved:
    """Two statements of a peer that contradict each other were found, and checked."""

    equivocation: Equivocation


@dataclass(frozen=True, slots=True)
class Ask:
    """Collect `fan_out` models of `task` within `deadline_s`; task None: of any one task."""

    round: int
    fan_out: int
    deadline_s: float
    task: TaskDigest | None
    refused: tuple[tuple[PeerId, str], ...] = ()
    """Peers whose models the trainer refused since its last request, with the reason."""


@dataclass(frozen=True, slots=True)
class FetchProgressed:
    fetch: FetchId
    received_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FetchFinished:
    """The model is verified and under its final name."""

    fetch: FetchId


@dataclass(frozen=True, slots=True)
class FetchFailed:
    fetch: FetchId
    kind: FailureKind
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Say goodbye, then `Stopped`."""


Event = (
    Start
    | Tick
    | Received
    | Answered
    | Failed
    | Discovered
    | InterfacesChanged
    | ModelPublished
    | TrustChanged
    | Proved
    | Ask
    | FetchProgressed
    | FetchFinished
    | FetchFailed
    | Stop
)

# outputs -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Deliver `message` to `address`; `Answered` or `Failed` must follow within `timeout_s`."""

    request: RequestId
    address: Address
    message: Request
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Reply:
    call: CallId
    message: Response


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer a call with an error."""

    call: CallId
    kind: FailureKind
    reason: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch the published model of a peer; `FetchFinished` or `FetchFailed` must follow."""

    fetch: FetchId
    round: int
    peer_id: PeerId
    addresses: tuple[Address, ...]
    task: TaskDigest
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CancelFetch:
    fetch: FetchId


@dataclass(frozen=True, slots=True)
class CollectionDone:
    """The answer to one `Ask`: always given, also with nothing."""

    round: int
    fetched: tuple[FetchId, ...]
    failed: tuple[tuple[PeerId, str], ...]
    candidates: int
    peers: int
    seconds: float
    drawn: int = 0
    """Peers that were asked for their model, also those who were overtaken by others."""
    drawable: int = 0
    """From how many they were drawn at random; all liars may be among these."""
    undecided: int = 0
    """Other live peers that may be of the task: they publish nothing yet, are suspect, refuse us or were put
    aside, or were only heard of."""


@dataclass(frozen=True, slots=True)
class Joined:
    """The network is up for this peer."""

    first: bool
    """Whether this peer is the first of its network."""


@dataclass(frozen=True, slots=True)
class BootFailed:
    """No boot peer answered in time. Nothing further comes."""

    reason: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """This peer is no member any more, also in later lives of ours: to be kept."""

    equivocation: Equivocation
    forgotten: PeerId | None = None
    """Whose proof is no longer kept, for there are too many."""


@dataclass(frozen=True, slots=True)
class PeersChanged:
    """The peer list that people and readers see is no longer what it was."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the event log."""

    event: str
    fields: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stopped:
    """Goodbyes are said, or their time is over."""


Output = (
    Send
    | Reply
    | Refuse
    | Fetch
    | CancelFetch
    | CollectionDone
    | Joined
    | BootFailed
    | Evicted
    | PeersChanged
    | Note
    | Stopped
)
