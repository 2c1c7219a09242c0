"""Attackers that exceed each limit, while two honest peers go on collecting from each other."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from p2pfl_proto.v1 import membership_pb2 as pb
from p2pfl_proto.v1 import models_pb2, trust_pb2
from p2pfl_proto.v1 import versions_pb2 as pb_versions
from p2pfl_state.layout import StateDir

from p2pfl_net.core.ids import Address
from p2pfl_net.core.messages import Accuse, Request, Response
from p2pfl_net.rpc import door, server, uploads
from p2pfl_net.rpc.fetching import Cancellation, Wanted
from p2pfl_net.rpc.keys import Identity, check_signature
from p2pfl_net.rpc.ledger import Ledger
from p2pfl_net.rpc.limits import ADDRESS_FACTOR, Limits
from p2pfl_net.rpc.opencalls import MAX_OPEN_OF_ADDRESS, OpenCalls
from p2pfl_net.rpc.options import HANDSHAKE_S, MAX_METADATA_BYTES, MAX_STREAMS_OF_CONNECTION, SERVER_OPTIONS
from p2pfl_net.rpc.server import MAX_CONCURRENT_CALLS, Server
from p2pfl_net.rpc.throttle import MAX_UPLOADS
from p2pfl_net.rpc.uploads import MAX_UPLOADS_OF_PEER
from p2pfl_net.runtime.published import PublishedModel
from p2pfl_net.runtime.trust import TrustKeeper
from p2pfl_net.runtime.versions import Signer, VersionLog
from p2pfl_net.wire import versions
from p2pfl_net.wire.calls import CALLS
from p2pfl_net.wire.identity import HELLO_METHOD
from p2pfl_net.wire.records import Opener
from p2pfl_net.wire.trust import REQUEST_METHOD
from tests.processes import PATIENCE_S, wait_for
from tests.rpc.callers import CALL_TIMEOUT_S, calling, model_client, new_identity, tls_channel
from tests.rpc.crowd import NOBODY_PORT
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.flood import ATTACKER, Flood, cheap_identity, flooding
from tests.rpc.model_files import ModelFile, digest_of, make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete
from tests.rpc.raw_http2 import Unreading, any_certificate
from tests.rpc.scripted_peer import JOIN, PING, fake_sender, loopback, unless_busy
from tests.rpc.tcp_proxy import TcpProxy
from tests.rpc.training import Training

LARGE_BYTES = 10_000_000
TRANSFER_S = 600.0
"""Longer than a test may take: none ends by it."""
HANDSHAKE_OPTION = "grpc.server_handshake_timeout_ms"
INVALID, UNAUTHENTICATED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED
FETCH_MODEL = "/p2pfl.v1.Models/FetchModel"
ACCUSE = CALLS[Accuse].path
ROUNDS = 2
"""That each honest peer ends after the attack has had its effect."""
BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
MINUTE_S = 60.0


@contextmanager
def training(network: Network, *options: str) -> Iterator[tuple[Peer, Peer]]:
    """Two honest peers, the first with these limits. Rounds that fail fail the test; after what is done to
    them both still collect, and know nothing but each other and what the test says."""
    first = network.start(*options)
    second = network.start(boot=first)
    wait_complete([first, second])
    with Training((first, second), fan_out=1) as honest:
        honest.wait_rounds((first, second))
        yield first, second
        honest.wait_rounds((first, second), ROUNDS)
    assert not [e for e in first.events("limited") if e.get("peer") in (first.peer_id, second.peer_id)]
    assert [peer.stop() for peer in (first, second)] == [0, 0]


def join_by(identity: Identity, daemon: Peer, records: int = 0) -> bytes:
    request = pb.JoinRequest(sender=fake_sender(identity, NOBODY_PORT), dialled=loopback(daemon.port))
    request.records.extend([request.sender.record] * records)
    return request.SerializeToString()


def ping_by(identity: Identity, daemon: Peer, records: int = 0) -> bytes:
    to = bytes.fromhex(daemon.peer_id)
    sender = fake_sender(identity, NOBODY_PORT)
    request = pb.PingRequest(sender=sender, to=to, dialled=loopback(daemon.port))
    request.updates.extend([request.sender.record] * records)
    return request.SerializeToString()


def notes(daemon: Peer) -> list[tuple[str, str]]:
    """Who exceeded what, as the event log says."""
    return [(str(e.get("address", e.get("peer"))), e["limit"]) for e in daemon.events("limited")]


Serving = Callable[[ModelFile], int]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Begins to serve a model in this process, where a test sets what else takes minutes; the port."""
    with ExitStack() as stack:

        def serve(model: ModelFile, limits: Limits = Limits()) -> int:  # noqa: B008 - frozen
            state = StateDir(tmp_path)
            publish(state, model)
            identity, log = new_identity(), VersionLog(state)
            stack.callback(log.close)
            source = PublishedModel(state, Signer(state, identity, log))
            stack.callback(source.close)
            trust = TrustKeeper(state, identity.peer_id, approved_only=False)
            ledger = Ledger(trust, lambda upload: None)

            def nobody(request: Request, host: str) -> Response:
                raise AssertionError("no membership here")

            opener = Opener(check_signature)
            made = Server(identity, nobody, source, opener, log.get, ledger, limits=limits)
            port = made.bind("127.0.0.1", 0)
            made.start()
            stack.callback(made.stop, 0.0)
            return port

        yield serve


