"""Whom models go to and come from: real daemons, and the commands with which a person decides."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import grpc
import pytest
from p2pfl_proto.v1 import trust_pb2
from p2pfl_state import atomic
from p2pfl_state.layout import StateDir
from p2pfl_state.markers import AggregateAnswer
from p2pfl_state.trust import MAX_REQUESTS, read_requests

from p2pfl_net.core.ids import PeerId
from p2pfl_net.rpc.connections import Connection, Credentials
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.runtime.trust import TrustKeeper
from p2pfl_net.wire.trust import REQUEST_METHOD
from tests.processes import wait_for
from tests.rpc.callers import CALL_TIMEOUT_S, calling, new_identity, tls_channel
from tests.rpc.deciding import decide, ids, listed, refused
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import ModelFile, make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete
from tests.rpc.scripted_peer import unless_busy
from tests.rpc.tcp_proxy import TcpProxy

FETCH_MODEL = "/p2pfl.v1.Models/FetchModel"
FETCH_TASK = "/p2pfl.v1.Models/FetchTask"
FORBIDDEN = grpc.StatusCode.PERMISSION_DENIED
SIZE_BYTES = 40_000_000
HELD_BYTES = 15_000_000
MODEL = make_model(1, 100_000)
STRANGER = new_identity()


def call_code(daemon: Peer, method: str, data: bytes = b"") -> grpc.StatusCode:
    """What a stranger's call ends with, which is refused."""
    with calling(daemon.port, STRANGER) as channel, pytest.raises(grpc.RpcError) as caught:
        next(iter(channel.unary_stream(method, None, None)(data, timeout=CALL_TIMEOUT_S)))
    assert isinstance(caught.value, grpc.Call)
    code: grpc.StatusCode = caught.value.code()
    return code


def trust_of(daemon: Peer) -> dict[str, str | None]:
    return {entry["id"]: entry["trust"] for entry in daemon.peers_file()["peers"]}


def pair(network: Network, *options: str) -> tuple[Peer, Peer]:
    """One that asks, and one that has published and is started with these options."""
    asker = network.start()
    source = network.start(*options, boot=asker)
    publish(source.state, MODEL)
    asker.wait_published([source.peer_id])
    return asker, source


# only the approved ---------------------------------------------------------------------------------


def test_who_serves_the_approved_only_refuses_a_stranger_the_model_and_the_task(network: Network) -> None:
    asker, source = pair(network, "--trust", "approve")
    with FakeTrainer(asker.state) as trainer:
        answer = trainer.ask()
        assert answer.models == ()
        (failure,) = answer.failed
        assert f"p2pfl-net trust request {source.peer_id} --state DIR --reason TEXT" in failure.reason
        codes = [call_code(source, method) for method in (FETCH_MODEL, FETCH_TASK)]
        assert codes == [FORBIDDEN, FORBIDDEN]
        decide("approve", source, asker.peer_id)
        (fetched,) = wait_for(lambda: trainer.ask(want_task=True).models or None, what="it is asked again")
        assert fetched.file_digest == MODEL.digest
        assert trainer.files() >= {"task.json"}
        assert call_code(source, FETCH_MODEL) is FORBIDDEN, "the others are still strangers"
    wait_complete([asker, source])
    wait_for(lambda: trust_of(source) == {asker.peer_id: "approved"}, what="the decision in the list")
    (entry,) = asker.peers_file()["peers"]
    assert (entry["offences"], entry["aside"], entry["trust"]) == (0, False, None)


def test_who_collects_from_the_approved_only_asks_no_stranger(network: Network) -> None:
    source = network.start()
    asker = network.start("--trust", "approve", boot=source)
    publish(source.state, MODEL)
    asker.wait_published([source.peer_id])
    with FakeTrainer(asker.state) as trainer:
        assert (trainer.ask().candidates, trainer.ask().models) == (0, ())
        decide("approve", asker, source.peer_id[:8], "--note", "from the lab")
        wait_for(lambda: trust_of(asker) == {source.peer_id: "approved"}, what="the decision")
        assert [model.peer_id for model in trainer.ask().models] == [source.peer_id]
        decide("revoke", asker, source.peer_id)
        wait_for(lambda: trust_of(asker) == {source.peer_id: "revoked"}, what="the decision")
        assert trainer.ask().candidates == 0
    assert (
        source.events(
            "model_served",
        )
        != []
    )
    wait_complete([asker, source])


