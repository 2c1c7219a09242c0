"""Who calls and who is called: attacks on both, with real sockets."""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path

import grpc
import pytest
from p2pfl_proto.v1 import identity_pb2, models_pb2
from p2pfl_proto.v1 import membership_pb2 as pb

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address
from p2pfl_net.core.params import Params
from p2pfl_net.errors import MalformedMessage, PeerFailed
from p2pfl_net.rpc.connections import Connection, Connections, Credentials
from p2pfl_net.rpc.gate import NONCE_S, Gate
from p2pfl_net.rpc.keys import Identity, certified_peer, check_signature
from p2pfl_net.rpc.options import TRANSFER_OPTIONS
from p2pfl_net.wire import identity as wire
from p2pfl_net.wire.fields import parse
from tests.rpc.callers import CALL_TIMEOUT_S, calling, new_identity, tls_channel
from tests.rpc.crowd import NOBODY_PORT
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete
from tests.rpc.scripted_peer import JOIN, PING, ScriptedPeer, call_join, fake_sender, honest, loopback
from tests.rpc.tcp_proxy import TcpProxy

FETCH_MODEL = "/p2pfl.v1.Models/FetchModel"
FETCH_TASK = "/p2pfl.v1.Models/FetchTask"
UNARY = (JOIN, PING, FETCH_TASK)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    code: grpc.StatusCode = error.code()
    return code


def code_with(daemon: Peer, token: bytes | None, method: str = JOIN, data: bytes = b"") -> grpc.StatusCode:
    """What a call with this token ends with."""
    metadata = None if token is None else ((wire.TOKEN_HEADER, token),)
    with tls_channel(daemon.port) as (channel, _), pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method, None, None)(data, timeout=CALL_TIMEOUT_S, metadata=metadata)
    return code_of(caught.value)


def token_for(daemon: Peer, identity: Identity, network_key: bytes | None = None) -> bytes:
    with tls_channel(daemon.port) as (channel, peer_id):
        shown = Connection(channel, peer_id, Credentials(identity, network_key)).token(CALL_TIMEOUT_S)
    ((_, token),) = shown
    return token


def join_of(daemon: Peer, identity: Identity) -> pb.JoinRequest:
    return pb.JoinRequest(sender=fake_sender(identity, NOBODY_PORT), dialled=loopback(daemon.port))


def altered(token: bytes, **fields: bytes) -> bytes:
    message = identity_pb2.Token.FromString(token)
    for name, value in fields.items():
        setattr(message, name, value)
    return message.SerializeToString()


# callers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(shared_network: Network) -> Peer:
    return shared_network.start()


@pytest.mark.parametrize("method", UNARY)
def test_who_does_not_say_who_it_is_is_refused(daemon: Peer, method: str) -> None:
    assert code_with(daemon, None, method) is UNAUTHENTICATED


def test_no_model_without_a_token(daemon: Peer) -> None:
    with tls_channel(daemon.port) as (channel, _):
        fetch = channel.unary_stream(FETCH_MODEL, models_pb2.FetchModelRequest.SerializeToString, None)
        parts = iter(fetch(models_pb2.FetchModelRequest(), timeout=CALL_TIMEOUT_S))
        with pytest.raises(grpc.RpcError) as caught:
            next(parts)
    assert code_of(caught.value) is UNAUTHENTICATED


