"""`evicted.json`: the proofs against peers that are no members any more, also after a restart."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from p2pfl_proto.v1 import versions_pb2 as pb
from p2pfl_state import atomic
from p2pfl_state.errors import MalformedFile
from p2pfl_state.fields import parse_object
from p2pfl_state.layout import CONTRACT_VERSION, StateDir

from p2pfl_net.core.ids import PeerId
from p2pfl_net.core.messages import Equivocation
from p2pfl_net.errors import MalformedMessage
from p2pfl_net.rpc.keys import check_signature
from p2pfl_net.wire.versions import decode_equivocation

MAX_BYTES = 8 << 20


class EvictedFile:
    """The proofs of one state directory, the newest last. Thread-safe."""

    def __init__(self, state: StateDir) -> None:
        """Raises `MalformedFile` for a damaged file: it is never replaced silently."""
        self._state = state
        self._lock = threading.Lock()
        self._proofs = {proof.peer_id: proof for proof in _read(state)}

    @property
    def proofs(self) -> Iterable[Equivocation]:
        return tuple(self._proofs.values())

    @property
    def peer_ids(self) -> frozenset[PeerId]:
        return frozenset(self._proofs)

    def add(self, proof: Equivocation, forgotten: PeerId | None = None) -> None:
        """Raises `DirectoryUnusable`."""
        with self._lock:
            self._proofs[proof.peer_id] = proof
            if forgotten is not None:
                self._proofs.pop(forgotten, None)
            listed = {peer_id: known.proof.hex() for peer_id, known in self._proofs.items()}
            atomic.write_json(self._state.evicted, {"contract": CONTRACT_VERSION, "proofs": listed})


def _read(state: StateDir) -> list[Equivocation]:
    """The proofs, checked anew."""
    data = atomic.read_bounded(state.evicted, MAX_BYTES)
    if data is None:
        return []
    listed = parse_object(data, state.evicted.name).get("proofs")
    try:
        if not isinstance(listed, dict):
            raise TypeError
        messages = [pb.Equivocation.FromString(bytes.fromhex(text)) for text in listed.values()]
        return [decode_equivocation(message, check_signature) for message in messages]
    except (TypeError, ValueError, DecodeError, MalformedMessage):
        remedy = "correct it, or delete it to forget who lied"
        raise MalformedFile(f"{state.evicted} is damaged: {remedy}") from None
