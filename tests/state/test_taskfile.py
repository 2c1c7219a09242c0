"""A task that is taken can be written again."""

from __future__ import annotations

import json

import pytest
from p2pfl_state.errors import MalformedFile
from p2pfl_state.taskfile import MAX_TASK_BYTES, TaskFile


@pytest.mark.parametrize("growing", ['"é"', "1e15"])
def test_a_task_that_grows_past_the_bound_when_written_is_malformed(growing: str) -> None:
    """It comes as UTF-8 and in short numbers, and goes as ASCII and in long ones."""
    descriptor = json.dumps({"architecture": {"name": "mlp"}})[:-1]

    def task(count: int) -> bytes:
        values = ",".join([growing] * count)
        return (
            f'{{"contract": 1, "descriptor": {descriptor}, "later": [{values}]}}, "source": null}}'.encode()
        )

    small, large = task(10), task(MAX_TASK_BYTES // 8)
    assert TaskFile.parse(TaskFile.parse(small).encode()) == TaskFile.parse(small)
    assert len(large) <= MAX_TASK_BYTES
    with pytest.raises(MalformedFile, match="when it is written again"):
        TaskFile.parse(large)