def test_get_says_whom_to_ask(network: Network) -> None:
    asker, source = pair(network, "--trust", "approve")
    line = ("get", source.address, "--state", asker.state.root, "--out", asker.state.root / "got")
    said = run_command(*line)
    assert said.returncode == 8
    assert said.stderr.endswith(f"p2pfl-net trust request {source.peer_id} --state DIR --reason TEXT\n")
    decide("approve", source, asker.peer_id)
    assert run_command(*line).returncode == 0


def test_trust_has_two_values(network: Network) -> None:
    said = run_command("serve", "--port", "0", "--state", network.folder / "x", "--trust", "everybody")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1


# revoked -------------------------------------------------------------------------------------------


def through(asker: Peer, link: TcpProxy, source: Peer) -> ModelFile:
    """A source that others reach over `link` only, with a large model."""
    source.state.root.mkdir()
    model = publish(source.state, make_model(1, SIZE_BYTES))
    source.start("--advertise", link.address, boot=asker)
    asker.wait_published([source.peer_id])
    return model


def test_a_revocation_ends_an_upload_that_stands_still_and_outlives_a_restart(network: Network) -> None:
    asker, source = network.start(), network.peer()
    with TcpProxy(source.port) as link, FakeTrainer(asker.state) as trainer:
        model = through(asker, link, source)
        link.hold_after(HELD_BYTES)
        trainer.request()
        wait_for(link.held.is_set, what="the middle of the transfer")
        assert source.events("model_served") == []
        decide("revoke", source, asker.peer_id)
        served = source.wait_event("model_served")
        assert (served["peer"], served["complete"]) == (asker.peer_id, False)
        assert 0 < served["bytes"] < SIZE_BYTES
        link.release()
        answer = trainer.wait_answer()
        assert answer.models == ()
        assert "has revoked you" in answer.failed[0].reason
        source.wait_event("trust_changed", approved=0, revoked=1)
        wait_complete([asker, source])

        source.kill()
        source.start("--advertise", link.address, boot=asker)

        def round_once_it_is_known_again() -> AggregateAnswer | None:
            answer = trainer.ask()
            return answer if answer.candidates else None

        answer = wait_for(round_once_it_is_known_again, what="a round with the restarted peer")
        assert (answer.models, "has revoked you" in answer.failed[0].reason) == ((), True)
        decide("approve", source, asker.peer_id)
        (fetched,) = wait_for(lambda: trainer.ask().models or None, what="it is asked again")
        assert fetched.file_digest == model.digest


def test_a_revocation_ends_a_fetch_that_stands_still(network: Network) -> None:
    asker, source = network.start(), network.peer()
    with TcpProxy(source.port) as link, FakeTrainer(asker.state) as trainer:
        through(asker, link, source)
        link.hold_after(HELD_BYTES)
        trainer.request(deadline_s=50.0)
        wait_for(link.held.is_set, what="the middle of the transfer")
        decide("revoke", asker, source.peer_id)
        answer = trainer.wait_answer()
        assert answer.models == ()
        assert [failure.reason for failure in answer.failed] == ["its models are no longer taken here"]
        trainer.wait_files(set())
        assert not link.cuts
        link.release()
        asker.wait_published([source.peer_id])
        assert trainer.ask().candidates == 0


def test_a_revoked_peer_belongs_to_the_network_all_the_same(network: Network) -> None:
    first, second, third = network.chain(3)
    decide("revoke", first, second.peer_id)
    wait_for(lambda: trust_of(first)[second.peer_id] == "revoked", what="the decision")
    third.kill()
    wait_complete([first, second])


# requests ------------------------------------------------------------------------------------------


def test_a_request_appears_is_read_and_is_decided_on(network: Network) -> None:
    asker, source = pair(network, "--trust", "approve")
    said = decide("request", asker, source.peer_id[:12], "--reason", "we share a corpus")
    assert source.peer_id in said
    told = source.wait_event("trust_requested")
    assert (told["peer"], told["reason"]) == (asker.peer_id, "we share a corpus")
    decide("request", asker, f"{source.peer_id}@{source.address}", "--reason", "please")
    (request,) = listed(source)["requests"]
    assert (request["id"], request["reason"]) == (asker.peer_id, "please")
    assert (request["address"], request["time"] <= time.time()) == ("127.0.0.1", True)
    shown = decide("list", source)
    assert f"asks      {asker.peer_id}" in shown
    assert "from 127.0.0.1: please" in shown
    assert "trust_requests.json" in {path.name for path in source.state.root.iterdir()}

    decide("approve", source, asker.peer_id[:8])
    assert (ids(source, "approved"), ids(source, "requests")) == ([asker.peer_id], [])
    said = decide("request", asker, source.address, "--reason", "once more")
    assert "already" in said
    decide("revoke", source, asker.peer_id[:8])
    assert (ids(source, "approved"), ids(source, "revoked")) == ([], [asker.peer_id])
    assert "has revoked you" in refused(8, "request", asker, source.peer_id, "--reason", "once more")
    assert ids(source, "requests") == []
    assert len(source.events("trust_requested")) == 2
    source.kill()
    assert ids(source, "revoked") == [asker.peer_id]


