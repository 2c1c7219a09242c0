"""Callers that break the protocol: refused in one line, and the daemon lives with its table right."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from p2pfl_proto.v1 import membership_pb2 as pb
from p2pfl_proto.v1 import models_pb2

from p2pfl_net.core.params import Params
from p2pfl_net.rpc.options import MAX_MESSAGE_BYTES, MAX_STREAMS_OF_CONNECTION
from p2pfl_net.rpc.throttle import MAX_UPLOADS
from tests.processes import wait_for
from tests.rpc.callers import calling, new_identity
from tests.rpc.crowd import NOBODY_PORT, join_crowd
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, wait_complete
from tests.rpc.scripted_peer import (
    JOIN,
    PING,
    ScriptedPeer,
    call_join,
    call_ping,
    fake_sender,
    loopback,
    raw_call,
    sealed,
    unless_busy,
)

FETCH_TASK = "/p2pfl.v1.Models/FetchTask"
CALLER = new_identity()
UPLOAD_TIMEOUT_S = 100.0


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status and the words with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error.code(), error.details() or ""


def sound_join(daemon: Peer) -> pb.JoinRequest:
    return pb.JoinRequest(sender=fake_sender(CALLER, NOBODY_PORT), dialled=loopback(daemon.port))


def sound_ping(daemon: Peer) -> pb.PingRequest:
    sender = fake_sender(CALLER, NOBODY_PORT)
    return pb.PingRequest(sender=sender, to=bytes.fromhex(daemon.peer_id), dialled=loopback(daemon.port))


@pytest.mark.parametrize("method", [JOIN, PING, FETCH_TASK])
def test_garbage_is_refused_without_a_word_in_the_log(network: Network, method: str) -> None:
    peers = network.chain(2)
    before = peers[0].process.output()
    for garbage in (b"\xff", b"\xff" * 10_000, b"\x0a\xff\xff\xff\xff\x0f", os.urandom(1000)):
        code, _ = refused(partial(raw_call, peers[0].port, method, garbage))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert peers[0].process.output() == before
    wait_complete(peers)


def test_garbage_for_a_model_is_refused(network: Network) -> None:
    peer = network.start()
    with calling(peer.port) as channel:
        fetch = channel.unary_stream("/p2pfl.v1.Models/FetchModel", None, None)
        code, _ = refused(lambda: next(iter(fetch(b"\xff" * 100, timeout=20))))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "Exception" not in peer.process.output()


def saying(*near: pb.Address, **content: Any) -> Callable[[pb.JoinRequest], object]:
    """The sender says something of itself that nobody can be."""

    def alter(join: pb.JoinRequest) -> None:
        said = pb.RecordContent(**content)
        told = pb.LocalAddresses(addresses=near or [loopback(NOBODY_PORT)])
        join.sender.record.CopyFrom(sealed(CALLER, said, told))

    return alter


def far(host: str, port: int = 8000) -> list[pb.Address]:
    return [pb.Address(host=host, port=port)]


BROKEN_JOINS: dict[str, Callable[[pb.JoinRequest], object]] = {
    "nothing": lambda join: join.Clear(),
    "no sender": lambda join: join.ClearField("sender"),
    "no dialled address": lambda join: join.ClearField("dialled"),
    "a key that is a path": lambda join: setattr(join.sender.record, "public_key", b"../../etc/passwd"),
    "a status of no kind": lambda join: setattr(join.sender.record, "status", 77),
    "a dead speaker": lambda join: setattr(join.sender.record, "status", pb.PEER_STATUS_DEAD),
    "a goodbye that is not signed": lambda join: setattr(join.sender.record, "status", pb.PEER_STATUS_LEFT),
    "no signature": lambda join: join.sender.record.ClearField("signature"),
    "other addresses than are signed": lambda join: setattr(
        join.sender.record, "local", pb.LocalAddresses(addresses=[loopback(99)]).SerializeToString()
    ),
    "an incarnation past all": saying(incarnation=2**63),
    "a version past all": lambda join: setattr(join.sender, "model_version", 2**63),
    "a name as address": saying(addresses=far("evil.example")),
    "a path as address": saying(addresses=far("/etc/passwd")),
    "a zone as address": saying(addresses=far("fe80::1%[/red]\n")),
    "a megabyte as address": saying(addresses=far("fe80::1%" + "x" * 1_000_000)),
    "port 0": saying(loopback(0)),
    "port 70000": saying(addresses=far("10.0.0.1", 70_000)),
    "nine addresses": saying(addresses=[pb.Address(host=f"10.0.0.{number}", port=1) for number in range(9)]),
    "nine candidates": lambda join: join.sender.candidates.extend(
        pb.Address(host=f"10.0.0.{number}", port=1) for number in range(9)
    ),
    "a short task": saying(task=b"task"),
    "published without a task": saying(published=True),
}


@pytest.fixture(scope="module")
def lonely(shared_network: Network) -> Peer:
    """A daemon that knows nobody, whatever is said to it."""
    return shared_network.start()


def check_knows_nobody(daemon: Peer) -> None:
    """Its list is written a moment after a change: that of a visitor shows that no earlier one is to come."""
    with ScriptedPeer(lambda request, context: iter(())) as visitor, visitor.visiting(daemon):
        assert daemon.known() <= {visitor.peer_id}  # on a busy machine it may be lost again
    daemon.wait_known(set())


@pytest.mark.parametrize("name", BROKEN_JOINS)
def test_a_broken_join_is_refused(lonely: Peer, name: str) -> None:
    request = sound_join(lonely)
    BROKEN_JOINS[name](request)
    code, words = refused(lambda: call_join(lonely.port, request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words
    assert "\n" not in words
    check_knows_nobody(lonely)


@pytest.mark.parametrize(("lowest", "highest"), [(3, 9), (0, 0), (4, 3)])
def test_another_protocol_is_refused_with_one_line(lonely: Peer, lowest: int, highest: int) -> None:
    request = sound_join(lonely)
    request.sender.protocol.CopyFrom(pb.ProtocolRange(lowest=lowest, highest=highest))
    code, words = refused(lambda: call_join(lonely.port, request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "protocol" in words
    assert "\n" not in words
    if lowest == 3:
        assert "install the same version" in words
    check_knows_nobody(lonely)


def test_a_call_for_another_peer_is_refused(network: Network) -> None:
    daemon = network.start()
    request = sound_ping(daemon)
    request.to = bytes.fromhex(CALLER.peer_id)
    assert refused(lambda: call_ping(daemon.port, request))[0] is grpc.StatusCode.FAILED_PRECONDITION
    asked = models_pb2.FetchTaskRequest(to=bytes.fromhex(CALLER.peer_id)).SerializeToString()
    assert refused(lambda: raw_call(daemon.port, FETCH_TASK, asked))[0] is grpc.StatusCode.FAILED_PRECONDITION
    check_knows_nobody(daemon)


def test_too_large_a_message_is_refused(network: Network) -> None:
    daemon = network.start()
    code, _ = refused(lambda: raw_call(daemon.port, JOIN, bytes(MAX_MESSAGE_BYTES + 1)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_too_many_updates_are_refused(network: Network) -> None:
    daemon = network.start()
    request = sound_ping(daemon)
    request.updates.extend([fake_sender(new_identity(), NOBODY_PORT).record] * 5000)
    assert refused(lambda: call_ping(daemon.port, request))[0] is grpc.StatusCode.INVALID_ARGUMENT
    check_knows_nobody(daemon)


def test_a_peer_that_returns_from_the_dead_without_an_address(network: Network) -> None:
    """First its death is told, then it speaks itself, and says no address: there is nowhere to ping it."""
    peers = network.chain(2)
    back = new_identity()
    ping = sound_ping(peers[0])
    dead = sealed(back, pb.RecordContent(incarnation=1))
    dead.status = pb.PEER_STATUS_DEAD
    ping.updates.append(dead)
    call_ping(peers[0].port, ping)
    ping.sender.record.CopyFrom(sealed(back, pb.RecordContent(incarnation=2)))
    del ping.updates[:]
    call_ping(peers[0].port, ping)
    peers[0].wait_event("peer_lost", peer=CALLER.peer_id)  # some rounds of probes later
    wait_complete(peers)


def heard_of(teller: Peer, about: Peer) -> pb.PeerRecord:
    """The record of a peer as another tells it."""
    told = call_join(teller.port, sound_join(teller)).records
    return next(r for r in told if hashlib.sha256(r.public_key).hexdigest() == about.peer_id)


def test_slander_is_refuted(network: Network) -> None:
    first, second = peers = network.chain(2)
    slander = heard_of(first, second)
    slander.status = pb.PEER_STATUS_SUSPECT
    ping = sound_ping(first)
    ping.updates.append(slander)
    call_ping(first.port, ping)
    first.wait_event("peer_suspected", peer=second.peer_id)
    wait_complete(peers)  # refuted, or on a busy machine lost and taken back


def test_nobody_alters_the_record_of_another(network: Network) -> None:
    """Neither where it lives, nor how new that is, nor that it has gone."""
    first, second = peers = network.chain(2)
    heard = heard_of(first, second)
    said = pb.RecordContent.FromString(heard.content)

    def altered(**fields: Any) -> pb.PeerRecord:
        other = pb.RecordContent.FromString(heard.content)
        other.MergeFrom(pb.RecordContent(**fields))
        record = pb.PeerRecord.FromString(heard.SerializeToString())
        record.content = other.SerializeToString()
        return record

    moved = pb.PeerRecord.FromString(heard.SerializeToString())
    moved.local = pb.LocalAddresses(addresses=[loopback(NOBODY_PORT)]).SerializeToString()
    gone = pb.PeerRecord.FromString(heard.SerializeToString())
    gone.status = pb.PEER_STATUS_LEFT
    of_liar = sealed(CALLER, said)
    of_liar.public_key = heard.public_key
    lies = [altered(incarnation=2**40), altered(left=True), altered(addresses=far("10.9.9.9")), moved, gone]
    for lie in (*lies, of_liar):
        ping = sound_ping(first)
        ping.updates.append(lie)
        code, words = refused(partial(call_ping, first.port, ping))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "\n" not in words
    assert heard_of(first, second).public_key == heard.public_key
    wait_complete(peers)


@pytest.mark.timeout(600)
def test_a_thousand_fake_peers(network: Network) -> None:
    first, second = network.chain(2)
    crowd = join_crowd(first, 1000)
    wait_for(lambda: len(first.known()) > 900, what="the crowd in the list")
    assert len(first.known()) <= Params().max_peers
    third = network.start(boot=first)
    wait_for(lambda: third.peer_id in first.known(), what="an honest newcomer in the list")
    wait_for(lambda: {first.peer_id, second.peer_id} <= third.known(), what="the honest in its list")
    assert len(third.known() & set(crowd)) > 900
    ping = call_ping(first.port, sound_ping(first))
    assert len(ping.updates) <= Params().max_updates + 1
    assert ping.ByteSize() < 20_000
    assert first.resident_peak_kb() < 100_000
    assert [peer.stop() for peer in (first, second, third)] == [0, 0, 0]


def test_more_uploads_than_are_admitted(network: Network) -> None:
    daemon = network.start()
    model = publish(daemon.state, make_model(1, 64 << 20))
    request = models_pb2.FetchModelRequest()
    with ExitStack() as stack:

        def new_upload() -> Iterator[models_pb2.ModelPart]:
            channel = stack.enter_context(
                calling(daemon.port, new_identity(), ("grpc.use_local_subchannel_pool", 1))
            )
            fetch = channel.unary_stream(
                "/p2pfl.v1.Models/FetchModel",
                models_pb2.FetchModelRequest.SerializeToString,
                models_pb2.ModelPart.FromString,
            )
            upload = fetch(request, timeout=UPLOAD_TIMEOUT_S)
            stack.callback(upload.cancel)
            return iter(upload)

        def admitted_upload() -> Iterator[models_pb2.ModelPart]:
            upload = new_upload()
            assert next(upload).HasField("header")
            return upload

        begin_upload = partial(wait_for, partial(unless_busy, admitted_upload), what="an upload's header")
        uploads = [begin_upload() for _ in range(MAX_UPLOADS)]  # the first once the model is hashed
        code, words = refused(lambda: next(new_upload()))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too many uploads at once, try again" in words
        for _ in range(20):  # while every upload waits for its slow reader
            call_ping(daemon.port, sound_ping(daemon))
        newcomer = network.start(boot=daemon)
        wait_for(lambda: daemon.peer_id in newcomer.known(), what="the daemon in the newcomer's list")
        assert sum(len(part.chunk) for part in uploads[0]) == len(model.data)  # read to its end
        begin_upload()  # in the place of the one that ended


def test_many_callers_at_once(network: Network) -> None:
    first, second = network.chain(2)
    failures: list[str] = []

    def call_often(number: int) -> None:
        sender = fake_sender(new_identity(), NOBODY_PORT)
        for _ in range(50):
            try:
                call_join(first.port, pb.JoinRequest(sender=sender, dialled=loopback(first.port)))
            except grpc.RpcError as error:
                failures.append(str(error))

    threads = [threading.Thread(target=call_often, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    wait_for(lambda: first.peer_id in second.known(), what="the busy peer in the other's list")
    assert first.stop() == 0


def test_callers_who_say_no_more_do_not_take_the_threads_of_pings(network: Network) -> None:
    peers = network.chain(2)
    silent = threading.Event()

    def nothing() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        silent.wait()
        yield from ()

    with ExitStack() as stack:
        stack.callback(silent.set)
        channel = stack.enter_context(calling(peers[0].port))
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = [stub.ServerReflectionInfo(nothing()) for _ in range(MAX_STREAMS_OF_CONNECTION)]
        for _ in range(20):
            call_ping(peers[0].port, sound_ping(peers[0]))
        wait_for(lambda: sum(stream.done() for stream in streams) >= 20, what="their refusals")
        codes = {stream.code() for stream in streams if stream.done()}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        wait_complete(peers)
