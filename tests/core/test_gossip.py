"""What is passed on, how often and in what order, against a plain list."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pfl_net.core.gossip import GossipBuffer
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.core.messages import Record, Status

PEERS = [PeerId(f"{number:064x}") for number in range(8)]
HERE = (Address("127.0.0.1", 1),)
ELSEWHERE = (Address("192.168.0.1", 1),)


class Buffer(RuleBasedStateMachine):
    """Each update is sent at most as often as it may, the least often sent ones first."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = GossipBuffer()
        self.sent: dict[Record, int] = {}
        """The updates on their way."""
        self.incarnation = 0

    @rule(peer=st.sampled_from(PEERS), addresses=st.sampled_from([HERE, ELSEWHERE]))
    def put(self, peer: PeerId, addresses: tuple[Address, ...]) -> None:
        self.discard(peer)
        self.incarnation += 1
        record = Record(peer, self.incarnation, Status.ALIVE, addresses)
        self.buffer.put(record)
        self.sent[record] = 0

    @rule(peer=st.sampled_from(PEERS))
    def discard(self, peer: PeerId) -> None:
        self.buffer.discard(peer)
        self.sent = {record: times for record, times in self.sent.items() if record.peer_id != peer}

    @rule(limit=st.integers(1, 10), retransmissions=st.integers(1, 4))
    def take(self, limit: int, retransmissions: int) -> None:
        taken = self.buffer.take(limit, retransmissions, to_loopback=True)
        assert len(set(taken)) == len(taken) == min(limit, len(self.sent))
        order = [self.sent[record] for record in taken]
        left = [times for record, times in self.sent.items() if record not in taken]
        assert order == sorted(order)
        assert not left or not order or order[-1] <= min(left)
        self._count(taken, retransmissions)

    @rule(retransmissions=st.integers(1, 4))
    def take_all_for_elsewhere(self, retransmissions: int) -> None:
        taken = self.buffer.take(len(PEERS), retransmissions, to_loopback=False)
        assert set(taken) == {record for record in self.sent if record.addresses == ELSEWHERE}
        self._count(tuple(self.sent), retransmissions)

    def _count(self, taken: tuple[Record, ...], retransmissions: int) -> None:
        for record in taken:
            self.sent[record] += 1
        self.sent = {record: times for record, times in self.sent.items() if times < retransmissions}

    @invariant()
    def holds_what_is_on_its_way(self) -> None:
        assert len(self.buffer) == len(self.sent)


TestBuffer = Buffer.TestCase
