"""Training goes on: trainers that publish and ask for models, whatever happens to the network."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from p2pfl_state import atomic
from p2pfl_state.markers import AggregateAnswer

from tests.processes import PATIENCE_S, wait_for
from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import make_model, publish
from tests.rpc.peers import Peer

MODEL_BYTES = 20_000
DEADLINE_S = 20.0
"""Of a round: much longer than it takes to find out that a peer is silent and to ask another."""
GRACE_S = 1.0
"""A round that is not answered so long after its deadline has failed."""
AT_ONCE = 3
"""Rounds at once: two processors should have time for the network too."""
PAUSE_S = 0.2
"""Of those who ask, between two turns of all their peers: likewise."""


class Training:
    """A trainer for each of some peers. A context manager; leaving it raises what failed.

    A round fails that is unanswered a second after its deadline, or brings no model: there always must be
    another living peer that each of these reaches.
    """

    def __init__(self, peers: Sequence[Peer], *, fan_out: int = 2) -> None:
        self._fan_out = fan_out
        self._trainers = {peer: FakeTrainer(peer.state) for peer in peers}
        self._paused: set[Peer] = set()
        self._answered: Counter[Peer] = Counter()
        self._ended = threading.Event()
        self._locks = ExitStack()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="training")
        self._asking: list[Future[None]] = []

    def __enter__(self) -> Self:
        for number, (peer, trainer) in enumerate(self._trainers.items()):
            publish(peer.state, make_model(number, MODEL_BYTES))
            self._locks.enter_context(trainer)
        ids = {peer.peer_id for peer in self._trainers}
        for peer in self._trainers:
            peer.wait_published(ids - {peer.peer_id})
        self._asking = [
            self._pool.submit(self._ask_in_turn, list(self._trainers)[n::AT_ONCE]) for n in range(AT_ONCE)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pool.shutdown()
        self._locks.close()
        self._raise_failure()

    def pause(self, *peers: Peer) -> None:
        """Asks for nothing more, and waits for nothing more, in these peers: call it before they suffer."""
        self._paused.update(peers)

    def resume(self, *peers: Peer) -> None:
        self._paused.difference_update(peers)

    def wait_rounds(self, peers: Iterable[Peer], count: int = 1) -> None:
        """Waits until each of these has begun and ended so many rounds more."""
        before = self._answered.copy()

        def answered(peer: Peer) -> bool:
            self._raise_failure()
            return self._answered[peer] > before[peer] + count  # one may have begun already

        for peer in peers:
            wait_for(lambda peer=peer: answered(peer), what=f"{count} rounds of {peer.state.root}")  # type: ignore[misc]

    def wait_while_training(
        self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S
    ) -> None:
        """Waits for `condition`, or until a round has failed."""

        def met() -> bool:
            self._raise_failure()
            return condition()

        wait_for(met, timeout_s, what)

    def _raise_failure(self) -> None:
        for asking in self._asking:
            if asking.done():
                asking.result()

    # the threads -----------------------------------------------------------------------------------

    def _ask_in_turn(self, peers: Sequence[Peer]) -> None:
        while not self._ended.wait(PAUSE_S):
            for peer in peers:
                if peer not in self._paused and not self._ended.is_set():
                    self._round(peer)

    def _round(self, peer: Peer) -> None:
        trainer = self._trainers[peer]
        trainer.request(self._fan_out, deadline_s=DEADLINE_S, delete_below=trainer.round)

        def over() -> tuple[AggregateAnswer | None] | None:
            answer = trainer.answer()
            is_abandoned = peer in self._paused or self._ended.is_set()
            return (answer,) if answer is not None or is_abandoned else None

        what = f"the answer to round {trainer.round} of {peer.state.root}"
        (answer,) = wait_for(over, DEADLINE_S + GRACE_S, what)
        if answer is None:  # nobody waits for it any more
            return
        assert answer.models or peer in self._paused, f"no model in {answer} of {peer.state.root}"
        version = trainer.round + 1
        model = make_model(version, MODEL_BYTES, version=version)
        atomic.write_bytes(peer.state.model, model.data, durable=False)
        self._answered[peer] += 1
