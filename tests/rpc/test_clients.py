"""What a call leaves behind: no channel to nobody."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import pytest

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import Ping, Record, Sender, Status
from p2pfl_net.errors import PeerFailed
from p2pfl_net.rpc.fetching import Cancellation
from tests.processes import wait_for
from tests.rpc.callers import membership_client, model_client
from tests.rpc.crowd import NOBODY_PORT
from tests.rpc.scripted_peer import ScriptedPeer

NOBODY = Address("127.0.0.1", NOBODY_PORT)
SOMEBODY = PeerId("5" * 64)
LONG_S = 600.0


def test_no_channel_to_nobody_is_kept() -> None:
    client = membership_client()
    ping = Ping(Sender(Record(SOMEBODY, 1, Status.ALIVE, ())), SOMEBODY, NOBODY)
    with pytest.raises(PeerFailed) as caught:
        client.call(NOBODY, ping, LONG_S)
    assert caught.value.kind is FailureKind.REFUSED
    assert not client._connections._open, "gRPC would go on dialling"
    client.close()


def refusal_of(address: Address, timeout_s: float) -> PeerFailed:
    """Why a ping there fails."""
    client = membership_client()
    ping = Ping(Sender(Record(SOMEBODY, 1, Status.ALIVE, ())), SOMEBODY, address)
    with pytest.raises(PeerFailed) as caught:
        client.call(address, ping, timeout_s)
    client.close()
    return caught.value


def test_a_name_that_nobody_knows_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*question: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "host name not found (Name or service not known)" in str(refusal_of(Address("lab1", 8000), 1.0))


@pytest.mark.parametrize("timeout_s", [0.3, LONG_S])
def test_who_says_nothing_may_be_a_peer_whoever_gives_up_first(timeout_s: float) -> None:
    """The call's own time-out, or gRPC's attempt to connect."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        failure = refusal_of(Address("127.0.0.1", silent.getsockname()[1]), timeout_s)
    assert failure.kind is FailureKind.UNREACHABLE
    assert "no answer" in str(failure)
    assert "not a p2pfl peer" not in str(failure)


def test_who_speaks_another_protocol_is_no_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet_all() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # it was shut down
                    return
                with connection, suppress(ConnectionError):
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
                    while connection.recv(1024):
                        pass

        def reason() -> str | None:
            said = str(refusal_of(Address("127.0.0.1", server.getsockname()[1]), LONG_S))
            return None if "no answer" in said else said  # the greeter got no processor in time

        greeter = threading.Thread(target=greet_all)
        greeter.start()
        try:
            assert "not a p2pfl peer" in wait_for(reason, what="a greeting in time")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            greeter.join()


def test_a_question_for_a_task_is_cancelled_like_a_transfer() -> None:
    asked, released = threading.Event(), threading.Event()

    def task() -> bytes:
        asked.set()
        released.wait()
        return b""

    client, cancellation = model_client(), Cancellation()
    with ScriptedPeer(lambda request, context: iter(()), task=task) as silent:
        address = Address("127.0.0.1", silent.port)

        def cancel() -> None:
            asked.wait()
            cancellation.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        with pytest.raises(PeerFailed):
            client.fetch_task(
                address,
                PeerId(silent.peer_id),
                TaskDigest("6" * 64),
                timeout_s=LONG_S,
                cancellation=cancellation,
            )
        canceller.join()
        released.set()
    client.close()
