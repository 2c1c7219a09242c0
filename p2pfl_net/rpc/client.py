"""Calls to other daemons, over channels that are kept."""

from __future__ import annotations

import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import grpc

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, parse_ip
from p2pfl_net.core.messages import Request, Response
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.options import MEMBERSHIP_OPTIONS, Option
from p2pfl_net.rpc.status import failure_of, is_unconnected
from p2pfl_net.wire.calls import CALLS

MAX_LITERALS = 4
"""Addresses of one host name that are tried."""


class Channels:
    """Open channels by address, the least recently used closed first. Thread-safe."""

    def __init__(self, options: Sequence[Option], limit: int = 256) -> None:
        self._options = options
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Address, grpc.Channel] = OrderedDict()

    def to(self, address: Address) -> grpc.Channel:
        """The channel to an IP literal and port."""
        with self._lock:
            channel = self._open.get(address)
            if channel is None:
                channel = grpc.insecure_channel(_target(address), options=list(self._options))
                self._open[address] = channel
            self._open.move_to_end(address)
            oldest = self._open.popitem(last=False)[1] if len(self._open) > self._limit else None
        if oldest is not None:
            oldest.close()
        return channel

    def drop(self, address: Address) -> None:
        """Closes the channel to an address that nobody answers at: gRPC would dial it for half an hour."""
        with self._lock:
            channel = self._open.pop(address, None)
        if channel is not None:
            channel.close()

    def close(self) -> None:
        with self._lock:
            channels = list(self._open.values())
            self._open.clear()
        for channel in channels:
            channel.close()


def _target(address: Address) -> str:
    family = "ipv6" if ":" in address.host else "ipv4"
    return f"{family}:{address}"


def resolve(address: Address) -> tuple[Address, ...]:
    """The IP literals behind a host name, IPv4 first. Raises `PeerFailed` when there is none."""
    if parse_ip(address.host) is not None:
        return (address,)
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PeerFailed(
            FailureKind.UNREACHABLE, f"host name not found ({error.strerror or error})"
        ) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    literals = dict.fromkeys(parse_ip(str(entry[4][0])) for entry in found)
    addresses = tuple(Address(literal, address.port) for literal in literals if literal is not None)
    if not addresses:
        raise PeerFailed(FailureKind.UNREACHABLE, "the host name has no usable address")
    return addresses[:MAX_LITERALS]


class MembershipClient:
    """Sends membership messages. Thread-safe."""

    def __init__(self) -> None:
        self._channels = Channels(MEMBERSHIP_OPTIONS)
        self._methods: WeakKeyDictionary[grpc.Channel, dict[str, Any]] = WeakKeyDictionary()
        """Of each channel: to make one costs as much as to encode a ping."""

    def call(self, address: Address, message: Request, timeout_s: float) -> Response:
        """Delivers one message and returns the answer. Of a host name each address is tried in turn.

        Raises `PeerFailed` when none comes within `timeout_s`, `MalformedMessage` for a wrong one.
        """
        deadline = time.monotonic() + timeout_s
        *others, last = resolve(address)
        for literal in others:
            try:
                return self._call(literal, message, max(0.01, deadline - time.monotonic()))
            except PeerFailed as error:
                if not error.kind.is_unreachable:
                    raise
        return self._call(last, message, max(0.01, deadline - time.monotonic()))

    def _call(self, literal: Address, message: Request, timeout_s: float) -> Response:
        dialled = Address(literal.host.partition("%")[0], literal.port)
        if message.dialled != dialled:  # a zone (fe80::1%eth0) means something on this machine only
            message = replace(message, dialled=dialled)
        call = CALLS[type(message)]
        try:
            method = self._method(self._channels.to(literal), call.path)
            answer: bytes = method(call.encode_request(message), timeout=timeout_s)
        except grpc.RpcError as error:
            if is_unconnected(error):
                self._channels.drop(literal)
            raise failure_of(error, timeout_s) from None
        except ValueError as error:  # "Cannot invoke RPC on closed channel": evicted in this instant
            raise PeerFailed(FailureKind.UNREACHABLE, str(error)) from None
        return call.decode_response(answer)

    def _method(self, channel: grpc.Channel, path: str) -> Any:
        methods = self._methods.setdefault(channel, {})
        method = methods.get(path)
        if method is None:
            method = methods[path] = channel.unary_unary(path, None, None)
        return method

    def close(self) -> None:
        self._channels.close()
