"""A core that is asked faster than its decisions are carried out refuses."""

from __future__ import annotations

from random import Random
from unittest.mock import create_autospec

import pytest

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Join, JoinReply, Record, Sender, Status
from p2pfl_net.core.node import Node
from p2pfl_net.core.params import Params
from p2pfl_net.core.reachability import Reachability
from p2pfl_net.errors import PeerFailed
from p2pfl_net.runtime import driver
from p2pfl_net.runtime.rounds import RoundFiles
from tests.rpc.callers import membership_client

HOME = Address("127.0.0.1", 8000)


def join(number: int) -> Join:
    peer_id = PeerId(f"{number:064x}")
    return Join(Sender(Record(peer_id, 1, Status.ALIVE, (Address("127.0.0.1", 9000 + number),))), HOME)


def test_the_queue_of_decisions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MAX_QUEUED", 20)
    params = Params()
    reach = Reachability(8000, (), HOME, params.max_addresses)
    node = Node(PeerId("f" * 64), reach, 1, params, Random(0))
    shell = create_autospec(driver.Shell, instance=True)
    made = driver.Driver(node, membership_client(), create_autospec(RoundFiles, instance=True), shell)
    try:
        for number in range(21):
            assert isinstance(made.exchange(join(number), "127.0.0.1"), JoinReply)
        with pytest.raises(PeerFailed) as refused:  # for nobody runs it, and so nothing is carried out
            made.exchange(join(21), "127.0.0.1")
        assert refused.value.kind is FailureKind.BUSY
    finally:
        made.close()