def test_requests_are_bounded_and_the_newest_stay(network: Network) -> None:
    source = network.start("--max-requests", "100000")
    asking = [Identity.new() for _ in range(258)]
    with tls_channel(source.port) as (channel, peer_id):
        for number, identity in enumerate([*asking, asking[-1]]):
            message = trust_pb2.TrustRequest(to=bytes.fromhex(peer_id), reason=f"number {number}")
            token = Connection(channel, peer_id, Credentials(identity)).token(CALL_TIMEOUT_S)
            call = partial(
                channel.unary_unary(REQUEST_METHOD, None, None),
                message.SerializeToString(),
                timeout=CALL_TIMEOUT_S,
                metadata=token,
            )
            wait_for(partial(unless_busy, call), what="a peer that has time for a request")
    kept = listed(source)["requests"]
    assert [entry["id"] for entry in kept] == [identity.peer_id for identity in asking[2:]]
    assert kept[-1]["reason"] == "number 258"
    source.kill()
    source.start()
    assert ids(source, "requests") == [identity.peer_id for identity in asking[2:]]


def test_who_asks_in_many_names_pushes_nobody_else_out(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    keeper = TrustKeeper(state, PeerId("f" * 64), approved_only=True)
    honest = [PeerId(f"{n:064x}") for n in range(3)]
    for n, peer in enumerate(honest):
        keeper.request(peer, f"10.0.0.{n}", "clinic B, ask for Ann")
    for n in range(2 * MAX_REQUESTS):
        keeper.request(PeerId(f"{n + 1000:064x}"), "10.9.9.9", f"{n}")
    kept = [request.peer_id for request in read_requests(state)]
    assert (len(kept), kept[:3]) == (MAX_REQUESTS, honest)
    assert kept[-1] == f"{2 * MAX_REQUESTS + 999:064x}", "and of its own the newest stay"


def test_decisions_are_told_one_by_one_and_on_a_former_id_hold_for_the_present(network: Network) -> None:
    peer = network.start()
    old, new, other = "a" * 64, "b" * 64, "c" * 64
    decide("approve", peer, other, "--note", "a colleague")
    told = peer.wait_event("trust_changed")["decisions"]
    assert told == [{"peer": other, "decision": "approved", "note": "a colleague"}]
    assert peer.stop() == 0
    atomic.write_json(peer.state.trust_heirs, {"contract": 1, "links": [{"old": old, "new": new}]})
    assert decide("approve", peer, old) == f"approved {new} ({old[:16]} before its key was replaced)\n"
    assert ids(peer, "approved") == [other, new]
    decide("revoke", peer, old)
    assert (ids(peer, "approved"), ids(peer, "revoked")) == ([other], [old, new])


@pytest.mark.parametrize(
    ("to", "reason", "code"),
    [
        (None, "\x1b[2J", grpc.StatusCode.INVALID_ARGUMENT),
        (None, "two\nlines", grpc.StatusCode.INVALID_ARGUMENT),
        (None, "x" * 501, grpc.StatusCode.INVALID_ARGUMENT),
        (None, "", grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(32), "please", grpc.StatusCode.FAILED_PRECONDITION),
        (b"", "please", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_what_is_no_request_leaves_nothing(
    network: Network, to: bytes | None, reason: str, code: grpc.StatusCode
) -> None:
    source = network.start()
    named = bytes.fromhex(source.peer_id) if to is None else to
    data = trust_pb2.TrustRequest(to=named, reason=reason).SerializeToString()
    assert call_code(source, REQUEST_METHOD, data) is code
    assert call_code(source, REQUEST_METHOD, b"\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
    with tls_channel(source.port) as (channel, _), pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(REQUEST_METHOD, None, None)(data, timeout=CALL_TIMEOUT_S)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert listed(source)["requests"] == []
    assert not source.state.trust_requests.exists()


def test_a_request_that_cannot_be_made(network: Network) -> None:
    peer, other = network.chain(2)
    assert "printable" in refused(2, "request", peer, other.peer_id, "--reason", "\x1b[2J")
    assert "printable" in refused(2, "request", peer, other.peer_id, "--reason", "x" * 501)
    assert "ID@HOST:PORT" in refused(2, "request", peer, "d" * 64, "--reason", "x").replace("d" * 64, "ID")
    assert "connection refused" in refused(8, "request", peer, "127.0.0.1:1", "--reason", "x")
    wrong = f"{'d' * 64}@{other.address}"
    assert "another peer" in refused(8, "request", peer, wrong, "--reason", "x")
    said = run_command("trust", "request", "x" * 64, "--state", network.folder, "--reason", "x")
    assert said.returncode == 3
    assert "not a peer's state directory" in said.stderr


def test_a_request_in_a_private_network_needs_its_key(network: Network) -> None:
    key = network.folder / "key"
    assert run_command("keygen", key).returncode == 0
    source = network.start("--network-key", key)
    asker = network.start("--network-key", key, boot=source)
    asker.wait_known({source.peer_id})
    assert "private" in refused(8, "request", asker, source.peer_id, "--reason", "x")
    decide("request", asker, source.peer_id, "--reason", "x", "--network-key", str(key))
    assert ids(source, "requests") == [asker.peer_id]


# ids -----------------------------------------------------------------------------------------------


def test_the_start_of_an_id_stands_for_the_one_peer_that_has_it(network: Network) -> None:
    peer = network.start()
    twins = ["12345678" + end * 56 for end in "ab"]
    for twin in twins:
        assert decide("approve", peer, twin) == f"approved {twin}\n"
    assert "2 peers" in refused(2, "revoke", peer, "12345678")
    assert "no peer known" in refused(2, "revoke", peer, "87654321")
    for wrong in ("1234567", "12345678x", "1234567A", "a" * 65, "", "../../etc", "\x1b[2J456789"):
        assert "64 lower-case hex digits" in refused(2, "revoke", peer, wrong)
    assert "this peer itself" in refused(2, "approve", peer, peer.peer_id)
    assert "this peer itself" in refused(2, "revoke", peer, peer.peer_id)
    decide("revoke", peer, "12345678a")
    assert (ids(peer, "approved"), ids(peer, "revoked")) == ([twins[1]], [twins[0]])


def test_notes_and_times_are_shown(network: Network) -> None:
    peer = network.start()
    assert decide("list", peer) == "nobody is approved or revoked, and nobody asks\n"
    decide("approve", peer, "a" * 64, "--note", "a colleague")
    assert "printable" in refused(2, "approve", peer, "b" * 64, "--note", "\x1b[2J")
    (line,) = decide("list", peer).splitlines()
    assert line.startswith(f"approved  {'a' * 64}  20")
    assert line.endswith("a colleague")
    decide("revoke", peer, "a" * 64)
    (line,) = decide("list", peer).splitlines()
    assert line.startswith("revoked")
    assert line.endswith("a colleague"), "it says who that is"


# a damaged file ------------------------------------------------------------------------------------


def test_a_damaged_file_stops_a_start_and_no_running_daemon(network: Network) -> None:
    asker, source = pair(network)
    decide("revoke", source, asker.peer_id)
    source.wait_event("trust_changed")
    atomic.write_bytes(source.state.trust, b"{")
    assert "is damaged" in source.wait_event("error")["reason"]
    with FakeTrainer(asker.state) as trainer:
        assert "has revoked you" in trainer.ask().failed[0].reason
    assert len(source.events("error")) == 1
    for command in ("approve", "revoke"):
        assert "is damaged" in refused(3, command, source, asker.peer_id)
    assert "is damaged" in refused(3, "list", source)
    assert source.stop() == 0
    process = source.launch()
    assert process.wait() == 3
    assert process.output().count("\n") == 1
    assert "is damaged" in process.output()
    assert source.state.trust.read_bytes() == b"{"


def test_damaged_requests_stop_a_start(network: Network) -> None:
    peer = network.start()
    assert peer.stop() == 0
    peer.state.trust_requests.write_bytes(b"[]")
    process = peer.launch()
    assert process.wait() == 3
    assert "remove it" in process.output()
