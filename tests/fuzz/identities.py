"""Files that say whom a peer trusts, which versions were signed, who lied, and who was whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from p2pfl_state import signed, trust
from p2pfl_state.atomic import encode_json
from p2pfl_state.errors import StateError
from p2pfl_state.layout import CONTRACT_VERSION, StateDir
from p2pfl_state.signed import SignedVersion
from p2pfl_state.trust import Decision, Link, TrustFile, TrustRequest

from p2pfl_net import provenance
from p2pfl_net.core.ids import PeerId
from p2pfl_net.errors import UsageError
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.runtime import rotations
from p2pfl_net.runtime.evicted import EvictedFile
from p2pfl_net.runtime.heirs import Heirs
from p2pfl_net.runtime.known_peers import latest, read_successors
from p2pfl_net.runtime.versions import VersionLog, line_of
from p2pfl_net.wire import versions
from tests.fuzz.network import IDENTITY, MANIFEST, ME, OTHER, STATEMENT
from tests.fuzz.target import Target

_WRONG = (StateError,)


def targets(folder: Path) -> list[Target]:
    state = StateDir(folder / "identities")
    state.root.mkdir()
    return [*_decisions(state), *_signatures(state)]


def _decisions(state: StateDir) -> list[Target]:
    decided = TrustFile({ME: Decision(1e9, "a colleague")}, {OTHER: Decision(1e9)}, {"later": 1})
    request = TrustRequest(ME, 1e9, "192.0.2.1", "clinic B, ask for Ann")
    links = [Link(ME, OTHER), Link(OTHER, "7c" * 32)]

    def requests(data: bytes) -> tuple[TrustRequest, ...]:
        state.trust_requests.write_bytes(data)
        return trust.read_requests(state)

    def heirs(data: bytes) -> Heirs:
        state.trust_heirs.write_bytes(data)
        found = Heirs([PeerId(ME)])
        found.restore(trust.read_links(state))
        latest(read_successors(state), PeerId(ME))
        return found

    return [
        Target(
            "trust.json",
            TrustFile.parse,
            _WRONG,
            (encode_json(decided.to_json()),),
            lambda value: encode_json(value.to_json()),
        ),
        Target(
            "trust_requests.json",
            requests,
            _WRONG,
            (encode_json({"contract": CONTRACT_VERSION, "requests": [request.to_json()]}),),
            lambda value: encode_json(
                {"contract": CONTRACT_VERSION, "requests": [one.to_json() for one in value]}
            ),
        ),
        Target(
            "trust_heirs.json",
            heirs,
            _WRONG,
            (
                encode_json(
                    {"contract": CONTRACT_VERSION, "links": [{"old": k.old, "new": k.new} for k in links]}
                ),
            ),
        ),
    ]


def _signatures(state: StateDir) -> list[Target]:
    other = replace(MANIFEST, weights="9e" * 32)
    said = versions.state(other, IDENTITY.peer_id, IDENTITY.public_key, IDENTITY.sign)
    lie = versions.equivocation(STATEMENT, said)
    evicted = {"contract": CONTRACT_VERSION, "proofs": {lie.peer_id: lie.proof.hex()}}
    rotations.rotate(state, IDENTITY)
    chain, new = state.rotations.read_bytes(), rotations.load(state)
    signed.write(state, SignedVersion(3, "8d" * 32, 1e9))
    mark = state.signed_version.read_bytes()
    line = encode_json(line_of(STATEMENT, MANIFEST))

    def marked(data: bytes) -> SignedVersion | None:
        state.signed_version.write_bytes(data)
        signed.recover(state)
        return signed.read(state)

    def proofs(data: bytes) -> frozenset[PeerId]:
        state.evicted.write_bytes(data)
        return EvictedFile(state).peer_ids

    def former(data: bytes) -> Identity:
        state.rotations.write_bytes(data)
        return rotations.with_former(new, state.rotations)

    def ancestry(data: bytes) -> None:
        state.provenance.write_bytes(data)
        VersionLog(state).close()
        seen = provenance.read(state.root)
        for key in seen:
            provenance.ancestry(seen, key, 10)

    return [
        Target("signed_version.json", marked, _WRONG, (mark,)),
        Target("evicted.json", proofs, _WRONG, (encode_json(evicted),)),
        Target("rotations.json", former, _WRONG, (chain,)),
        Target("provenance.jsonl", ancestry, (UsageError, StateError), (line, line + line[:40])),
    ]
