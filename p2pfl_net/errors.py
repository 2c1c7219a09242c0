"""Everything that can go wrong in the daemon, and the exit code that tells it.

    NetError                  one line: what is wrong and what to do
    ├── UsageError        2   an option, or options that do not go together
    ├── BootFailed        4   no boot peer answered in time
    ├── PortUnavailable   5   the port is taken or may not be bound
    ├── DiscoveryFailed   6   multicast DNS does not work here (`--boot auto`)
    ├── KeyUnusable       7   the peer's key is damaged
    ├── FetchError        8   a model could not be fetched (`p2pfl-net get`)
    └── RequestFailed     8   a peer did not take a request (`p2pfl-net trust request`)

    RemoteError               what a peer sent or did: counted, dropped, never a crash
    ├── MalformedMessage      it breaks the protocol
    ├── MalformedModel        size, digest or header of a transfer are not what was announced
    ├── Lied                  it signed two models under one version
    └── PeerFailed            unreachable, too busy, gone in mid-stream

State-directory errors (exit 3) are `p2pfl_state.errors.StateError`.
"""

from __future__ import annotations

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.messages import Equivocation


class NetError(Exception):
    """A mistake of whoever started us. The text is one line with the remedy."""

    exit_code = 1


class UsageError(NetError):
    """An option is wrong, or two do not go together."""

    exit_code = 2


class BootFailed(NetError):
    """No boot peer answered in time."""

    exit_code = 4


class PortUnavailable(NetError):
    """The port is taken or may not be bound."""

    exit_code = 5


class DiscoveryFailed(NetError):
    """Peers of the LAN cannot be found: no network, or no multicast DNS on it."""

    exit_code = 6


class KeyUnusable(NetError):
    """The key file is damaged or of another kind; it is never replaced silently."""

    exit_code = 7


class FetchError(NetError):
    """A model could not be fetched."""

    exit_code = 8


class RequestFailed(NetError):
    """A peer cannot be asked for trust, or refuses."""

    exit_code = 8


class RemoteError(Exception):
    """Something that came from the network is wrong. The text is one line."""

    kind = FailureKind.INVALID


class MalformedMessage(RemoteError):
    """A message that breaks the protocol."""


class MalformedModel(RemoteError):
    """A transfer whose size, digest or header is not what was announced."""


class Lied(RemoteError):
    """A peer that has signed two models under one version."""

    def __init__(self, proof: Equivocation) -> None:
        super().__init__(f"it signed two models as its version {proof.version}")
        self.proof = proof


class PeerFailed(RemoteError):
    """A peer that did not do what was asked."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
