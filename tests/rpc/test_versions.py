"""Signed versions: each number once, and whoever signs two models under one is out."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import grpc
import pytest
from p2pfl_proto.v1 import models_pb2
from p2pfl_state import signed
from p2pfl_state.errors import MalformedFile
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import Parent, Previous
from p2pfl_state.markers import FetchedModel
from p2pfl_state.signed import VERSIONS_A_SECOND, VERSIONS_LEFT_OUT, SignedVersion

from p2pfl_net.core.events import FailureKind, Fetch, FetchId
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.errors import MalformedMessage, PeerFailed
from p2pfl_net.rpc.fetching import ModelClient
from p2pfl_net.rpc.keys import Identity, check_signature
from p2pfl_net.runtime.evicted import EvictedFile
from p2pfl_net.runtime.published import PublishedModel
from p2pfl_net.runtime.rounds import RoundFiles
from p2pfl_net.runtime.versions import Signer, VersionLog
from p2pfl_net.wire import versions
from p2pfl_net.wire.versions import Statement
from tests.processes import PATIENCE_S, wait_for
from tests.rpc.callers import calling
from tests.rpc.deciding import decide
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import ModelFile, assemble, make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete
from tests.rpc.scripted_peer import ScriptedPeer, chunk_parts, header_part


def with_parent(model: ModelFile, parent: Parent, version: int) -> ModelFile:
    """The same weights, said to come of another model."""
    said = replace(model.manifest, parents=(parent,), version=version)
    return ModelFile(assemble(said, model.data[-1000:]), said)


def spoken(identity: Identity, model: ModelFile) -> Statement:
    return versions.state(model.manifest, identity.peer_id, identity.public_key, identity.sign)


# one number, one model -----------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def test_no_number_is_signed_for_two_models(state: StateDir) -> None:
    own, log = Identity.new(), VersionLog(state)
    signer = Signer(state, own, log)
    first, other = make_model(1, 1000).manifest, make_model(2, 1000).manifest
    statement = signer.sign(first)
    assert versions.decode_statement(versions.encode_statement(statement), check_signature) == statement
    for again in (signer, Signer(state, own, log)):
        assert not again.sign(first).contradicts(statement)
        with pytest.raises(MalformedFile, match="publish a higher one"):
            again.sign(other)
        assert again.left_out is None
    signer.sign(replace(other, version=2))
    with pytest.raises(MalformedFile, match="signed up to 2 before"):
        Signer(state, own, log).sign(first)
    log.close()


def test_the_mark_is_on_disk_before_the_signature_is_given(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, log = Identity.new(), VersionLog(state)
    seen: list[SignedVersion | None] = []

    def sign(text: bytes) -> bytes:
        seen.append(signed.read(state))
        return b"signature"

    monkeypatch.setattr(Identity, "sign", lambda self, text: sign(text))
    manifest = make_model(1, 1000, version=7).manifest
    Signer(state, own, log).sign(manifest)
    log.close()
    [mark] = seen
    assert mark is not None
    assert (mark.version, mark.manifest) == (7, versions.manifest_digest(manifest.encode().encode()))


def test_after_a_restored_backup_no_number_is_used_again(state: StateDir, tmp_path: Path) -> None:
    own, log = Identity.new(), VersionLog(state)
    backup = tmp_path / "backup"
    signer = Signer(state, own, log)
    signer.sign(make_model(1, 1000, version=3).manifest)
    shutil.copy2(state.signed_version, backup)
    os.link(state.signed_version, tmp_path / "its inode is not used again")
    signer.sign(make_model(2, 1000, version=4).manifest)
    shutil.copy2(backup, tmp_path / "restored")
    (tmp_path / "restored").replace(state.signed_version)
    restored = Signer(state, own, log)
    assert restored.left_out is not None
    assert restored.left_out.version >= 3 + VERSIONS_LEFT_OUT
    for version in (3, 4, restored.left_out.version):
        with pytest.raises(MalformedFile, match="publish a higher one"):
            restored.sign(make_model(3, 1000, version=version).manifest)
    restored.sign(make_model(3, 1000, version=restored.left_out.version + 1).manifest)
    assert Signer(state, own, log).left_out is None
    log.close()


def test_a_file_that_was_changed_after_it_was_written_is_a_copy(state: StateDir) -> None:
    signed.write(state, SignedVersion(3, None, time.time() - 3600))
    left_out = signed.recover(state)
    assert left_out is not None
    assert left_out.version >= 3 + 3600, "so many may have been signed since"
    assert signed.recover(state) is None


def test_a_mark_of_a_time_to_come_is_a_copy_too(state: StateDir) -> None:
    """As when the clock was ahead when it was written."""
    signed.write(state, SignedVersion(3, None, time.time() + 3600))
    left_out = signed.recover(state)
    assert left_out is not None
    assert left_out.version >= 3 + VERSIONS_LEFT_OUT


def test_a_key_that_signed_elsewhere_signs_no_number_again(state: StateDir) -> None:
    signed.leave_out_earlier(state)
    mark = signed.read(state)
    assert mark is not None
    assert not mark.allows(VERSIONS_A_SECOND * 86400 * 365, "0" * 64)
    signed.leave_out_earlier(state)
    assert signed.read(state) == mark, "what was signed here is known"


def test_a_damaged_mark_is_refused(state: StateDir) -> None:
    log = VersionLog(state)
    for content in (b"", b"{}", b'{"contract": 1, "version": "3"}'):
        state.signed_version.write_bytes(content)
        with pytest.raises(MalformedFile):
            Signer(state, Identity.new(), log)
        assert state.signed_version.read_bytes() == content
    log.close()


# two models, one number ----------------------------------------------------------------------------


def test_two_statements_prove_only_what_they_contradict(state: StateDir) -> None:
    liar = Identity.new()
    one, two = (spoken(liar, make_model(seed, 1000)) for seed in (1, 2))
    proof = versions.equivocation(one, two)
    message = versions.encode_equivocation(proof)
    assert versions.decode_equivocation(message, check_signature) == proof
    for other in (
        one,
        spoken(liar, make_model(2, 1000, version=2)),
        spoken(Identity.new(), make_model(2, 1000)),
    ):
        message.second.CopyFrom(versions.encode_statement(other))
        with pytest.raises(MalformedMessage):
            versions.decode_equivocation(message, check_signature)
    forged = replace(spoken(Identity.new(), make_model(2, 1000)), public_key=liar.public_key)
    message.second.CopyFrom(versions.encode_statement(forged))
    with pytest.raises(MalformedMessage):
        versions.decode_equivocation(message, check_signature)


def test_the_log_remembers_over_restarts(state: StateDir) -> None:
    publisher = Identity.new()
    one, two = (make_model(seed, 1000) for seed in (1, 2))
    log = VersionLog(state)
    assert log.add(spoken(publisher, one), one.manifest) is None
    assert log.add(spoken(publisher, one), one.manifest) is None
    log.close()
    log = VersionLog(state)
    seen = log.get(publisher.peer_id, 1)
    assert seen is not None
    assert seen[1] == one.manifest
    proof = log.add(spoken(publisher, two), two.manifest)
    assert proof is not None
    assert proof.peer_id == publisher.peer_id
    log.close()
    assert len(state.provenance.read_bytes().splitlines()) == 1


def is_unknown(daemon: Peer, peer_id: str) -> bool:
    return peer_id not in daemon.known()


class TwoFaced:
    """Serves each asker another model under the same version."""

    def __init__(self, faces: dict[str, ModelFile]) -> None:
        self._faces = faces

    def __call__(
        self, request: models_pb2.FetchModelRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        model = next(iter(self._faces.values())) if len(self._faces) == 1 else self._faces.popitem()[1]
        yield header_part(request, model)
        yield from chunk_parts(model.data)


def fetch_from(daemon: Peer, publisher: str) -> None:
    daemon.wait_published([publisher])
    with FakeTrainer(daemon.state) as trainer:
        answer = trainer.ask(fan_out=5)
    assert publisher in [model.peer_id for model in answer.models]


def test_a_liar_who_tells_two_peers_different_things_is_found_and_evicted(network: Network) -> None:
    """The second sees in the first's model what that got, asks for the liar's word, and has the proof."""
    first, second, third = peers = network.chain(3)
    one, two = (make_model(seed, 1000) for seed in (1, 2))
    with ExitStack() as stack:
        liar = stack.enter_context(ScriptedPeer(TwoFaced({"second": two, "first": one})))
        liar.join(first)
        for peer in peers:
            peer.wait_published([liar.peer_id])
        fetch_from(first, liar.peer_id)
        fetch_from(second, liar.peer_id)
        got = Parent(liar.peer_id, 1, one.manifest.weights)
        publish(first.state, with_parent(make_model(3, 1000), got, 1))
        fetch_from(second, first.peer_id)
        for peer in peers:
            assert peer.wait_event("peer_evicted", peer=liar.peer_id)["version"] == 1
            wait_for(partial(is_unknown, peer, liar.peer_id), what="a list without the liar")
        with pytest.raises(grpc.RpcError) as caught:
            liar.join(third)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert third.stop() == 0
        third.start(boot=first)
        with pytest.raises(grpc.RpcError):
            liar.join(third)
        assert [proof.peer_id for proof in EvictedFile(third.state).proofs] == [liar.peer_id]
    wait_complete(peers)


def test_what_an_honest_peer_says_of_its_parents_proves_nothing(network: Network) -> None:
    """A false parent is a doubt: nobody is evicted on another's word."""
    first, second = peers = network.chain(2)
    third = network.start(boot=first)
    model = publish(third.state, make_model(1, 1000))
    fetch_from(second, third.peer_id)
    false = Parent(third.peer_id, model.manifest.version, "0" * 64)
    publish(first.state, with_parent(make_model(3, 1000), false, 1))
    fetch_from(second, first.peer_id)
    fetch_from(first, third.peer_id)
    wait_complete([*peers, third])
    assert not any(peer.events("peer_evicted") for peer in (*peers, third))


