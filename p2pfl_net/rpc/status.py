"""Between gRPC status codes and what the core calls them."""

from __future__ import annotations

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.errors import PeerFailed

_CODES = {
    FailureKind.UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    FailureKind.WRONG_PEER: grpc.StatusCode.FAILED_PRECONDITION,
    FailureKind.INCOMPATIBLE: grpc.StatusCode.INVALID_ARGUMENT,
    FailureKind.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    FailureKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    FailureKind.ABSENT: grpc.StatusCode.NOT_FOUND,
    FailureKind.LOCAL: grpc.StatusCode.INTERNAL,
    FailureKind.REFUSED: grpc.StatusCode.UNAVAILABLE,
    FailureKind.UNPROVED: grpc.StatusCode.UNAUTHENTICATED,
    FailureKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
}

_KINDS = {
    grpc.StatusCode.UNAVAILABLE: FailureKind.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: FailureKind.UNREACHABLE,
    grpc.StatusCode.CANCELLED: FailureKind.UNREACHABLE,
    grpc.StatusCode.FAILED_PRECONDITION: FailureKind.WRONG_PEER,
    grpc.StatusCode.RESOURCE_EXHAUSTED: FailureKind.BUSY,
    grpc.StatusCode.NOT_FOUND: FailureKind.ABSENT,
    grpc.StatusCode.INVALID_ARGUMENT: FailureKind.INCOMPATIBLE,
    grpc.StatusCode.UNAUTHENTICATED: FailureKind.UNPROVED,
    grpc.StatusCode.PERMISSION_DENIED: FailureKind.FORBIDDEN,
}

REFUSED = "connection refused"
OTHER_KEY = "another peer lives there: its key is not the one that was expected"
SILENT = "no answer: something listens there, but says nothing"
NOT_A_PEER = "something answers there, but not a p2pfl peer"
_MAX_REASON = 200


def code_of(kind: FailureKind) -> grpc.StatusCode:
    """The status with which a server refuses for this reason."""
    return _CODES[kind]


def failure_of(error: grpc.RpcError, timeout_s: float) -> PeerFailed:
    """What a failed call means: a code that no p2pfl peer gives means that this is none."""
    assert isinstance(error, grpc.Call)
    code = error.code()
    kind = _KINDS.get(code, FailureKind.INCOMPATIBLE)
    details = one_line(error.details() or code.name)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PeerFailed(kind, f"no answer within {timeout_s:.3g} s")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # said by our own end of the call: the peer is not busy, it breaks the protocol
        return PeerFailed(FailureKind.INVALID, f"sends more in one message than allowed ({details})")
    if code is grpc.StatusCode.UNAVAILABLE:
        details = _unconnected_reason(error.details() or code.name)
        if details == REFUSED:
            return PeerFailed(FailureKind.REFUSED, details)
        if details == OTHER_KEY:
            return PeerFailed(FailureKind.WRONG_PEER, details)
    elif kind is FailureKind.INCOMPATIBLE and code is not grpc.StatusCode.INVALID_ARGUMENT:
        details = f"something answers there, but not a p2pfl peer ({code.name}: {details})"
    return PeerFailed(kind, details)


def _unconnected_reason(details: str) -> str:
    """gRPC's words for a connection that did not come about, in a person's.

    Who accepts a connection and says nothing may well be a peer, stopped or swamped: only what speaks
    another protocol is none.
    """
    said = details.lower()
    if "refused" in said:
        return REFUSED
    if "timed out before receiving settings frame" in said:
        return SILENT
    if "certificate_verify_failed" in said:
        return OTHER_KEY
    if "parsing http/2" in said or "wrong_version_number" in said:
        return NOT_A_PEER
    return one_line(details)


def is_unconnected(error: grpc.RpcError) -> bool:
    """Whether a call failed because there is no connection, or none any more."""
    assert isinstance(error, grpc.Call)
    return bool(error.code() is grpc.StatusCode.UNAVAILABLE)


def is_unproved(error: grpc.RpcError) -> bool:
    """Whether the called peer does not accept our token, or not any more."""
    assert isinstance(error, grpc.Call)
    return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)


def one_line(text: str) -> str:
    """A remote's words, fit for a log: one line, printable, bounded."""
    return "".join(c if c.isprintable() else " " for c in text)[:_MAX_REASON]
