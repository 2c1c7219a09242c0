"""Peers that lie about their models: a failure with a reason, no file, and a daemon that lives."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import grpc
import pytest
from p2pfl_proto.v1.models_pb2 import FetchModelRequest, ModelPart
from p2pfl_state.manifest import MAX_HEADER_BYTES, Parent

from p2pfl_net.core.params import Params
from p2pfl_net.rpc.options import MAX_MESSAGE_BYTES
from tests.processes import wait_for
from tests.rpc.crowd import join_crowd
from tests.rpc.fake_trainer import FakeTrainer, names_of
from tests.rpc.model_files import TASK, ModelFile, assemble, header_bytes, make_model, make_task, publish
from tests.rpc.peers import Network, Peer
from tests.rpc.scripted_peer import (
    ScriptedPeer,
    chunk_part,
    chunk_parts,
    header_part,
    honest,
    stall,
)

MODEL = make_model(7, 2_500_000)
OTHER = make_model(8, 2_500_000)
LONG_DEADLINE_S = 50.0


def lie(head: Callable[[FetchModelRequest], bytes], *body: bytes) -> Callable[..., Iterator[bytes]]:
    def parts(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield head(request)
        yield from body

    return parts


def said_manifest(**changes: object) -> bytes:
    return json.dumps({**MODEL.manifest.to_json(), **changes}).encode()


def with_body(data: bytes) -> ModelFile:
    """A file that is honestly announced, whatever is in it."""
    return ModelFile(data, MODEL.manifest)


def nested(depth: int) -> object:
    return {"a": nested(depth - 1)} if depth else 1


WHOLE = tuple(chunk_parts(MODEL.data))
ALIEN_MANIFEST = replace(MODEL.manifest, samples=10**9)
DEEP = '{"a":' * 5000 + "1" + "}" * 5000

LIES: dict[str, tuple[Callable[..., Iterator[bytes]], str]] = {
    "more than announced": (
        lie(lambda r: header_part(r, MODEL), *WHOLE, chunk_part(b"more")),
        "more bytes than announced",
    ),
    "chunks without an end": (
        lambda r, c: itertools.chain([header_part(r, MODEL)], itertools.cycle(WHOLE)),
        "more bytes than announced",
    ),
    "fewer than announced": (lie(lambda r: header_part(r, MODEL), WHOLE[0]), "ends after"),
    "nothing at all": (lie(lambda r: header_part(r, MODEL)), "ends after 0"),
    "not even a header": (lambda r, c: iter(()), "without a header"),
    "another digest than the bytes have": (
        lie(lambda r: header_part(r, MODEL, file_digest=bytes(32)), *WHOLE),
        "do not have the announced digest",
    ),
    "other bytes of the same size": (
        lie(lambda r: header_part(r, MODEL), *chunk_parts(OTHER.data[: len(MODEL.data)])),
        "do not have the announced digest",
    ),
    "a manifest that is not the file's": (
        lie(lambda r: header_part(r, MODEL, manifest=ALIEN_MANIFEST), *WHOLE),
        "the manifest in the file is not the announced one",
    ),
    "a file that is no safetensors": (
        lie(lambda r: header_part(r, with_body(b"\x80\x04pickle" * 50)), chunk_part(b"\x80\x04pickle" * 50)),
        "not a safetensors file",
    ),
    "a file without a manifest": (
        honest(with_body(b"\x02" + bytes(7) + b"{}")),
        "carries no p2pfl manifest",
    ),
    "a file whose tensor has another size": (
        honest(with_body(header_bytes(MODEL.manifest, 10) + b"12345678901")),
        "its header says",
    ),
    "another task": (
        honest(make_model(9, 1000, task=make_task("another").digest)),
        "another task than was asked for",
    ),
    "a manifest with too many fields": (
        lie(lambda r: header_part(r, MODEL, manifest=said_manifest(**{f"a{i}": 0 for i in range(300)}))),
        "more than 128 fields",
    ),
    "a manifest too deep for an answer": (
        lie(lambda r: header_part(r, MODEL, manifest=said_manifest(a=nested(60)))),
        "manifest is not JSON",
    ),
    "too large": (lie(lambda r: header_part(r, MODEL, size_bytes=5_000_000_000)), "over the bound"),
    "larger than any number": (lie(lambda r: header_part(r, MODEL, size_bytes=2**64 - 1)), "over the bound"),
    "weights that we never named": (
        lie(lambda r: header_part(r, MODEL, not_modified=True)),
        "which we never named",
    ),
    "an offset that nobody asked for": (
        lie(lambda r: header_part(r, MODEL, offset=1000), *chunk_parts(MODEL.data[1000:])),
        "begins where nobody asked",
    ),
    "another peer's name": (lie(lambda r: header_part(r, MODEL, peer_id=bytes(32)), *WHOLE), "another peer"),
    "a path as its name": (
        lie(lambda r: header_part(r, MODEL, peer_id=b"../../../../../../tmp/escaped.sh"), *WHOLE),
        "another peer",
    ),
    "a short name": (lie(lambda r: header_part(r, MODEL, peer_id=b"../x"), *WHOLE), "peer id has 4 bytes"),
    "garbage instead of a header": (lie(lambda r: b"\xff" * 50, *WHOLE), "does not begin with a header"),
    "a chunk instead of a header": (lambda r, c: iter(WHOLE), "does not begin with a header"),
    "two headers": (
        lambda r, c: iter([header_part(r, MODEL), header_part(r, MODEL), *WHOLE]),
        "a part that is not a chunk",
    ),
    "garbage instead of a chunk": (lie(lambda r: header_part(r, MODEL), b"\x12\xff\xff\xff"), "a chunk"),
    "a chunk that says another length": (
        lie(lambda r: header_part(r, MODEL), b"\x12\x05four"),
        "a chunk whose length is not what it says",
    ),
    "an empty chunk": (lie(lambda r: header_part(r, MODEL), b"\x12\x00", *WHOLE), "a chunk whose length"),
    "an empty part": (lie(lambda r: header_part(r, MODEL), b"", *WHOLE), "a part that is not a chunk"),
    "a part larger than a message may be": (
        lie(lambda r: header_part(r, MODEL), chunk_part(bytes(MAX_MESSAGE_BYTES + 1))),
        "sends more in one message than allowed",
    ),
    "no manifest": (lie(lambda r: header_part(r, MODEL, manifest=b""), *WHOLE), "manifest is not JSON"),
    "a manifest of another contract": (
        lie(lambda r: header_part(r, MODEL, manifest=said_manifest(contract=99)), *WHOLE),
        "contract version 99",
    ),
    "a manifest with a number that is none": (
        lie(lambda r: header_part(r, MODEL, manifest=said_manifest(mine=float("nan"))), *WHOLE),
        "manifest is not JSON",
    ),
    "a manifest with an endless number": (
        lie(lambda r: header_part(r, MODEL, manifest=said_manifest(mine=0)[:-2] + b"1e999}"), *WHOLE),
        "manifest",
    ),
    "a manifest nested without end": (
        lie(
            lambda r: header_part(r, MODEL, manifest=said_manifest()[:-1] + f',"x":{DEEP}}}'.encode()), *WHOLE
        ),
        "manifest",
    ),
    "a manifest with half a character": (
        lie(lambda r: header_part(r, MODEL, manifest=said_manifest(mine="\ud800")), *WHOLE),
        "manifest is not JSON",
    ),
    "a manifest of a megabyte": (
        lie(lambda r: header_part(r, MODEL, manifest=said_manifest(mine="x" * (1 << 20))), *WHOLE),
        "manifest too large",
    ),
    "a refusal in many lines": (
        lambda r, c: c.abort(grpc.StatusCode.INVALID_ARGUMENT, "no\nand\tno\x1b[31m"),
        "no and no",
    ),
    "an error of no p2pfl peer": (
        lambda r, c: c.abort(grpc.StatusCode.UNIMPLEMENTED, "what?"),
        "not a p2pfl peer",
    ),
}


@dataclass(frozen=True)
class Prey:
    """Whom the liars meet: a daemon with a trainer, and an honest peer in its network."""

    asker: Peer
    honest_id: str
    trainer: FakeTrainer


@pytest.fixture(scope="module")
def prey(shared_network: Network) -> Iterator[Prey]:
    asker = shared_network.start("--max-model-gb", "4")
    honest_peer = shared_network.start(boot=asker)
    publish(honest_peer.state, OTHER)
    asker.wait_published([honest_peer.peer_id])
    with FakeTrainer(asker.state) as trainer:
        yield Prey(asker, honest_peer.peer_id, trainer)
    asker.wait_known({honest_peer.peer_id})
    assert asker.stop() == 0


@pytest.mark.parametrize("name", LIES)
def test_a_liar_is_a_failure_with_a_reason(prey: Prey, name: str) -> None:
    parts, reason = LIES[name]
    with ScriptedPeer(parts) as liar, liar.visiting(prey.asker):
        prey.asker.wait_published([prey.honest_id, liar.peer_id])
        answer = prey.trainer.ask(fan_out=2, deadline_s=LONG_DEADLINE_S)
        assert [model.peer_id for model in answer.models] == [prey.honest_id]
        assert [failure.peer_id for failure in answer.failed] == [liar.peer_id]
        assert reason in answer.failed[0].reason
        assert answer.candidates == 2
        prey.trainer.wait_files(names_of(answer))
        prey.asker.wait_known({prey.honest_id, liar.peer_id})
    prey.asker.wait_known({prey.honest_id})


def test_a_model_larger_than_the_own_of_the_task_is_not_begun(network: Network) -> None:
    """It would have the disk reserved for it, against those that fit."""
    asker = network.start()
    own = publish(asker.state, MODEL)
    large = lie(lambda r: header_part(r, MODEL, size_bytes=len(own.data) + MAX_HEADER_BYTES + 1))
    with ScriptedPeer(large) as liar, FakeTrainer(asker.state) as trainer:
        liar.join(asker)
        asker.wait_published([liar.peer_id])
        (failure,) = wait_for(lambda: trainer.ask().failed or None, what="the refusal")
        assert "over the bound" in failure.reason


def test_a_model_for_which_there_is_no_room_is_not_begun(network: Network) -> None:
    asker = network.start("--max-model-gb", "900000000")
    announces = lie(lambda r: header_part(r, MODEL, size_bytes=10**17), *WHOLE)
    with FakeTrainer(asker.state) as trainer, ScriptedPeer(announces) as liar:
        liar.join(asker)
        asker.wait_published([liar.peer_id])
        answer = trainer.ask()
        assert answer.models == ()
        assert "no space left for a model of 100000000000000000 bytes" in answer.failed[0].reason
        trainer.wait_files(set())


def stall_at_once(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    stall(context)
    yield b""


def stall_after_the_header(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield header_part(request, MODEL)
    stall(context)


def stall_in_mid_stream(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield header_part(request, MODEL)
    yield WHOLE[0]
    stall(context)


def endless_empty_parts(request: FetchModelRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield header_part(request, MODEL)
    while context.is_active():
        yield ModelPart().SerializeToString()


STALLS = [stall_at_once, stall_after_the_header, stall_in_mid_stream, endless_empty_parts]


@pytest.mark.parametrize("parts", STALLS, ids=lambda parts: parts.__name__)
def test_a_stalling_peer_is_replaced_by_another(
    network: Network, parts: Callable[..., Iterator[bytes]]
) -> None:
    asker = network.start()
    with ExitStack() as stack:
        trainer = stack.enter_context(FakeTrainer(asker.state))
        stallers = [stack.enter_context(ScriptedPeer(parts)) for _ in range(2)]
        good = stack.enter_context(ScriptedPeer(honest(OTHER)))
        for peer in (*stallers, good):
            peer.join(asker)
        for _ in range(3):  # in two of three rounds a staller is asked first
            asker.wait_published([peer.peer_id for peer in (*stallers, good)])
            answer = trainer.ask(fan_out=1, deadline_s=600)
            assert [model.peer_id for model in answer.models] == [good.peer_id]
            trainer.wait_files(names_of(answer))


@pytest.mark.parametrize("parts", STALLS[:3], ids=lambda parts: parts.__name__)
def test_a_round_with_nobody_but_a_staller_is_answered(
    network: Network, parts: Callable[..., Iterator[bytes]]
) -> None:
    asker = network.start()
    with FakeTrainer(asker.state) as trainer, ScriptedPeer(parts) as staller:
        staller.join(asker)
        asker.wait_published([staller.peer_id])
        answer = trainer.ask(fan_out=1, deadline_s=1.0)
        assert answer.models == ()
        assert [failure.reason for failure in answer.failed] == ["too slow for the deadline"]
        trainer.wait_files(set())
        assert answer.seconds >= 1.0


def test_only_as_many_peers_are_asked_as_are_wanted(network: Network) -> None:
    asker = network.start()
    with ExitStack() as stack:
        trainer = stack.enter_context(FakeTrainer(asker.state))
        peers = [stack.enter_context(ScriptedPeer(honest(make_model(n)))) for n in range(4)]
        for peer in peers:
            peer.join(asker)
        in_time = 0
        while in_time < 5:
            asker.wait_published([peer.peer_id for peer in peers])
            before = sum(len(peer.requests) for peer in peers)
            answer = trainer.ask(fan_out=2)
            assert len(answer.models) == 2
            if answer.seconds < Params().stall_s:  # else this process may have seemed to stall
                in_time += 1
                assert sum(len(peer.requests) for peer in peers) == before + 2


TASK_LIES = {
    "garbage": b"garbage",
    "another": make_task("another").encode(),
    "half a character": json.dumps(
        {
            "contract": 1,
            "descriptor": {"architecture": {"source_sha256": "0" * 64}},
            "source": "\ud800",
        }
    ).encode(),
    "a number that is none": b'{"contract": 1, "source": null, "descriptor": '
    b'{"architecture": {"source_sha256": null}, "x": NaN}}',
    "nested without end": b'{"contract": 1, "source": null, "descriptor": '
    b'{"architecture": {"source_sha256": null}, "x": ' + b"[" * 990 + b"]" * 990 + b"}}",
    "two megabytes": TASK.encode() + b" " * (2 << 20),
}


@pytest.mark.parametrize("name", TASK_LIES)
def test_a_liar_about_the_task_is_a_failure(prey: Prey, name: str) -> None:
    with ScriptedPeer(honest(MODEL), task=TASK_LIES[name]) as liar, liar.visiting(prey.asker):
        prey.asker.wait_published([prey.honest_id, liar.peer_id])
        answer = prey.trainer.ask(fan_out=2, task=None, want_task=True, deadline_s=LONG_DEADLINE_S)
        assert [model.peer_id for model in answer.models] == [prey.honest_id]
        assert [failure.peer_id for failure in answer.failed] == [liar.peer_id]
        assert "task" in answer.failed[0].reason
        prey.trainer.wait_files(names_of(answer) | {"task.json"})
    prey.asker.wait_known({prey.honest_id})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_failures_than_an_answer_can_list(network: Network) -> None:
    """Fake peers in their hundreds, all said to publish, none of them there."""
    asker = network.start()
    join_crowd(asker, 1100)
    with FakeTrainer(asker.state) as trainer:
        trainer.request(fan_out=8, deadline_s=600)
        answer = trainer.wait_answer(timeout_s=620)
        assert answer.models == ()
        assert answer.candidates >= 1024
        assert len(answer.failed) == 1024
        assert trainer.ask(fan_out=8, deadline_s=0.5).models == ()
    assert asker.stop() == 0


def test_parents_and_foreign_fields_of_a_manifest_are_passed_on(network: Network) -> None:
    said = replace(MODEL.manifest, parents=(Parent("a" * 64, 3, "b" * 64),), extra={"mine": {"deep": [1]}})
    model = ModelFile(assemble(said, MODEL.data[-1000:]), said)
    asker = network.start()
    with FakeTrainer(asker.state) as trainer, ScriptedPeer(honest(model)) as peer:
        peer.join(asker)
        asker.wait_published([peer.peer_id])
        assert [fetched.manifest for fetched in trainer.ask().models] == [said]
