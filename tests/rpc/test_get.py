"""`p2pfl-net get`: a model without joining, resumed where it broke off, in the same run or a later one."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from tests.processes import Process, Processes, wait_for
from tests.rpc.model_files import digest_of, make_model, publish
from tests.rpc.peers import Network, run_command
from tests.rpc.scripted_peer import ScriptedPeer, chunk_part, header_part
from tests.rpc.tcp_proxy import TcpProxy

SIZE_BYTES = 40_000_000
CUT_BYTES = 15_000_000


def start_get(processes: Processes, address: str, out: Path) -> Process:
    return processes.start_python("get", "-m", "p2pfl_net", "get", address, "--out", out)


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith(out.name))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "got").mkdir()
    return tmp_path / "got" / "model.safetensors"


def test_a_model_is_fetched_and_described(network: Network, out: Path) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, SIZE_BYTES))
    said = run_command("get", source.address, "--out", out, "--json")
    assert (said.returncode, said.stderr) == (0, "")
    told = json.loads(said.stdout)
    assert (told["peer_id"], told["file_digest"]) == (source.peer_id, model.digest)
    assert (told["size_bytes"], told["manifest"]["version"]) == (len(model.data), 1)
    assert digest_of(out) == model.digest
    assert leftovers(out) == [out.name]
    assert source.known() == set()
    again = run_command("get", f"localhost:{source.port}", "--out", out)
    assert (again.returncode, model.digest in again.stdout) == (0, True)


def test_a_cut_download_goes_on(network: Network, out: Path) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, SIZE_BYTES))
    with TcpProxy(source.port, cut_after_bytes=CUT_BYTES) as link:
        assert run_command("get", link.address, "--out", out).returncode == 0
        assert link.cuts == 1
        assert link.carried_bytes < SIZE_BYTES + CUT_BYTES
    assert digest_of(out) == model.digest
    assert leftovers(out) == [out.name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_later_run_resumes_what_an_earlier_left(
    network: Network, processes: Processes, out: Path, number: signal.Signals
) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, SIZE_BYTES))
    with TcpProxy(source.port) as link:
        link.hold_after(CUT_BYTES)
        first = start_get(processes, link.address, out)
        wait_for(link.held.is_set, what="the middle of the download")
        part = out.with_name(out.name + ".part")
        wait_for(lambda: part.exists() and part.stat().st_size > 1 << 20, what="a part of the file")
        first.signal(number)
        assert first.wait() == (-9 if number == signal.SIGKILL else 130)
        assert "Traceback" not in first.output()
        assert not out.exists()
    with TcpProxy(source.port) as link:
        assert run_command("get", link.address, "--out", out).returncode == 0
        assert link.carried_bytes < SIZE_BYTES - (1 << 20)
    assert digest_of(out) == model.digest
    assert leftovers(out) == [out.name]


def test_a_part_of_another_file_is_not_used(network: Network, out: Path) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, 3_000_000))
    out.with_name(out.name + ".part").write_bytes(b"x" * 1_000_000)
    out.with_name(out.name + ".part.json").write_text(json.dumps({"file_digest": "0" * 64}))
    assert run_command("get", source.address, "--out", out).returncode == 0
    assert digest_of(out) == model.digest


@pytest.mark.parametrize("note", [b"", b"garbage", b"{}", b'{"file_digest": "../x"}', b"[" * 5000])
def test_a_damaged_note_of_a_part_begins_anew(network: Network, out: Path, note: bytes) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, 3_000_000))
    out.with_name(out.name + ".part").write_bytes(b"x" * 1_000_000)
    out.with_name(out.name + ".part.json").write_bytes(note)
    assert run_command("get", source.address, "--out", out).returncode == 0
    assert digest_of(out) == model.digest


def test_a_damaged_part_is_noticed_and_thrown_away(network: Network, out: Path) -> None:
    source = network.start()
    model = publish(source.state, make_model(1, 3_000_000))
    out.with_name(out.name + ".part").write_bytes(b"x" * 1_000_000)
    out.with_name(out.name + ".part.json").write_text(json.dumps({"file_digest": model.digest}))
    said = run_command("get", source.address, "--out", out)
    assert (said.returncode, "do not have the announced digest" in said.stderr) == (8, True)
    assert leftovers(out) == []
    assert run_command("get", source.address, "--out", out).returncode == 0
    assert digest_of(out) == model.digest


def test_what_was_there_stays_when_a_download_fails(network: Network, out: Path) -> None:
    out.write_bytes(b"precious")
    model = make_model(1, 3_000_000)
    with ScriptedPeer(
        lambda r, c: iter([header_part(r, model, peer_id=bytes(32)), chunk_part(b"x")])
    ) as liar:
        said = run_command("get", f"127.0.0.1:{liar.port}", "--out", out)
    assert said.returncode == 8
    assert out.read_bytes() == b"precious"
    assert leftovers(out) == [out.name]


def failure(address: str, out: Path, *options: str) -> tuple[int, str]:
    said = run_command("get", address, "--out", out, *options)
    assert said.stderr.count("\n") == 1, said.stderr
    assert said.stderr.startswith("p2pfl-net: ")
    assert said.stdout == ""
    return said.returncode, said.stderr


def test_an_address_where_nobody_is(out: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    status, line = failure(address, out)
    assert (status, "connection refused" in line, address in line) == (8, True, True)
    assert leftovers(out) == []


def test_an_address_that_never_answers(out: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, line = failure(f"127.0.0.1:{silent.getsockname()[1]}", out, "--patience", "1")
    assert status == 8
    assert leftovers(out) == []
    assert line


def test_a_name_that_is_unknown(out: Path) -> None:
    assert failure("no-such-host.invalid:8000", out)[0] == 8


@pytest.mark.parametrize("address", ["lab1", "lab1:abc", "lab1:0", "http://lab1:8000", ""])
def test_an_address_that_is_none(out: Path, address: str) -> None:
    assert failure(address, out)[0] == 2


def test_a_peer_without_a_model(network: Network, out: Path) -> None:
    status, line = failure(network.start().address, out)
    assert (status, "no model is published here yet" in line) == (8, True)


def test_a_folder_that_is_not_there(network: Network, out: Path) -> None:
    source = network.start()
    publish(source.state, make_model(1, 1000))
    status, line = failure(source.address, out.parent / "missing" / "model")
    assert (status, "--out" in line) == (2, True)


def test_a_folder_instead_of_a_file(network: Network, out: Path) -> None:
    source = network.start()
    publish(source.state, make_model(1, 1000))
    status, line = failure(source.address, out.parent)
    assert (status, "--out" in line) == (2, True)
    assert leftovers(out) == []
    assert sorted(path.name for path in out.parent.parent.glob("got*")) == ["got"]


def test_a_full_disk(network: Network, small_disk: Path) -> None:
    source = network.start()
    publish(source.state, make_model(1, 1_000_000))
    status, line = failure(source.address, small_disk / "model")
    assert (status, "no space left" in line) == (8, True)
    assert not (small_disk / "model").exists()
