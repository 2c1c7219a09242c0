"""`p2pfl-net key`: a key is shown, carried to another directory, replaced; and others follow the new one."""

from __future__ import annotations

import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from p2pfl_proto.v1 import identity_pb2
from p2pfl_state import atomic, signed
from p2pfl_state.layout import StateDir
from p2pfl_state.signed import VERSIONS_A_SECOND

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import PeerId, parse_address
from p2pfl_net.errors import MalformedMessage, PeerFailed
from p2pfl_net.rpc import rotations as chains
from p2pfl_net.rpc.connections import Connection, Credentials
from p2pfl_net.rpc.gate import Gate
from p2pfl_net.rpc.keys import Identity, check_signature
from p2pfl_net.rpc.rotations import FormerIds, former_ids, rotated
from p2pfl_net.runtime import identity, rotations
from p2pfl_net.runtime.known_peers import KnownPeers
from p2pfl_net.wire import identity as wire
from p2pfl_net.wire.fields import parse
from p2pfl_net.wire.rotation import MAX_ROTATIONS, FormerKey
from tests.rpc.callers import CALL_TIMEOUT_S, tls_channel
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Network, Peer, run_command, wait_complete


def key(action: str, state: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command("key", action, "--state", state, *arguments)


def refusal(code: int, said: subprocess.CompletedProcess[str]) -> str:
    """The one line that a wrong call prints."""
    assert said.returncode == code, said.stderr
    assert len(said.stderr.splitlines()) == 1
    return said.stderr


def shown(state: Path) -> dict[str, object]:
    said = key("show", state, "--json")
    assert said.returncode == 0, said.stderr
    value: dict[str, object] = json.loads(said.stdout)
    return value


def private_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A directory with a key, whose daemon does not run."""
    made = StateDir(tmp_path / "peer")
    made.root.mkdir()
    identity.load_or_create(made.key)
    return made


# show, export, import ------------------------------------------------------------------------------


def test_a_key_is_shown_with_its_id(state: StateDir) -> None:
    value = shown(state.root)
    own = rotations.load(state)
    assert value["peer_id"] == own.peer_id
    assert value["former_ids"] == []
    public = serialization.load_pem_public_key(str(value["public_key"]).encode())
    assert public == own.key.public_key()
    text = key("show", state.root).stdout
    assert own.peer_id in text
    assert str(value["public_key"]) in text
    assert "PRIVATE" not in text


@pytest.mark.parametrize("action", ["show", "rotate"])
def test_a_directory_without_a_key_has_none_to_show_or_replace(tmp_path: Path, action: str) -> None:
    assert "holds no key" in refusal(3, key(action, tmp_path / "nobody"))
    assert not (tmp_path / "nobody").exists()


@pytest.mark.parametrize("passphrase", [None, b"correct horse"], ids=["plain", "encrypted"])
def test_a_key_is_carried_to_another_directory(
    state: StateDir, tmp_path: Path, passphrase: bytes | None
) -> None:
    options: list[str | Path] = []
    if passphrase is not None:
        options = ["--passphrase-file", private_file(tmp_path / "passphrase", passphrase + b"\n")]
    copy = tmp_path / "copy.pem"
    assert key("export", state.root, copy, *options).returncode == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert (b"ENCRYPTED" in copy.read_bytes()) is (passphrase is not None)
    other = StateDir(tmp_path / "other")
    for _ in range(2):  # the same key again is no mistake
        assert key("import", other.root, copy, *options).returncode == 0
        assert other.key.read_bytes() == state.key.read_bytes()
        assert stat.S_IMODE(other.key.stat().st_mode) == 0o600
    assert run_command("status", "--state", other.root).returncode == 0, "it has not run yet"


def test_an_export_overwrites_nothing(state: StateDir, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    assert "exists" in refusal(2, key("export", state.root, there))
    assert there.read_bytes() == b"precious"
    refusal(2, key("export", state.root, tmp_path / "no folder" / "file"))


def test_another_peer_s_key_is_never_replaced(state: StateDir, tmp_path: Path) -> None:
    before = state.key.read_bytes()
    other = private_file(tmp_path / "other.pem", Identity.new().key_pem())
    assert "another key" in refusal(3, key("import", state.root, other))
    assert state.key.read_bytes() == before


def test_who_moves_with_its_key_signs_no_version_again(state: StateDir, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pem"
    assert key("export", state.root, copy).returncode == 0
    there = StateDir(tmp_path / "there")
    assert "go on above" in key("import", there.root, copy).stderr
    mark = signed.read(there)
    assert mark is not None
    assert mark.version > VERSIONS_A_SECOND * 86400 * 365


def test_wrong_files_are_one_line(state: StateDir, tmp_path: Path) -> None:
    new = tmp_path / "new"
    whole = Identity.new()
    passphrase = private_file(tmp_path / "passphrase", b"right")
    wrong = private_file(tmp_path / "wrong", b"wrong")
    other_kind = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files: list[tuple[str, bytes, list[str | Path]]] = [
        ("cut", whole.key_pem()[:-40], []),
        ("empty", b"", []),
        ("garbage", b"\xff" * 100_000, []),
        ("kind", other_kind, []),
        ("public", whole.public_pem().encode(), []),
        ("encrypted", whole.key_pem(b"right"), []),
        ("passphrase", whole.key_pem(b"right"), ["--passphrase-file", wrong]),
    ]
    for name, content, options in files:
        refusal(7, key("import", new, private_file(tmp_path / name, content), *options))
    refusal(2, key("import", new, tmp_path / "missing"))
    good = private_file(tmp_path / "good", whole.key_pem(b"right"))
    empty = private_file(tmp_path / "no line", b"\nright")
    assert "passphrase of 1" in refusal(2, key("import", new, good, "--passphrase-file", empty))
    for path in (good, passphrase):
        path.chmod(0o640)
        said = key("import", new, good, "--passphrase-file", passphrase)
        assert f"chmod 600 {path}" in refusal(2, said)
        path.chmod(0o600)
    assert not new.exists(), "a refused file makes no directory"
    state.key.write_bytes(b"damaged")
    refusal(7, key("show", state.root))
    key_pem = private_file(tmp_path / "plain", whole.key_pem())
    assert "once it is deleted" in refusal(7, key("import", state.root, key_pem))
    state.key.unlink()
    assert key("import", state.root, key_pem).returncode == 0


def test_the_daemon_must_be_stopped(network: Network, tmp_path: Path) -> None:
    peer = network.start()
    before = peer.state.key.read_bytes()
    other = private_file(tmp_path / "other.pem", Identity.new().key_pem())
    assert "in use" in refusal(3, key("import", peer.state.root, other))
    assert "in use" in refusal(3, key("rotate", peer.state.root))
    assert peer.state.key.read_bytes() == before
    assert shown(peer.state.root)["peer_id"] == peer.peer_id
    assert key("export", peer.state.root, tmp_path / "copy").returncode == 0


def test_a_copied_directory_s_key_is_not_replaced(network: Network, tmp_path: Path) -> None:
    peer = network.start()
    assert peer.stop() == 0
    copy = StateDir(tmp_path / "copy")
    copy.root.mkdir()
    for path in (peer.state.home, peer.state.key):
        (copy.root / path.name).write_bytes(path.read_bytes())
    assert "copy of another peer's directory" in refusal(3, key("rotate", copy.root))


# rotations on disk ---------------------------------------------------------------------------------


def test_each_old_key_vouches_for_the_next(state: StateDir) -> None:
    ids = [rotations.load(state).peer_id]
    for _ in range(MAX_ROTATIONS + 2):
        before = state.key.read_bytes()
        said = key("rotate", state.root, "--json")
        assert said.returncode == 0, said.stderr
        told = json.loads(said.stdout)
        assert told == {"peer_id": shown(state.root)["peer_id"], "former_id": ids[-1]}
        assert told["peer_id"] not in ids
        ids.append(told["peer_id"])
        assert all(before not in path.read_bytes() for path in state.root.rglob("*") if path.is_file())
        assert stat.S_IMODE(state.key.stat().st_mode) == 0o600
    assert shown(state.root)["former_ids"] == ids[-2 : -2 - MAX_ROTATIONS : -1]


def who(own: Identity) -> tuple[bytes, tuple[FormerKey, ...]]:
    return own.key_pem(), own.former


def test_a_crash_before_the_new_key_leaves_the_old_one_whole(state: StateDir) -> None:
    first = rotations.load(state)
    second = rotations.rotate(state, first)
    assert who(rotations.load(state)) == who(second)
    key_file = state.key.read_bytes()
    rotations.rotate(state, second)
    state.key.write_bytes(key_file)  # the chain is written, the key is not
    assert who(rotations.load(state)) == who(second)
    third = rotations.rotate(state, second)
    loaded = rotations.load(state)
    assert former_ids(loaded.former, third.peer_id) == (second.peer_id, first.peer_id)
    atomic.write_bytes(state.key, first.key_pem())
    assert who(rotations.load(state)) == who(first), "also before the first rotation"
    atomic.write_bytes(state.key, Identity.new().key_pem())
    assert rotations.load(state).former == (), "the chain of another key says nothing of this one"


def test_a_damaged_chain_is_refused_and_not_replaced(state: StateDir) -> None:
    rotations.rotate(state, rotations.rotate(state, rotations.load(state)))
    whole = json.loads(state.rotations.read_bytes())
    first, second = whole["links"]
    for links in (
        3,
        [second, first],
        [first, {**second, "signature": first["signature"]}],
        [{**first, "old": "no hex"}, second],
        [first, {"old": second["old"]}],
        [first, second] * MAX_ROTATIONS,
    ):
        content = json.dumps({**whole, "links": links}).encode()
        state.rotations.write_bytes(content)
        for action in ("show", "rotate"):
            assert "rotations.json is damaged" in refusal(3, key(action, state.root))
        assert state.rotations.read_bytes() == content


# rotations of others -------------------------------------------------------------------------------


def line_of(count: int) -> list[Identity]:
    """A peer through `count` rotations, oldest first."""
    line = [Identity.new()]
    for _ in range(count):
        line.append(rotated(line[-1], Identity.new()))
    return line


def test_a_false_chain_is_refused() -> None:
    first, second, third = line_of(2)
    assert former_ids(third.former, third.peer_id) == (second.peer_id, first.peer_id)
    stranger = Identity.new()
    by_second, by_first = third.former
    for keys, peer_id in (
        (third.former, stranger.peer_id),
        ((by_first, by_second), third.peer_id),
        ((by_first,), third.peer_id),
        ((by_second, by_second), third.peer_id),
        ((FormerKey(stranger.public_key, by_second.signature),), third.peer_id),
        ((FormerKey(by_second.public_key, second.sign(b"another text")),), third.peer_id),
        ((FormerKey(b"", b""),), third.peer_id),
        (rotated(second, second).former, second.peer_id),
    ):
        with pytest.raises(MalformedMessage):
            former_ids(keys, peer_id)


def shown_to(gate: Gate, called: Identity, caller: Identity) -> PeerId:
    reply = parse(identity_pb2.HelloReply, gate.hello(wire.encode_hello_request(bytes(32))))
    nonce = wire.decode_hello(reply).nonce
    signature = caller.sign(wire.token_text(called.peer_id, nonce))
    token = wire.encode_token(wire.Token(caller.public_key, nonce, signature, b"", caller.former))
    assert len(token) <= wire.MAX_TOKEN_BYTES
    return gate.caller([(wire.TOKEN_HEADER, token)])


def test_a_called_peer_knows_who_its_callers_were() -> None:
    called, stranger = Identity.new(), Identity.new()
    line = line_of(MAX_ROTATIONS + 1)
    gate = Gate(called.peer_id, None)
    assert shown_to(gate, called, line[-1]) == line[-1].peer_id
    former = tuple(old.peer_id for old in line[-2:0:-1])
    assert gate.former_ids.of(line[-1].peer_id) == former
    assert len(former) == MAX_ROTATIONS
    assert shown_to(gate, called, stranger) == stranger.peer_id
    assert gate.former_ids.of(stranger.peer_id) == ()
    with pytest.raises(MalformedMessage):
        shown_to(gate, called, replace(stranger, former=line[-1].former))
    assert gate.former_ids.of(stranger.peer_id) == ()


def test_the_former_ids_of_a_bounded_number_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MAX_ROTATED_PEERS", 2)
    table = FormerIds()
    a, b, c, old = (PeerId(f"{number:064x}") for number in range(4))
    for peer_id in (a, b, a, c):
        table.note(peer_id, (old,))
    assert [table.of(peer_id) for peer_id in (a, b, c)] == [(old,), (), (old,)]


def test_a_caller_shows_its_former_keys(network: Network) -> None:
    daemon = network.start()
    before, own = line_of(1)
    with tls_channel(daemon.port) as (channel, peer_id):
        ((name, shown),) = Connection(channel, peer_id, Credentials(own)).token(CALL_TIMEOUT_S)
        token = wire.decode_token(parse(identity_pb2.Token, shown))
        assert former_ids(token.former, own.peer_id) == (before.peer_id,)
        ask = channel.unary_unary("/p2pfl.v1.Models/FetchTask", None, None)
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"", timeout=CALL_TIMEOUT_S, metadata=((name, shown),))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND, "it was let in, and nothing is published"


ADDRESS = parse_address("127.0.0.1:8001")


@pytest.mark.parametrize("pinned", [False, True], ids=["trusted at first use", "named by its id"])
def test_a_new_key_counts_where_the_expected_one_vouches_for_it(tmp_path: Path, pinned: bool) -> None:
    first, second, third = (link.peer_id for link in line_of(2))
    stranger = Identity.new().peer_id
    noted: list[tuple[str, dict[str, object]]] = []

    def opened() -> KnownPeers:
        named = {ADDRESS: first if pinned else None}
        return KnownPeers(tmp_path / "known", named, {}, lambda *event: noted.append(event))

    def never() -> tuple[PeerId, ...]:
        raise AssertionError("who is expected need not tell who it was")

    known = opened()
    known.check(ADDRESS, first, never)
    with pytest.raises(PeerFailed):
        known.check(ADDRESS, stranger, lambda: (second,))
    known.check(ADDRESS, third, lambda: (second, first))
    assert noted == [("key_rotated", {"address": str(ADDRESS), "old": first, "new": third})]
    for life in (known, opened()):
        life.check(ADDRESS, third, never)
        for old in (first, second):
            with pytest.raises(PeerFailed, match="OLD KEY") as caught:
                life.check(ADDRESS, old, tuple)
            assert caught.value.kind is FailureKind.WRONG_PEER
        with pytest.raises(PeerFailed):  # a thief of the first key makes another line from it
            life.check(ADDRESS, stranger, lambda: (first,))
    assert len(noted) == 1


def test_a_file_that_goes_in_circles_ends(tmp_path: Path) -> None:
    first, second = Identity.new().peer_id, Identity.new().peer_id
    value = {"contract": 1, "peers": {}, "rotated": {first: second, second: first}}
    atomic.write_json(tmp_path / "known", value)
    known = KnownPeers(tmp_path / "known", {ADDRESS: first}, {}, lambda *event: None)
    with pytest.raises(PeerFailed):
        known.check(ADDRESS, Identity.new().peer_id, tuple)


def restarted_with_a_new_key(peer: Peer) -> str:
    """The id that the peer had before."""
    old = peer.peer_id
    assert peer.stop() == 0
    assert key("rotate", peer.state.root).returncode == 0
    peer.start()
    assert peer.peer_id != old
    return old


@pytest.mark.parametrize("pinned", [False, True], ids=["trusted at first use", "named by its id"])
def test_a_boot_peer_with_a_new_key_is_still_the_boot_peer(network: Network, pinned: bool) -> None:
    first = network.start()
    boot = ("--boot", f"{first.peer_id}@{first.address}" if pinned else first.address)
    second = network.peer()
    second.start(*boot)
    wait_complete([first, second])
    assert second.stop() == 0
    old = restarted_with_a_new_key(first)
    second.start(*boot)
    wait_complete([first, second])
    (event,) = second.events("key_rotated")
    assert (event["address"], event["old"], event["new"]) == (first.address, old, first.peer_id)
    assert second.known() == {first.peer_id}


def test_get_and_requests_find_a_peer_by_the_id_that_it_had(network: Network, tmp_path: Path) -> None:
    peer, asker = network.start(), network.start()
    model = publish(peer.state, make_model(1, 1000))
    old = restarted_with_a_new_key(peer)
    out = tmp_path / "model"
    said = run_command("get", f"{old}@{peer.address}", "--out", out)
    assert (said.returncode, out.read_bytes()) == (0, model.data), said.stderr
    assert peer.peer_id[:16] in said.stdout
    line = ("trust", "request", f"{old}@{peer.address}", "--state", asker.state.root, "--reason", "to learn")
    said = run_command(*line)
    assert (said.returncode, said.stdout.split()[1]) == (0, peer.peer_id), said.stderr


def test_who_knows_the_new_key_takes_the_old_one_for_a_thief_s(network: Network, tmp_path: Path) -> None:
    boot, asker = network.start(), network.peer()
    asker.start(boot=boot)
    stolen = identity.load(boot.state.key)
    assert stolen is not None
    old, address = restarted_with_a_new_key(boot), boot.address
    assert asker.stop() == 0
    asker.start(boot=boot)
    assert asker.wait_event("key_rotated")["new"] == boot.peer_id
    assert boot.stop() == 0
    line = ("--state", asker.state.root, "--reason", "to learn")
    thief = network.peer()
    thief.port = boot.port
    thief.state.root.mkdir()
    private_file(thief.state.key, stolen.key_pem())
    for replaces_it in (False, True):
        if replaces_it:
            assert key("rotate", thief.state.root).returncode == 0
        thief.start()
        said = run_command("get", f"{old}@{address}", "--state", asker.state.root, "--out", tmp_path / "got")
        assert (said.returncode, "another peer lives there" in said.stderr) == (8, True)
        said = run_command("trust", "request", f"{old}@{address}", *line)
        assert (said.returncode, "another peer lives there" in said.stderr) == (8, True)
        assert thief.stop() == 0


def test_a_key_has_one_form_and_so_one_id() -> None:
    own = Identity.new()
    point = own.key.public_key()
    compressed = point.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    prefix = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    check_signature(own.public_key, own.sign(b"text"), b"text")
    with pytest.raises(MalformedMessage, match="one form"):
        check_signature(prefix + compressed, own.sign(b"text"), b"text")


def test_a_peer_with_a_new_key_joins_as_a_new_peer(network: Network) -> None:
    peers = network.chain(3)
    last = peers[-1]
    old = last.peer_id
    assert last.stop() == 0
    assert key("rotate", last.state.root).returncode == 0
    last.start(boot=peers[0])
    wait_complete(peers)
    assert old not in peers[0].known()