# floods --------------------------------------------------------------------------------------------


def test_ten_thousand_joins(network: Network) -> None:
    """Each in the name of another peer, which really has its key. The list grows by what the address may."""
    per_minute = 20 * ADDRESS_FACTOR
    with training(network, "--max-joins", "20") as (first, second), flooding(first) as attacker:
        made = (cheap_identity() for _ in range(10_000))
        began = time.monotonic()
        joins = ((join_by(fake, first), attacker.token(fake)) for fake in made)
        outcomes = attacker.unary(JOIN, joins)
        minutes = (time.monotonic() - began) / MINUTE_S
        assert outcomes.answered + outcomes.busy == 10_000
        assert per_minute <= outcomes.answered <= per_minute * (1 + minutes) + 1
        assert list(outcomes.words) == [
            f"more than {per_minute} joins a minute from this address, try again later"
        ]
        assert len(first.known()) <= outcomes.answered + 1
        assert second.peer_id in first.known()
        assert notes(first).count((ATTACKER, "joins")) in range(1, 2 + int(minutes))
        assert first.resident_peak_kb() < 100_000


def test_calls_without_a_token(network: Network) -> None:
    """Greetings, garbage and methods that are not there count for the address: before anything is checked."""
    wrong = (HELLO_METHOD, PING, "/p2pfl.v1.Membership/None", "/grpc.health.v1.Health/Check")
    with training(network, "--max-calls", "160") as (first, _), flooding(first) as attacker:
        codes = Counter[grpc.StatusCode]()
        for path in wrong * 5:
            outcomes = attacker.unary(path, [(b"\xff", ())] * 100)
            assert outcomes.answered == 0
            codes += outcomes.codes
        assert set(codes) == {BUSY, INVALID, UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
        assert 160 * ADDRESS_FACTOR <= codes.total() - codes[BUSY] < 2000
        assert "calls a minute from this address" in " ".join(outcomes.words)
        assert set(notes(first)) == {(ATTACKER, "calls")}


def test_calls_streams_and_records_of_one_peer(network: Network) -> None:
    """A peer that has shown who it is has its own limits, and others at its address are not hurt by them."""
    limits = ("--max-calls", "300", "--max-streams", "200", "--max-records", "2000")
    with training(network, *limits) as (first, _), flooding(first) as attacker:
        loud, quiet = cheap_identity(), cheap_identity()
        token = attacker.token(loud)
        outcomes = attacker.unary(PING, [(ping_by(loud, first, records=100), token)] * 40)
        assert "records a minute from this peer" in next(iter(outcomes.words))
        assert 20 <= outcomes.answered < 40
        outcomes = attacker.unary(JOIN, [(join_by(loud, first, records=2001), token)])
        assert outcomes.busy == 1, "more at once than in a minute"
        outcomes = attacker.streams(FETCH_MODEL, [(b"", token)] * 300)
        assert 200 <= outcomes.answered < 300
        assert "streams a minute from this peer" in next(iter(outcomes.words))
        outcomes = attacker.unary(PING, [(ping_by(loud, first), token)] * 500)
        assert 200 <= outcomes.answered < 500
        assert "calls a minute from this peer" in next(iter(outcomes.words))
        assert attacker.unary(PING, [(ping_by(quiet, first), attacker.token(quiet))]).answered == 1
        assert set(notes(first)) == {(loud.peer_id, limit) for limit in ("calls", "streams", "records")}


def proof_against(liar: Identity) -> pb_versions.Equivocation:
    """Two models under one version, both signed by it."""

    def said(digit: str) -> versions.Statement:
        text = versions.version_text(liar.peer_id, 1, digit * 64, digit * 64)
        return versions.Statement(liar.peer_id, 1, digit * 64, digit * 64, liar.public_key, liar.sign(text))

    return versions.encode_equivocation(versions.equivocation(said("1"), said("2")))


def test_accusations_of_invented_peers_and_requests_that_nobody_can_read(network: Network) -> None:
    """Each would be written to disk, and the first told to everybody."""
    with training(network) as (first, second), flooding(first) as attacker:
        loud = cheap_identity()
        token = attacker.token(loud)
        to, sender = bytes.fromhex(first.peer_id), fake_sender(loud, NOBODY_PORT)

        def accusation(liar: Identity) -> bytes:
            request = pb.AccuseRequest(sender=sender, to=to, dialled=loopback(first.port))
            request.proof.CopyFrom(proof_against(liar))
            return request.SerializeToString()

        outcomes = attacker.unary(ACCUSE, [(accusation(cheap_identity()), token) for _ in range(100)])
        assert "accusations a minute from this peer" in next(iter(outcomes.words))
        assert outcomes.answered <= 12
        many = [cheap_identity() for _ in range(300)]
        ask = [trust_pb2.TrustRequest(to=to, reason=f"{n}").SerializeToString() for n in range(len(many))]
        outcomes = attacker.unary(REQUEST_METHOD, [(one, token) for one in ask[:100]])
        assert "requests a minute from this peer" in next(iter(outcomes.words))
        outcomes = attacker.unary(
            REQUEST_METHOD, [(one, attacker.token(who)) for one, who in zip(ask, many, strict=True)]
        )
        assert "requests a minute from this address" in next(iter(outcomes.words))
        assert outcomes.answered <= 12 * ADDRESS_FACTOR
        assert first.events("peer_evicted") == second.events("peer_evicted") == []
        assert not first.state.evicted.exists()


def test_calls_that_are_given_up_at_once(network: Network) -> None:
    """The "rapid reset" of HTTP/2 (CVE-2023-44487), for as long as the daemon keeps such a connection."""
    with training(network) as (first, _), ExitStack() as stack:
        for _ in range(3):
            caller = stack.enter_context(Unreading(first.port, ATTACKER))
            try:
                for _ in range(1000):
                    caller.call(HELLO_METHOD, Flood.hello(), reset=True)
            except OSError:
                continue


def test_too_much_metadata(network: Network) -> None:
    """Much more than the bound, and just more."""
    with training(network) as (first, _), tls_channel(first.port) as (channel, _):
        hello = channel.unary_unary(HELLO_METHOD, None, None)
        for size_bytes in (MAX_METADATA_BYTES, 2 * MAX_METADATA_BYTES, 1 << 20):
            with pytest.raises(grpc.RpcError) as caught:
                hello(Flood.hello(), timeout=CALL_TIMEOUT_S, metadata=(("x", "y" * size_bytes),))
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is BUSY
        assert hello(Flood.hello(), timeout=CALL_TIMEOUT_S)


# who stands still ----------------------------------------------------------------------------------


def silent_calls(attacker: Flood, paths: tuple[str, ...], ended: threading.Event) -> list[Any]:
    """As many calls as a connection may have, that begin and say no more before `ended`."""

    def nothing() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    count = MAX_STREAMS_OF_CONNECTION // len(paths)
    methods = [attacker.channel.stream_unary(path, None, None) for path in count * paths]
    return [method.future(nothing(), timeout=TRANSFER_S) for method in methods]


def count_done(calls: list[Any]) -> int:
    return sum(call.done() for call in calls)


def test_calls_that_send_no_message(network: Network) -> None:
    """More than the daemon may have open at all."""
    with training(network) as (first, _), ExitStack() as stack:
        ended = threading.Event()
        attackers = [stack.enter_context(flooding(first)) for _ in range(6)]
        stack.callback(ended.set)
        calls = [
            call
            for attacker in attackers
            for call in silent_calls(attacker, (HELLO_METHOD, "/p2pfl.v1.Membership/None"), ended)
        ]
        assert len(calls) > MAX_CONCURRENT_CALLS
        wait_for(lambda: count_done(calls) >= len(calls) - MAX_OPEN_OF_ADDRESS, what="the end of the oldest")


def test_calls_whose_answers_nobody_takes(network: Network) -> None:
    with training(network) as (first, _), ExitStack() as stack:
        callers = [stack.enter_context(Unreading(first.port, ATTACKER)) for _ in range(6)]
        for caller in callers:
            for _ in range(MAX_STREAMS_OF_CONNECTION):
                caller.call(HELLO_METHOD, Flood.hello())
        ended = {callers[0].wait_ended() for _ in range(MAX_STREAMS_OF_CONNECTION // 2)}
        assert len(ended) == MAX_STREAMS_OF_CONNECTION // 2


def test_of_too_many_calls_some_end(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no time is over: those that say nothing, and those whose answers nobody takes."""
    monkeypatch.setattr(door, "OpenCalls", lambda *bounds: OpenCalls(3, 3, TRANSFER_S))
    port = serving(make_model(1, 1000))
    ended = threading.Event()
    with tls_channel(port) as (channel, called), ExitStack() as stack:
        stack.callback(ended.set)
        calls = silent_calls(Flood(channel, called), (HELLO_METHOD,), ended)
        wait_for(lambda: count_done(calls) >= len(calls) - 3, what="the end of the oldest")
        caller = stack.enter_context(Unreading(port, ATTACKER))
        for _ in range(10):
            caller.call(HELLO_METHOD, Flood.hello())
        assert len({caller.wait_ended() for _ in range(10 - 3)}) == 10 - 3
        assert channel.unary_unary(HELLO_METHOD, None, None)(Flood.hello(), timeout=CALL_TIMEOUT_S)


def test_connections_that_say_nothing(network: Network) -> None:
    """In the middle of a handshake, and after it."""
    with training(network) as (first, _), ExitStack() as stack:
        here = (ATTACKER, 0)
        for number in range(200):
            plain = socket.create_connection(("127.0.0.1", first.port), source_address=here)
            stack.enter_context(plain)
            if number % 2:
                plain.sendall(b"\x16\x03\x01")  # the begin of a ClientHello
        context = any_certificate()
        for _ in range(50):
            plain = socket.create_connection(("127.0.0.1", first.port), source_address=here)
            stack.enter_context(context.wrap_socket(plain))
        newcomer = network.start(boot=first)
        assert newcomer.stop() == 0


def test_more_connections_than_are_admitted(network: Network) -> None:
    """Those beyond are closed at once; the open ones, of the honest too, live on."""
    with training(network, "--max-connections", "40") as (first, _), ExitStack() as stack:
        admitted = 0
        for _ in range(60):
            try:
                caller = stack.enter_context(Unreading(first.port, ATTACKER))
                caller.call(HELLO_METHOD, Flood.hello())
            except OSError:
                continue
            admitted += 1
        assert 20 < admitted <= 40


def test_a_handshake_that_does_not_end_is_ended(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of TLS, and of the first words of HTTP/2."""
    (limited,) = [value for name, value in SERVER_OPTIONS if name == HANDSHAKE_OPTION]
    assert limited == HANDSHAKE_S * 1000
    short = tuple((name, 300 if name == HANDSHAKE_OPTION else value) for name, value in SERVER_OPTIONS)
    monkeypatch.setattr(server, "SERVER_OPTIONS", short)
    port = serving(make_model(1, 1000))
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain:
        assert plain.recv(1) == b""
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain,
        any_certificate().wrap_socket(plain) as wrapped,
    ):
        while wrapped.recv(1000):  # its own first words come
            pass


# uploads -------------------------------------------------------------------------------------------


def begin_upload(port: int, identity: Identity, stack: ExitStack) -> Iterator[models_pb2.ModelPart]:
    """An upload of which the header has been taken. Raises `grpc.RpcError`."""
    channel = stack.enter_context(calling(port, identity, ("grpc.use_local_subchannel_pool", 1)))
    fetch = channel.unary_stream(FETCH_MODEL, None, models_pb2.ModelPart.FromString)
    upload = fetch(b"", timeout=TRANSFER_S)
    stack.callback(upload.cancel)
    parts = iter(upload)
    assert next(parts).HasField("header")
    return parts


def test_one_peer_holds_a_few_places_only(network: Network) -> None:
    source = network.start()
    asker = network.start(boot=source)
    model = publish(source.state, make_model(1, LARGE_BYTES))
    asker.wait_published([source.peer_id])
    with ExitStack() as stack:
        begin = partial(begin_upload, source.port, new_identity(), stack)
        for _ in range(MAX_UPLOADS_OF_PEER):
            wait_for(partial(unless_busy, begin), what="a place")
        with pytest.raises(grpc.RpcError) as caught:
            begin()
        assert f"more than {MAX_UPLOADS_OF_PEER} uploads at once to one peer" in str(caught.value)
        trainer = stack.enter_context(FakeTrainer(asker.state))
        assert [fetched.file_digest for fetched in trainer.ask().models] == [model.digest]


def test_readers_who_take_nothing_lose_their_places_to_others(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places held, by many names, by readers that take a header and no more."""
    monkeypatch.setattr(uploads, "SLOW_S", 0.5)
    model = make_model(1, LARGE_BYTES)
    port = serving(model)
    client = model_client()
    with ExitStack() as stack:
        stack.callback(client.close)
        for number in range(MAX_UPLOADS):
            if number % MAX_UPLOADS_OF_PEER == 0:
                loris = new_identity()
            begin = partial(begin_upload, port, loris, stack)
            wait_for(partial(unless_busy, begin), what="a place")
        wanted = Wanted((Address("127.0.0.1", port),), TRANSFER_S, patience_s=TRANSFER_S, waits_for_busy=True)
        header = client.fetch(wanted, tmp_path / "draft", Cancellation(), lambda received, header: None)
    assert header.file_digest == model.digest


def test_an_upload_that_takes_long_goes_on_in_another(network: Network, tmp_path: Path) -> None:
    """Over a slow link: each call brings a part, and none of them twice."""
    source = network.start("--max-stream-time", "0.3")
    model = publish(source.state, make_model(1, LARGE_BYTES))
    with TcpProxy(source.port, delay_s=0.01) as link:
        said = run_command("get", link.address, "--out", tmp_path / "model")
        assert (said.returncode, said.stderr) == (0, "")
        assert digest_of(tmp_path / "model") == model.digest
        assert link.connections > 3, "one for the certificate, one for each call"
        assert link.carried_bytes < 1.5 * LARGE_BYTES


def test_all_uploads_together_keep_to_their_pace(network: Network, tmp_path: Path) -> None:
    """While calls go on as ever, and a stop waits for none of them."""
    source = network.start("--max-upload", "2", "--drain", "0.1")
    other = network.start(boot=source)
    size_bytes = 2_000_000
    model = publish(source.state, make_model(1, size_bytes))
    other.wait_published([source.peer_id])
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        fetched = [
            pool.submit(run_command, "get", source.address, "--out", tmp_path / f"{number}")
            for number in range(2)
        ]
        for said in fetched:
            assert said.result().returncode == 0
    assert time.monotonic() - began >= 2 * size_bytes / 2e6 - 1, "no faster than that"
    assert [digest_of(tmp_path / f"{number}") for number in range(2)] == [model.digest] * 2
    wait_complete([source, other])
    publish(source.state, make_model(2, 50 * size_bytes, version=2))
    with ExitStack() as stack:
        begin = partial(begin_upload, source.port, new_identity(), stack)
        upload = wait_for(partial(unless_busy, begin), what="a place")
        assert next(upload).chunk
        assert source.stop() == 0
