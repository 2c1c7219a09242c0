"""Tries every decoder with damaged bytes, led by which branches they reach (`make fuzz`).

The decoders are the rows of `tests/fuzz/table.py`; the first byte of an input chooses one. Without atheris
the same inputs are tried blindly.

Usage: python -m scripts.fuzz [--seconds 60] [--out report/fuzz]
       python -m scripts.fuzz report/fuzz/crash-...    # what was found, once more
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.target import Target

MAX_INPUT_BYTES = 1 << 16
MAX_INPUT_S = 10
"""A guess, on a machine that does other things too; the slowest decoder takes some milliseconds."""
MAX_MEMORY_MB = 2048
"""Of the whole process: torch, coverage and the inputs that led somewhere take a third of it."""
ANEW_SHARE, GUIDED_SHARE = 0.2, 0.4
"""Of inputs that begin at a seed of any decoder, so that none is forgotten; of those that libFuzzer mutates,
which knows what was compared with what. The other mutations know the format."""
GRACE_S = 60
FOUND = 1
OURS = ["p2pfl_net", "p2pfl_state", "p2pfl_train"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("report/fuzz"), help="where inputs go that break")
    parser.add_argument("--guided", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("inputs", type=Path, nargs="*", help="inputs to try once more")
    options = parser.parse_args()
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="p2pfl-fuzz-", dir=shared_memory if shared_memory.is_dir() else None
    ) as name:
        folder = Path(name)
        if options.guided is not None:
            _fuzz_guided(options.guided, options.seconds, options.out)
        elif options.inputs:
            _try_again(options.inputs, folder)
        else:
            options.out.mkdir(parents=True, exist_ok=True)
            if importlib.util.find_spec("atheris") is None:
                print("atheris is not installed here (it has wheels for few Pythons): inputs are not guided")
                _fuzz_blindly(options.seconds, options.out, folder)
            else:
                _run_guided(options.seconds, options.out, folder)


def _table(folder: Path) -> tuple[Target, ...]:
    from tests.fuzz.table import all_targets  # late: where its imports are counted

    folder.mkdir(exist_ok=True)
    targets = all_targets(folder)
    assert len(targets) < 256, "one byte chooses the target"
    return targets


def _chosen(targets: Sequence[Target], data: bytes) -> Target:
    return targets[data[0] % len(targets)]


def _try_again(inputs: Sequence[Path], folder: Path) -> None:
    targets = _table(folder / "files")
    for path in inputs:
        data = path.read_bytes()
        target = _chosen(targets, data)
        print(f"{path}: {target.name}, {data[1:]!r}")
        print("taken" if target.check(data[1:]) else "refused")


def _fuzz_blindly(seconds: int, out: Path, folder: Path) -> None:
    from tests.fuzz.mutations import damaged

    targets = _table(folder / "files")
    seed = int.from_bytes(os.urandom(8))
    drawn = random.Random(seed)
    until, tries = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        index = tries % len(targets)
        data = damaged(targets[index], drawn.choice(targets[index].seeds), drawn)
        try:
            targets[index].check(data)
        except Exception:  # noqa: BLE001 - whatever it is, it was found
            traceback.print_exc()
            path = out / f"crash-{hashlib.sha1(data).hexdigest()}"
            path.write_bytes(bytes([index]) + data)
            _say_found(path, targets[index].name)
        tries += 1
    print(f"{tries} inputs in {seconds} s ({tries / seconds:.0f} a second), {len(targets)} decoders")


def _say_found(path: Path, name: str) -> None:
    print(f"{name} breaks: .venv/bin/python -m scripts.fuzz {path}")
    sys.exit(FOUND)


# guided: libFuzzer ends its process without a word to Python, so it has one of its own -------------


def _run_guided(seconds: int, out: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "scripts.fuzz", "--guided", str(folder)]
    command += ["--seconds", str(seconds), "--out", str(out)]
    log = out / "log.txt"
    with open(log, "wb") as file:
        try:
            code = subprocess.run(command, stderr=file, stdout=file, timeout=seconds + GRACE_S).returncode
        except subprocess.TimeoutExpired:
            sys.exit(f"it did not end in time: {log}")
    text = log.read_text(errors="replace")
    tries = json.loads((folder / "tries.json").read_text()) if (folder / "tries.json").exists() else {}
    for name, (tried, taken) in tries.items():
        print(f"  {name:<28} {tried:>8} tried {taken:>8} taken")
    found = re.search(r"Test unit written to (\S+)", text)
    if found is not None:
        print("\n".join(text.splitlines()[-40:]))
        _say_found(Path(found[1]), "a decoder")
    if code != 0:
        sys.exit(f"libFuzzer ended with {code}: {log}")
    total = sum(tried for tried, _ in tries.values())
    branches = [int(count) for count in re.findall(r"cov: (\d+)", text)]
    print(
        f"{total} inputs in {seconds} s ({total / seconds:.0f} a second), {len(tries)} decoders, none broke; "
        f"{branches[-1]} branches reached, {branches[0]} of them by the valid inputs alone"
    )


def _fuzz_guided(folder: Path, seconds: int, out: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=OURS, enable_loader_override=False):
        targets = _table(folder / "files")
    from tests.fuzz.mutations import damaged

    corpus = folder / "corpus"
    corpus.mkdir()
    for index, target in enumerate(targets):
        for number, seed in enumerate(target.seeds):
            (corpus / f"{index}-{number}").write_bytes(bytes([index]) + seed)
    tries = {target.name: [0, 0] for target in targets}
    told_at = time.monotonic()

    def try_one(data: bytes) -> None:
        nonlocal told_at
        if not data:
            return
        target = _chosen(targets, data)
        counts = tries[target.name]
        counts[0] += 1
        counts[1] += target.check(data[1:])
        now = time.monotonic()
        if now - told_at >= 1.0:
            told_at = now
            (folder / "tries.json").write_text(json.dumps(tries))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        drawn = random.Random(seed)
        way = drawn.random()
        if not data or way < ANEW_SHARE:
            index = drawn.randrange(len(targets))
            data = bytes([index]) + drawn.choice(targets[index].seeds)
        elif way < ANEW_SHARE + GUIDED_SHARE:
            return data[:1] + bytes(atheris.Mutate(data[1:], max_size - 1))
        return (data[:1] + damaged(_chosen(targets, data), data[1:], drawn))[:max_size]

    arguments = [
        "fuzz",
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={MAX_INPUT_S}",
        f"-rss_limit_mb={MAX_MEMORY_MB}",
        f"-artifact_prefix={out}/",
        str(corpus),
    ]
    atheris.Setup(arguments, try_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
