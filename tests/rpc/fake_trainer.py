"""A trainer of the state contract that does not train: it asks for models and checks what it gets."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from p2pfl_state import atomic, lock, markers
from p2pfl_state.layout import StateDir
from p2pfl_state.manifest import read_header
from p2pfl_state.markers import AggregateAnswer, AggregateRequest, FetchedModel, Refusal

from tests.processes import PATIENCE_S, wait_for
from tests.rpc.model_files import TASK, digest_of


class FakeTrainer:
    """Holds `trainer.lock` for its life. A context manager."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.instance = markers.new_instance()
        self.round = 0
        self._lock = lock.ProcessLock(state.trainer_lock)

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def die(self) -> None:
        """What a killed trainer leaves: everything but the lock."""
        self._lock.release()

    def request(
        self,
        fan_out: int = 1,
        *,
        deadline_s: float = 30.0,
        task: str | None = TASK.digest,
        want_task: bool = False,
        delete_below: int = 0,
        refused: tuple[Refusal, ...] = (),
    ) -> None:
        """Writes the request of the next round."""
        self.round += 1
        markers.write_request(
            self.state,
            AggregateRequest(
                self.instance, self.round, fan_out, deadline_s, task, want_task, delete_below, refused
            ),
        )

    def answer(self) -> AggregateAnswer | None:
        """The answer to the last request, if it is there; its files then are checked."""
        answer = markers.read_answer(self.state)
        if answer is None or (answer.instance, answer.round) != (self.instance, self.round):
            return None
        for model in answer.models:
            self.check(model)
        return answer

    def wait_files(self, names: set[str]) -> None:
        """Waits until the round's folder holds exactly these: what was cancelled goes a moment later."""
        wait_for(lambda: self.files() == names, what=f"the files of round {self.round} being {len(names)}")

    def wait_answer(self, timeout_s: float = PATIENCE_S) -> AggregateAnswer:
        return wait_for(self.answer, timeout_s, f"the answer to round {self.round}")

    def ask(
        self,
        fan_out: int = 1,
        *,
        deadline_s: float = 30.0,
        task: str | None = TASK.digest,
        want_task: bool = False,
        delete_below: int = 0,
    ) -> AggregateAnswer:
        """One round: the request and its answer."""
        self.request(
            fan_out, deadline_s=deadline_s, task=task, want_task=want_task, delete_below=delete_below
        )
        return self.wait_answer()

    def check(self, model: FetchedModel) -> None:
        """The file is under its final name, has the digest and size told, and is a whole model."""
        path = self.state.fetched_model(self.round, model.peer_id)
        assert path.stat().st_size == model.size_bytes
        assert digest_of(path) == model.file_digest
        assert read_header(path).manifest().weights == model.manifest.weights

    def files(self, round_number: int | None = None) -> set[str]:
        """The names in a round's folder."""
        folder = self.state.round_dir(self.round if round_number is None else round_number)
        return {path.name for path in folder.iterdir()} if folder.exists() else set()

    def rounds(self) -> set[int]:
        """The rounds of which there is a folder."""
        return {int(path.name) for path in self.state.aggregation.iterdir()}


def names_of(answer: AggregateAnswer) -> set[str]:
    """The file names that an answer promises."""
    return {f"{model.peer_id}.safetensors" for model in answer.models}


def last_request_unanswered(state: StateDir) -> bool:
    """Whether no answer to the request on disk is there."""
    request = markers.read_request(state)
    answer = markers.read_answer(state)
    assert request is not None
    return answer is None or (answer.instance, answer.round) != (request.instance, request.round)


def damage(state: StateDir) -> None:
    """Replaces the published model by something that is none."""
    atomic.write_bytes(state.model, b"not a model", durable=False)
