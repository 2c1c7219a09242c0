"""Whose directory it is, and whether it can be used at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from p2pfl_state import home
from p2pfl_state.errors import DirectoryUnusable, ForeignDirectory, MalformedFile, UnknownContract
from p2pfl_state.layout import StateDir

from tests.state.conftest import Mount, fill


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    made = StateDir(tmp_path / "state" / "8001")
    home.prepare(made)
    return made


def test_the_first_use_claims_and_later_ones_agree(state: StateDir) -> None:
    assert not home.check(state)
    home.claim(state)
    assert home.check(state)
    before = state.home.read_bytes()
    home.claim(state)
    assert state.home.read_bytes() == before


def test_the_probe_follows_no_link(tmp_path: Path) -> None:
    precious, state = tmp_path / "precious", StateDir(tmp_path / "state")
    precious.write_bytes(b"precious")
    state.root.mkdir()
    (state.root / ".writable.tmp").symlink_to(precious)
    home.prepare(state)
    assert precious.read_bytes() == b"precious"


def test_what_is_made_is_for_its_owner_alone(state: StateDir) -> None:
    assert stat.S_IMODE(state.root.stat().st_mode) == 0o700
    state.root.chmod(0o750)
    home.prepare(state)
    assert stat.S_IMODE(state.root.stat().st_mode) == 0o750, "its owner's choice"


def test_a_renamed_directory_is_still_the_same(state: StateDir) -> None:
    home.claim(state)
    moved = StateDir(state.root.with_name("9001"))
    state.root.rename(moved.root)
    assert home.check(moved)


def test_a_copy_is_refused_with_the_remedy(state: StateDir) -> None:
    home.claim(state)
    copy = StateDir(state.root.with_name("copy"))
    shutil.copytree(state.root, copy.root)
    for use in (home.check, home.claim):
        with pytest.raises(ForeignDirectory, match=r"copy of another peer's directory.*delete home\.json"):
            use(copy)
    copy.home.unlink()
    home.claim(copy)
    assert home.check(copy)


def test_another_hosts_directory_is_refused(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    home.claim(state)
    monkeypatch.setattr(home, "host_id", lambda: "another machine")
    remedy = r"belongs to another host: choose another --state.*container made anew.*delete home\.json"
    with pytest.raises(ForeignDirectory, match=remedy) as caught:
        home.check(state)
    assert "\n" not in str(caught.value)
    state.home.unlink()
    home.claim(state)
    assert home.check(state)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"contract": 1, "host": 7, "inode": 1}'])
def test_a_damaged_home_file_is_named(state: StateDir, data: bytes) -> None:
    state.home.write_bytes(data)
    with pytest.raises(MalformedFile, match=r"home\.json"):
        home.check(state)


def test_a_home_file_of_another_contract_is_refused(state: StateDir) -> None:
    home.claim(state)
    state.home.write_text(json.dumps({**json.loads(state.home.read_text()), "contract": 2}))
    with pytest.raises(UnknownContract):
        home.check(state)


def test_a_full_disk_is_one_line(small_disk: tuple[Path, Mount]) -> None:
    state = StateDir(small_disk[0] / "8001")
    home.prepare(state)
    fill(small_disk[0])
    with pytest.raises(DirectoryUnusable, match="no space left"):
        home.claim(state)
    assert not state.home.exists()


def test_a_read_only_disk_is_one_line(small_disk: tuple[Path, Mount]) -> None:
    folder, mount = small_disk
    state = StateDir(folder / "8001")
    home.prepare(state)
    mount("remount,ro")
    for root in (state.root, folder / "9001"):
        with pytest.raises(DirectoryUnusable, match=r"cannot be written.*choose another --state"):
            home.prepare(StateDir(root))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_directory_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DirectoryUnusable, match="choose another --state"):
            home.prepare(StateDir(tmp_path / "8001"))
    finally:
        tmp_path.chmod(0o700)


def test_a_path_through_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryUnusable, match="choose another --state"):
        home.prepare(StateDir(tmp_path / "file" / "8001"))


def test_this_machine_has_a_lasting_name() -> None:
    assert home.host_id() == home.host_id() != ""
