"""Whatever bytes come, a decoder takes them or says in one line what is wrong with them, and nothing else.

`make fuzz` goes on from here, guided by which lines of the decoders its inputs reach.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import damaged
from tests.fuzz.table import all_targets
from tests.fuzz.target import Target

ANYTHING, NEARLY = 100, 300
"""Examples of bytes from nowhere, and of damaged ones: the deep code is behind those."""

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number:Warning")
"""What the cryptography library thinks of a certificate that nobody but us accepts anyway."""

Find = Callable[[str], Target]

with tempfile.TemporaryDirectory() as _folder:
    NAMES = [target.name for target in all_targets(Path(_folder))]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """A function and no table, which Hypothesis would print whole."""
    return {target.name: target for target in all_targets(tmp_path_factory.mktemp("fuzz"))}.__getitem__


def test_each_target_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_are_taken(find: Find, name: str) -> None:
    """A seed that is refused would lead nowhere: the fuzzers would try the first check only."""
    assert all(find(name).check(seed) for seed in find(name).seeds)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=ANYTHING)
@given(data=st.binary(max_size=300))
@example(data=b"")
def test_any_bytes_are_taken_or_refused(find: Find, name: str, data: bytes) -> None:
    find(name).check(data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=NEARLY)
@given(seed=st.integers(0, 2**64 - 1))
def test_nearly_right_bytes_are_taken_or_refused(find: Find, name: str, seed: int) -> None:
    target, drawn = find(name), random.Random(seed)
    data = damaged(target, drawn.choice(target.seeds), drawn)
    try:
        target.check(data)
    except BaseException as error:
        error.add_note(f"{name}: {data!r}")
        raise