def test_a_call_in_the_clear_is_refused(daemon: Peer) -> None:
    with grpc.insecure_channel(daemon.address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(JOIN, None, None)(b"", timeout=CALL_TIMEOUT_S)
    assert code_of(caught.value) is grpc.StatusCode.UNAVAILABLE


def test_a_token_for_another_peer_is_refused(network: Network) -> None:
    here, there = network.chain(2)
    assert code_with(there, token_for(here, new_identity())) is UNAUTHENTICATED


def test_a_token_from_before_a_restart_is_refused(network: Network) -> None:
    peer = network.start()
    token = token_for(peer, new_identity())
    assert peer.stop() == 0
    peer.start()
    assert code_with(peer, token) is UNAUTHENTICATED


def test_who_waits_for_another_call_s_greeting_waits_no_longer_than_it_said(daemon: Peer) -> None:
    with tls_channel(daemon.port) as (channel, peer_id):
        connection = Connection(channel, peer_id, Credentials(new_identity()))
        with connection._lock, pytest.raises(PeerFailed, match="no answer"):
            connection.token(0.01)
        assert connection.token(CALL_TIMEOUT_S)


def test_nobody_speaks_for_another(daemon: Peer) -> None:
    known = daemon.known()
    token = token_for(daemon, new_identity())
    request = join_of(daemon, new_identity()).SerializeToString()
    assert code_with(daemon, token, JOIN, request) is INVALID
    assert daemon.known() == known


def test_altered_tokens_are_refused(daemon: Peer) -> None:
    token = token_for(daemon, new_identity())
    other = new_identity()
    of_other = altered(token, public_key=other.public_key)
    nonce = identity_pb2.Token.FromString(token).nonce
    signed_for_nobody = other.sign(wire.token_text(other.peer_id, nonce))
    for broken, code in {
        b"\xff" * 100: INVALID,
        b"\x00" * 5000: INVALID,
        of_other: INVALID,
        altered(of_other, signature=signed_for_nobody): INVALID,
        altered(token, signature=b""): INVALID,
        altered(token, public_key=b"-----BEGIN"): INVALID,
        altered(token, nonce=b"short"): INVALID,
        altered(token, nonce=bytes(32)): UNAUTHENTICATED,
    }.items():
        assert code_with(daemon, broken) is code, broken


def test_a_token_is_worth_nothing_later() -> None:
    now = 0.0
    called, caller = Identity.new(), Identity.new()
    gate = Gate(called.peer_id, None, clock=lambda: now)

    def token() -> bytes:
        reply = parse(identity_pb2.HelloReply, gate.hello(wire.encode_hello_request(bytes(32))))
        nonce = wire.decode_hello(reply).nonce
        text = wire.token_text(called.peer_id, nonce)
        return wire.encode_token(wire.Token(caller.public_key, nonce, caller.sign(text), b""))

    def accepted(shown: bytes) -> bool:
        try:
            return gate.caller([(wire.TOKEN_HEADER, shown)]) == caller.peer_id
        except PeerFailed as error:
            return error.kind is not FailureKind.UNPROVED

    first = token()
    assert accepted(first)
    now = NONCE_S - 1
    late = token()
    now = 2 * NONCE_S - 2  # at least as long as was said from when it was given out
    assert accepted(first)
    assert accepted(late)
    now = 2 * NONCE_S + 1
    assert not accepted(first)
    assert accepted(token())
    now = 9 * NONCE_S
    assert not accepted(late)


def test_keys_of_other_kinds_sign_nothing() -> None:
    identity = Identity.new()
    check_signature(identity.public_key, identity.sign(b"text"), b"text")
    for public_key, signature, text in (
        (identity.public_key, identity.sign(b"text"), b"another"),
        (Identity.new().public_key, identity.sign(b"text"), b"text"),
        (identity.public_key[:-1], identity.sign(b"text"), b"text"),
        (b"", b"", b""),
    ):
        with pytest.raises(MalformedMessage):
            check_signature(public_key, signature, text)
    with pytest.raises(MalformedMessage):
        certified_peer(b"\x30\x82" + bytes(100))


def test_the_certificate_is_the_key_s() -> None:
    identity = Identity.new()
    assert Identity.of(identity.key) == identity, "whoever pinned it accepts it after a restart"


# called peers --------------------------------------------------------------------------------------


def test_a_boot_peer_that_is_named_by_its_id(network: Network) -> None:
    first = network.start()
    second = network.peer()
    second.start("--boot", f"{first.peer_id}@{first.address}")
    wait_complete([first, second])
    third = network.peer()
    third.launch("--boot", f"{second.peer_id}@{first.address}", "--boot-timeout", "0.5")
    assert third.process.wait() == 4
    assert f"peer {first.peer_id[:16]} lives there, not {second.peer_id[:16]}" in third.process.output()


def test_a_stolen_certificate_is_worth_nothing_without_its_key(network: Network) -> None:
    """Whoever sits on the way lets the true peer show its certificate, and answers the calls itself."""
    victim = network.start()
    publish(victim.state, make_model(1, 1000))
    credentials = Credentials(new_identity())
    with ScriptedPeer(honest(make_model(2, 1000))) as attacker, TcpProxy(victim.port) as link:
        address = Address("127.0.0.1", link.port)
        peer_id, _ = credentials.certificate(address, None, CALL_TIMEOUT_S)
        assert peer_id == victim.peer_id
        link.target_port = attacker.port
        connections = Connections(credentials, TRANSFER_OPTIONS)
        connection = connections.to(address, peer_id, CALL_TIMEOUT_S)
        with pytest.raises(grpc.RpcError) as caught:
            connection.token(CALL_TIMEOUT_S)
        failure = connections.failed(address, caught.value, CALL_TIMEOUT_S)
        connections.close()
        assert failure.kind is FailureKind.WRONG_PEER
        assert attacker.requests == []


@pytest.mark.parametrize("boot", ["abc@127.0.0.1:1", f"{'A' * 64}@127.0.0.1:1", "@127.0.0.1:1"])
def test_what_stands_before_the_at_is_an_id(tmp_path: Path, boot: str) -> None:
    for line in (
        ("serve", "--port", "0", "--state", tmp_path / "state", "--boot", boot),
        ("get", boot, "--out", tmp_path / "model"),
    ):
        said = run_command(*line)
        assert said.returncode == 2
        assert len(said.stderr.splitlines()) == 1


def test_a_changed_key_at_a_known_address_is_refused_loudly(network: Network) -> None:
    first = network.start()
    second = network.start(boot=first)
    old = first.peer_id
    assert [first.stop(), second.stop()] == [0, 0]
    first.state.key.unlink()
    first.start()
    second.launch("--boot", first.address, "--boot-timeout", "0.5")
    assert second.process.wait() == 4
    said = second.process.output()
    assert "THE KEY HAS CHANGED" in said
    assert old[:16] in said
    assert first.known() == set()
    second.start("--boot", f"{first.peer_id}@{first.address}")  # as the line says
    wait_complete([first, second])


def test_another_key_is_refused_at_each_address_of_a_peer_that_was_known(network: Network) -> None:
    """Where the boot peer is refused, what an earlier life knew of it must be no way round."""
    first = network.start()
    second = network.start(boot=first)
    wait_complete([first, second])
    assert second.stop() == 0
    old = first.peer_id
    assert first.stop() == 0
    first.state.key.unlink()
    first.start()
    named = f"{old}@localhost:{first.port}"
    second.launch("--boot", named, "--boot-timeout", str(Params().remembered_after_s + 2))
    assert second.process.wait() == 4
    assert (first.known(), second.events("joined")[1:]) == (set(), [])
    second.start()  # without a boot peer: those of its earlier life are asked, and it stands alone
    assert second.known() == first.known() == set()


def test_a_damaged_list_of_known_peers_is_not_replaced(network: Network) -> None:
    peer = network.start()
    assert peer.stop() == 0
    for content in (b"{", b'{"peers": {"lab1:8000": "no id"}}', b'{"peers": 3}'):
        peer.state.known_peers.write_bytes(content)
        assert peer.launch().wait() == 3
        assert peer.state.known_peers.read_bytes() == content


def test_get_from_a_peer_that_is_named(network: Network, tmp_path: Path) -> None:
    peer = network.start()
    model = publish(peer.state, make_model(1, 1000))
    out = tmp_path / "model"
    asked = partial(run_command, "get", "--out", out)
    said = asked(f"{peer.peer_id}@{peer.address}")
    assert (said.returncode, out.read_bytes()) == (0, model.data)
    out.unlink()
    said = asked(f"{'0' * 64}@{peer.address}")
    assert (said.returncode, out.exists()) == (8, False)
    assert "another peer lives there" in said.stderr


def test_get_as_a_peer_shows_its_key(network: Network, tmp_path: Path) -> None:
    peer, other = network.start(), network.start()
    publish(peer.state, make_model(1, 1000))
    out = tmp_path / "model"
    asked = partial(run_command, "get", peer.address, "--out", out, "--state")
    assert asked(other.state.root).returncode == 0
    said = asked(tmp_path / "nobody")
    assert (said.returncode, len(said.stderr.splitlines())) == (3, 1)
    other.state.key.write_bytes(b"damaged")
    said = asked(other.state.root)
    assert (said.returncode, len(said.stderr.splitlines())) == (7, 1)


# the wire ------------------------------------------------------------------------------------------


def test_nothing_can_be_read_on_the_way(network: Network, tmp_path: Path) -> None:
    """No weights, no peer list, no tags: of all that is carried, the name `p2pfl` alone is in the clear."""
    first = network.start("--tags", "secret-trial")
    second = network.start(boot=first)
    wait_complete([first, second])
    model = publish(first.state, make_model(1, 300_000))
    third = network.peer()
    with TcpProxy(first.port, records=True) as link:
        third.start("--boot", link.address)
        wait_complete([first, second, third])
        out = tmp_path / "model"
        assert run_command("get", link.address, "--out", out).returncode == 0
        assert out.read_bytes() == model.data
        carried = bytes(link.recorded)
    assert len(carried) > len(model.data)
    assert b"p2pfl" in carried, "the name that each handshake asks for: the link was heard"
    weights = [model.data[start : start + 16] for start in range(0, len(model.data) - 16, 1000)]
    ids = [peer.peer_id for peer in (first, second, third)]
    names = [*map(bytes.fromhex, ids), *map(str.encode, ids)]
    for readable in (*weights, *names, b"secret-trial", b"127.0.0.1", b"safetensors", b"Membership"):
        assert readable not in carried, readable


# private networks ----------------------------------------------------------------------------------


@pytest.fixture
def network_key(tmp_path: Path) -> Path:
    path = tmp_path / "lab.key"
    assert run_command("keygen", path).returncode == 0
    return path


def test_a_key_is_made_for_its_owner_alone_and_never_overwritten(network_key: Path, tmp_path: Path) -> None:
    content = network_key.read_bytes()
    assert stat.S_IMODE(network_key.stat().st_mode) == 0o600
    said = run_command("keygen", network_key)
    assert (said.returncode, network_key.read_bytes()) == (2, content)
    serve = ("serve", "--port", "0", "--state", tmp_path / "state", "--network-key", network_key)
    network_key.chmod(0o644)
    assert "chmod 600" in run_command(*serve).stderr
    network_key.chmod(0o600)
    for broken in (b"", b"secret", content[:-5], content + b"x", b"\xff" * 10_000):
        network_key.write_bytes(broken)
        said = run_command(*serve)
        assert (said.returncode, len(said.stderr.splitlines())) == (2, 1)


def test_a_private_network_admits_only_who_holds_its_key(
    network: Network, network_key: Path, tmp_path: Path
) -> None:
    holds = ("--network-key", network_key)
    first = network.start(*holds)
    second = network.start(*holds, boot=first)
    wait_complete([first, second])
    publish(first.state, make_model(1, 1000))

    stranger = network.peer()
    stranger.launch("--boot", first.address, "--boot-timeout", "0.5")
    assert stranger.process.wait() == 4
    assert "this network is private" in stranger.process.output()
    another_key = tmp_path / "another.key"
    assert run_command("keygen", another_key).returncode == 0
    stranger.launch("--boot", first.address, "--boot-timeout", "0.5", "--network-key", another_key)
    assert stranger.process.wait() == 4
    assert "not of this private network" in stranger.process.output()

    out = tmp_path / "model"
    assert run_command("get", first.address, "--out", out).returncode == 8
    assert run_command("get", first.address, "--out", out, *holds).returncode == 0
    with calling(first.port) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(JOIN, None, None)(b"", timeout=CALL_TIMEOUT_S)
    assert code_of(caught.value) is INVALID
    assert first.known() == {second.peer_id}
    assert "private" in str(first.wait_event("caller_refused", address="127.0.0.1")["reason"])


def test_a_daemon_says_whether_its_network_is_open(network: Network, network_key: Path) -> None:
    is_open = network.start()
    assert "open network" in is_open.process.output()
    private = network.start("--network-key", network_key)
    assert "open network" not in private.process.output()
    assert "private network" in private.process.output()
    assert [peer.events("started")[-1]["private"] for peer in (is_open, private)] == [False, True]


def test_who_holds_a_key_joins_no_open_network(network: Network, network_key: Path) -> None:
    """It would tell strangers whom it knows."""
    first = network.start()
    second = network.peer()
    second.launch("--boot", first.address, "--boot-timeout", "0.5", "--network-key", network_key)
    assert second.process.wait() == 4
    assert "not of this private network" in second.process.output()
    call_join(first.port, join_of(first, new_identity()))  # it takes in others as before
