"""The called end: who calls, shown by a token that was signed for this very peer and not long ago."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from p2pfl_proto.v1 import identity_pb2 as pb

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import MalformedMessage, PeerFailed
from p2pfl_net.rpc.keys import check_signature, peer_id_of
from p2pfl_net.rpc.rotations import FormerIds, former_ids
from p2pfl_net.wire import identity as wire
from p2pfl_net.wire.fields import parse
from p2pfl_net.wire.rotation import FormerKey

NONCE_S = 600.0
"""How long a nonce is given out; it is accepted for as long again. A guess: a captured token, which only the
peer that it is for could have captured, is worth nothing after that."""
MAX_TOKENS = 1024
"""Tokens that were found good, so that each is checked once and not with every call."""


class Gate:
    """Greets callers and tells who they are. Thread-safe."""

    def __init__(
        self,
        me: PeerId,
        network_key: bytes | None,
        clock: Callable[[], float] = time.monotonic,
        former: tuple[FormerKey, ...] = (),
    ) -> None:
        """`network_key`: of a private network; None: anybody may call who says who it is. `former`: keys that
        this peer had before."""
        self._me = me
        self._former_keys = former
        self.former_ids = FormerIds()
        """Of callers: true of whoever `caller` has just named."""
        self._network_key = network_key
        self._clock = clock
        self._lock = threading.Lock()
        self._nonce = self._last_nonce = secrets.token_bytes(wire.NONCE_BYTES)
        self._renewed_at = clock()
        self._good: OrderedDict[bytes, tuple[PeerId, tuple[PeerId, ...]]] = OrderedDict()

    def hello(self, request: bytes) -> bytes:
        """Answers a greeting. Raises `MalformedMessage`."""
        asked = wire.decode_hello_request(parse(pb.HelloRequest, request))
        with self._lock:
            self._renew()
            nonce = self._nonce
        key = self._network_key
        proof = b"" if key is None else wire.hello_proof(key, self._me, asked, nonce)
        return wire.encode_hello(wire.Hello(nonce, int(NONCE_S), proof, self._former_keys))

    def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> PeerId:
        """Who calls. Raises `PeerFailed` (unproved) without a good token, `MalformedMessage`."""
        shown = next((value for name, value in metadata if name == wire.TOKEN_HEADER), None)
        if not isinstance(shown, bytes):
            raise _unproved("say Hello first, and sign what it brings")
        with self._lock:
            self._renew()
            known = self._good.get(shown)
            if known is not None:
                self._good.move_to_end(shown)
            nonces = (self._nonce, self._last_nonce)
        caller, former = known or self._check(shown, nonces)
        self.former_ids.note(caller, former)
        if known is None:
            with self._lock:
                if nonces == (self._nonce, self._last_nonce):
                    self._good[shown] = caller, former
                if len(self._good) > MAX_TOKENS:
                    self._good.popitem(last=False)
        return caller

    def _check(self, shown: bytes, nonces: tuple[bytes, ...]) -> tuple[PeerId, tuple[PeerId, ...]]:
        """Whose token it is, and who that was before."""
        if len(shown) > wire.MAX_TOKEN_BYTES:
            raise MalformedMessage("a token of no sound size")
        token = wire.decode_token(parse(pb.Token, shown))
        if token.nonce not in nonces:
            raise _unproved("the token is of an earlier time, or for another peer: say Hello again")
        caller = peer_id_of(token.public_key)
        if self._network_key is not None:
            expected = wire.call_proof(self._network_key, caller, self._me, token.nonce)
            if not hmac.compare_digest(expected, token.proof):
                raise PeerFailed(FailureKind.INCOMPATIBLE, "this network is private: give its --network-key")
        check_signature(token.public_key, token.signature, wire.token_text(self._me, token.nonce))
        return caller, former_ids(token.former, caller)

    def _renew(self) -> None:
        periods = int((self._clock() - self._renewed_at) / NONCE_S)
        if not periods:
            return
        fresh = secrets.token_bytes(wire.NONCE_BYTES)
        self._last_nonce = self._nonce if periods == 1 else fresh
        self._nonce = fresh
        self._renewed_at += periods * NONCE_S
        self._good.clear()


def _unproved(reason: str) -> PeerFailed:
    return PeerFailed(FailureKind.UNPROVED, reason)
