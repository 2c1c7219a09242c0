"""Models far larger than memory should be: both daemons stay small."""

from __future__ import annotations

import json
import os

import pytest
from p2pfl_state.manifest import Manifest
from p2pfl_state.taskfile import write_task

from tests.rpc.fake_trainer import FakeTrainer
from tests.rpc.model_files import TASK, digest_of, header_bytes
from tests.rpc.peers import Network, Peer, run_command

SIZE_BYTES = 6_000_000_000
RESIDENT_KB = 100_000
DEADLINE_S = 540.0


def publish_sparse(peer: Peer) -> None:
    """A sound model of 6 GB of zeros, of which the disk holds but the header."""
    draft = peer.state.model.with_name("draft")
    said = Manifest(1, 100, TASK.digest, "0" * 64)
    with open(draft, "wb") as file:
        file.write(header_bytes(said, SIZE_BYTES))
        file.truncate(file.tell() + SIZE_BYTES)
    write_task(peer.state.task, TASK)
    os.replace(draft, peer.state.model)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_gigabytes_through_two_small_daemons(network: Network) -> None:
    asker, source = network.chain(2)
    publish_sparse(source)
    asker.wait_published([source.peer_id])
    out = network.folder / "got"
    with FakeTrainer(asker.state) as trainer:
        try:
            trainer.request(deadline_s=DEADLINE_S)
            answer = trainer.wait_answer(DEADLINE_S)
            assert [model.size_bytes > SIZE_BYTES for model in answer.models] == [True]
            assert answer.models[0].file_digest == digest_of(source.state.model)
            trainer.ask(delete_below=2)
            said = run_command("get", source.address, "--out", out, "--json", timeout_s=DEADLINE_S)
            assert json.loads(said.stdout)["file_digest"] == answer.models[0].file_digest
            assert max(asker.resident_peak_kb(), source.resident_peak_kb()) < RESIDENT_KB
        finally:
            out.unlink(missing_ok=True)
            for path in asker.state.aggregation.glob("*/*"):
                path.unlink()