class Silent:
    """A client whose questions are answered when the test says so."""

    def __init__(self) -> None:
        self.asked, self.ended = threading.Event(), threading.Event()

    def fetch_version(self, *arguments: object, **options: object) -> None:
        self.asked.set()
        assert self.ended.wait(PATIENCE_S)
        raise PeerFailed(FailureKind.UNREACHABLE, "no answer")


def test_who_makes_us_doubt_and_never_answers_holds_one_thread(state: StateDir) -> None:
    known, client, log = Identity.new(), Silent(), VersionLog(state)
    log.add(spoken(known, make_model(1, 1000)), make_model(1, 1000).manifest)
    rounds = RoundFiles(state, cast(ModelClient, client), 1 << 30, log)
    doubtful = with_parent(make_model(2, 1000), Parent(known.peer_id, 1, "0" * 64), 1)
    fetched = FetchedModel("1" * 64, doubtful.manifest, doubtful.digest, 1000, 0.1, reused=False)
    order = Fetch(FetchId(1), 1, PeerId("1" * 64), (Address("127.0.0.1", 1),), TaskDigest("2" * 64), 1.0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(rounds.compare, order, fetched)
        assert client.asked.wait(PATIENCE_S)
        assert rounds.compare(order, fetched) is None, "it does not wait"
        client.ended.set()
        assert first.result(PATIENCE_S) is None
    log.close()


def test_what_is_kept_of_versions_is_bounded(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl_net.runtime.versions.MAX_SEEN_BYTES", 10_000)
    log, own = VersionLog(state), Identity.new()
    for version in range(1, 101):
        model = make_model(version, 1000, version=version)
        log.add(spoken(own, model), model.manifest)
    held = [version for version in range(1, 101) if log.get(own.peer_id, version)]
    assert 1 <= len(held) < 20
    assert held[-1] == 100, "the newest"
    log.close()


def test_a_publication_that_is_replaced_meanwhile_is_no_error(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened the one before asks for a signature when a newer one has been signed already."""
    log = VersionLog(state)
    signer = Signer(state, Identity.new(), log)
    source = PublishedModel(state, signer)
    publish(state, make_model(1, 1000))
    newer = make_model(2, 1000, version=2)
    opened = source._open

    def open_then_replaced() -> int | None:
        handle = opened()
        monkeypatch.undo()
        publish(state, newer)
        assert source.manifest() == newer.manifest
        return handle

    monkeypatch.setattr(source, "_open", open_then_replaced)
    with source.open_model() as served:
        assert served is not None
        assert served.manifest == newer.manifest
    publish(state, make_model(3, 1000, version=1))
    with pytest.raises(MalformedFile, match="publish a higher one"):
        source.manifest()
    source.close()
    log.close()


def test_a_version_that_was_not_seen_is_not_told(network: Network) -> None:
    peer = network.start()
    model = publish(peer.state, make_model(1, 1000))
    asker = network.start(boot=peer)
    fetch_from(asker, peer.peer_id)
    with calling(asker.port) as channel:
        ask = channel.unary_unary(versions.FETCH_VERSION_METHOD, None, None)
        answer = ask(versions.encode_question(PeerId(peer.peer_id), 1), timeout=20)
        statement, manifest = versions.decode_answer(answer, check_signature)
        assert (statement.publisher, manifest) == (peer.peer_id, model.manifest)
        for question in (versions.encode_question(PeerId(peer.peer_id), 2), b"\xff"):
            with pytest.raises(grpc.RpcError):
                ask(question, timeout=20)
    revoked = Identity.new()
    decide("revoke", asker, revoked.peer_id)
    with calling(asker.port, revoked) as channel:
        ask = channel.unary_unary(versions.FETCH_VERSION_METHOD, None, None)
        with pytest.raises(grpc.RpcError) as caught:
            ask(versions.encode_question(PeerId(peer.peer_id), 1), timeout=20)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


# provenance ----------------------------------------------------------------------------------------


def test_what_went_into_a_model_is_told_and_its_signatures_are_checked(state: StateDir) -> None:
    first, second, third = (Identity.new() for _ in range(3))
    one, two = make_model(1, 1000), make_model(2, 1000, version=5)
    unseen = Parent("0" * 64, 9, "1" * 64)
    middle = with_parent(make_model(3, 1000), Parent(first.peer_id, 1, one.manifest.weights), 2)
    parents = (
        Parent(second.peer_id, 2, middle.manifest.weights),
        Parent(first.peer_id, 1, one.manifest.weights),
        Parent(first.peer_id, 5, two.manifest.weights),
        unseen,
    )
    before = make_model(5, 1000, version=2).manifest
    top = replace(make_model(4, 1000, version=3).manifest, parents=parents)
    top = replace(top, previous=Previous(before.version, before.weights))
    log = VersionLog(state)
    for identity, manifest in (
        (first, one.manifest),
        (second, middle.manifest),
        (third, before),
        (third, top),
    ):
        log.add(versions.state(manifest, identity.peer_id, identity.public_key, identity.sign), manifest)
    forged = replace(spoken(Identity.new(), two), publisher=first.peer_id, public_key=first.public_key)
    log.add(forged, two.manifest)
    log.close()
    said = run_command("provenance", top.weights[:12], "--state", state.root, "--json")
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert [(a["peer_id"], a["version"], a["signed"], len(a["made_of"])) for a in told] == [
        (third.peer_id, 3, True, 5),
        (third.peer_id, 2, True, 0),
        (second.peer_id, 2, True, 1),
        (first.peer_id, 1, True, 0),
        (first.peer_id, 5, False, 0),
        ("0" * 64, 9, False, 0),
    ]
    assert told[0]["made_of"][0] == {"peer_id": third.peer_id, "version": 2, "weights": before.weights}
    shown = run_command("provenance", top.weights, "--state", state.root, "--limit", "2").stdout.splitlines()
    assert [line.startswith("  ") for line in shown] == [False, *[True] * 5, False, False, False]
    assert shown[-2].startswith(f"from peer {third.peer_id}: 2 versions, ")
    assert shown[-1].endswith("--limit N shows more")
    assert f"after version 2 of peer {third.peer_id[:16]}" in shown[1]
    for wrong in ("abc", "../x", "f" * 64):
        refused = run_command("provenance", wrong, "--state", state.root)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    nobody = run_command("provenance", "f" * 64, "--state", state.root / "nobody")
    assert (nobody.returncode, len(nobody.stderr.splitlines())) == (3, 1)
