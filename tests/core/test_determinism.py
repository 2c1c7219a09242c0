"""The same seed gives the same run, in any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from p2pfl_net.core.events import Ask, ModelPublished
from p2pfl_net.core.ids import TaskDigest
from tests.core.network import Network

ROOT = Path(__file__).parents[2]
TASK = TaskDigest("7" * 64)


def digest_of_a_run(seed: int) -> str:
    """A digest over every output of ten peers that join, publish, collect, die, stop and lose messages."""
    network = Network(seed, loss=0.05)
    chain = network.chain(10)
    for peer in chain:
        network.handle(peer, ModelPublished(TASK, 1))
    network.run(5)
    for peer in chain:
        network.handle(peer, Ask(1, 3, 5.0, TASK))
    network.run(0.01)
    network.kill(chain[3])
    network.stop(chain[5])
    network.run(10)
    digest = hashlib.sha256()
    for peer in chain:
        for at, output in peer.outputs:
            digest.update(f"{peer.name} {at!r} {output!r}\n".encode())
    return digest.hexdigest()


def in_another_process(seed: int, hash_seed: str) -> str:
    code = f"from tests.core.test_determinism import digest_of_a_run; print(digest_of_a_run({seed}))"
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "state", ROOT / "proto"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_the_same_seed_gives_the_same_run_under_any_hash_seed() -> None:
    here = digest_of_a_run(7)
    assert [in_another_process(7, hash_seed) for hash_seed in ("0", "1", "4242")] == [here] * 3


def test_another_seed_gives_another_run() -> None:
    assert digest_of_a_run(7) != digest_of_a_run(8)
