"""A reader sees the old or the new, whatever happens to the writer; nobody sees a traceback."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from p2pfl_state import atomic
from p2pfl_state.atomic import JsonLines, read_bounded, read_json_lines, replacing, write_bytes
from p2pfl_state.errors import DirectoryUnusable, MalformedFile
from p2pfl_state.layout import temporary

from tests.state.conftest import Mount, fill

SIZE_BYTES = 300_000
OLD, NEW = b"A" * SIZE_BYTES, b"B" * SIZE_BYTES

WRITE_FOREVER = """
import sys
from pathlib import Path
from p2pfl_state.atomic import write_bytes
while True:
    for letter in b"AB":
        write_bytes(Path(sys.argv[1]), bytes([letter]) * int(sys.argv[2]))
"""

DIE_AT = """
import os, signal, sys
from pathlib import Path
from p2pfl_state import atomic
real = getattr(os, sys.argv[2])
calls = iter(range(int(sys.argv[3])))
def die(*args):
    if next(calls, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(os, sys.argv[2], die)
atomic.write_bytes(Path(sys.argv[1]), b"B" * int(sys.argv[4]))
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, OLD)
    seed = random.randrange(2**32)
    reads = random.Random(seed)
    for _ in range(12):
        command = [sys.executable, "-c", WRITE_FOREVER, str(path), str(SIZE_BYTES)]
        with subprocess.Popen(command) as writer:
            first = path.stat().st_ino
            while path.stat().st_ino == first:
                assert writer.poll() is None
            for _ in range(reads.randrange(1, 150)):
                assert path.read_bytes() in (OLD, NEW), f"seed {seed}"
            writer.kill()
        assert path.read_bytes() in (OLD, NEW), f"seed {seed}"
    write_bytes(path, NEW)
    assert path.read_bytes() == NEW
    assert not temporary(path).exists()


@pytest.mark.parametrize(
    ("call", "calls_before", "left"),
    [("open", 0, OLD), ("fsync", 0, OLD), ("replace", 0, OLD), ("open", 1, NEW), ("fsync", 1, NEW)],
    ids=["before the draft", "before the sync", "before the rename", "before the folder", "before its sync"],
)
def test_a_crash_at_each_step(tmp_path: Path, call: str, calls_before: int, left: bytes) -> None:
    path = tmp_path / "file"
    write_bytes(path, OLD)
    command = [sys.executable, "-c", DIE_AT, str(path), call, str(calls_before), str(SIZE_BYTES)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert path.read_bytes() == left
    write_bytes(path, NEW)
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_a_writer_that_gives_up_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_bytes(path, OLD)

    def give_up() -> None:
        with replacing(path) as draft:
            draft.write_bytes(NEW)
            raise error

    with pytest.raises(type(error)):
        give_up()
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file"]


def test_what_another_account_laid_there_is_not_written_through(tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_bytes(b"precious")
    temporary(path).symlink_to(precious)
    atomic.write_bytes(path, b"new", mode=0o600)
    assert (precious.read_bytes(), path.read_bytes()) == (b"precious", b"new")
    temporary(path).write_bytes(b"")
    temporary(path).chmod(0o666)
    atomic.write_bytes(path, b"newer", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_mode_is_that_of_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_bytes(path, b"secret", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_on_a_full_disk_the_old_content_stays_and_the_error_is_one_line(
    small_disk: tuple[Path, Mount],
) -> None:
    folder, _ = small_disk
    path = folder / "file"
    write_bytes(path, b"old")
    filler = fill(folder)
    with pytest.raises(DirectoryUnusable, match="no space left") as caught:
        write_bytes(path, NEW[:50_000])
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert not temporary(path).exists()
    filler.unlink()
    write_bytes(path, NEW[:50_000])
    assert path.read_bytes() == NEW[:50_000]


def test_a_disk_that_turned_read_only_is_one_line(small_disk: tuple[Path, Mount]) -> None:
    folder, mount = small_disk
    path = folder / "file"
    write_bytes(path, b"old")
    mount("remount,ro")
    with pytest.raises(DirectoryUnusable, match="cannot be written"):
        write_bytes(path, b"new")
    with pytest.raises(DirectoryUnusable, match="cannot be written"):
        atomic.remove(path)
    with pytest.raises(DirectoryUnusable, match="cannot be written"):
        JsonLines(path)
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"")
    for path in (tmp_path / "folder" / "file", tmp_path / "missing" / "file"):
        with pytest.raises(DirectoryUnusable):
            write_bytes(path, b"new")


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_bounded(path, 3) is None
    path.write_bytes(b"abc")
    assert read_bounded(path, 3) == b"abc"
    with pytest.raises(MalformedFile, match="larger than 2 bytes"):
        read_bounded(path, 2)
    with pytest.raises(DirectoryUnusable):
        read_bounded(tmp_path, 3)


# jsonl ---------------------------------------------------------------------------------------------


@given(
    records=st.lists(st.integers(0, 9), min_size=1, max_size=5), cut=st.integers(1, 40), more=st.booleans()
)
def test_a_torn_last_line_costs_that_line_only(
    tmp_path_factory: pytest.TempPathFactory, records: list[int], cut: int, more: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "events.jsonl"
    with JsonLines(path) as lines:
        for number in records:
            lines.append({"event": "é", "number": number})
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = [json.loads(line) for line in whole[: -cut or None].split(b"\n") if line.endswith(b"}")]
    assert list(read_json_lines(path)) == kept
    if more:
        with JsonLines(path) as lines:
            lines.append({"event": "next"})
        assert list(read_json_lines(path)) == [*kept, {"event": "next"}]


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b"7", b'{"a":', b"", b"{" * 5000, b"9" * 5000])
def test_foreign_lines_are_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert list(read_json_lines(path)) == [{"a": 1}, {"a": 2}]
    assert list(read_json_lines(tmp_path / "missing")) == []


def test_each_line_is_flushed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JsonLines(path) as lines:
        for number in range(3):
            lines.append({"number": number})
            assert list(read_json_lines(path))[-1] == {"number": number}


def test_a_log_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(
    small_disk: tuple[Path, Mount],
) -> None:
    folder, _ = small_disk
    path = folder / "events.jsonl"
    with JsonLines(path) as lines:
        lines.append({"number": 0})
        filler = fill(folder)
        with pytest.raises(DirectoryUnusable, match="no space left"):
            lines.append({"text": "x" * 10_000})
        filler.unlink()
        lines.append({"number": 1})
    assert [record.get("number") for record in read_json_lines(path)] == [0, 1]


def test_a_log_on_a_full_disk_can_be_closed_and_opened_again(small_disk: tuple[Path, Mount]) -> None:
    folder, _ = small_disk
    path = folder / "events.jsonl"
    with JsonLines(path) as lines:
        lines.append({"number": 0})
        filler = fill(folder)
        with pytest.raises(DirectoryUnusable, match="no space left"):
            lines.append({"text": "x" * 10_000})
    with JsonLines(path) as lines:
        filler.unlink()
        lines.append({"number": 1})
    assert list(read_json_lines(path)) == [{"number": 0}, {"number": 1}]
