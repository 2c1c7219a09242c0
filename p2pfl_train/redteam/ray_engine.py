"""The same simulation over a Ray cluster: each worker has a crew, and this process what all see.

Ray is an extra (`pip install .[ray]`). Draws, attacks and batches depend on the seed, the round and the
peer alone, so the number of workers changes nothing but the rounding of sums.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pfl_train.errors import UsageError
from p2pfl_train.redteam.crew import Crew
from p2pfl_train.redteam.options import Setting
from p2pfl_train.redteam.simulation import members
from p2pfl_train.rules.definitions import Matrix

NO_RAY = "--engine ray needs Ray: pip install '.[ray]'"
WORKER_MISSED = "a Ray worker was lost: look into the cluster's logs, and start again"


class RayCrew:
    """A crew as a worker has it: arrays in and out, which Ray hands over without a copy."""

    def begin(self, setting: Setting, mine: Sequence[int]) -> Any:
        """The weights that all start from. Not in the constructor: what fails there Ray does not hand on."""
        self._crew = Crew(setting, mine)
        return self._crew.initial.numpy(), self._crew.variances, self._crew.parameters

    def train(self, number: int) -> Any:
        rows, losses = self._crew.train(number)
        return rows.numpy(), losses

    def settle(self, published: Any, distances: Matrix | None, number: int) -> None:
        # Shared memory is read-only, and torch wants to know that nothing writes to it.
        self._crew.settle(torch.from_numpy(np.array(published)), distances, number)

    def evaluate(self, indices: Sequence[int], everything: bool) -> list[float]:
        return self._crew.evaluate(indices, everything=everything)


class RayEngine:
    """Spreads the peers evenly over the workers."""

    def __init__(self, setting: Setting, workers: int, address: str | None) -> None:
        """Connects to the cluster at `address`, or starts one here. Raises as `Crew` does, and `UsageError`.

        `address`: as for `ray.init`; None: a local one with as many processors as workers.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        try:
            ray: Any = importlib.import_module(
                "ray"
            )  # an extra: with or without its types, they do not count
        except ImportError:
            raise UsageError(NO_RAY) from None
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            here = {} if address else {"num_cpus": workers, "include_dashboard": False}
            try:
                ray.init(address=address, log_to_driver=False, **here)
            except (ConnectionError, ValueError) as error:
                raise UsageError(f"no Ray cluster answers at {address}: {error}") from None
        parts = [members(setting)[index::workers] for index in range(workers)]
        self._parts = [part for part in parts if part]
        self._crews: list[Any] = []
        try:
            actor = ray.remote(num_cpus=1)(RayCrew)
            self._crews = [actor.remote() for _ in self._parts]
            begun = [
                crew.begin.remote(setting, part) for crew, part in zip(self._crews, self._parts, strict=True)
            ]
            initial, self.variances, self.parameters = self._get(begun)[0]
        except BaseException:
            self.close()
            raise
        self._initial = torch.from_numpy(np.array(initial))

    @property
    def members(self) -> tuple[int, ...]:
        return tuple(index for part in self._parts for index in part)

    @property
    def initial(self) -> Tensor:
        return self._initial

    def train(self, number: int) -> tuple[Tensor, list[float]]:
        """See `Crew`, as the rest."""
        told = self._get([crew.train.remote(number) for crew in self._crews])
        rows = torch.from_numpy(np.concatenate([rows for rows, _ in told]))
        return rows, [loss for _, losses in told for loss in losses]

    def settle(self, published: Tensor, distances: Matrix | None, number: int) -> None:
        shared = self._ray.put(published.numpy())
        self._get([crew.settle.remote(shared, distances, number) for crew in self._crews])

    def evaluate(self, indices: Sequence[int], *, everything: bool) -> list[float]:
        told = self._get([crew.evaluate.remote(list(indices), everything) for crew in self._crews])
        wanted = set(indices)
        accuracy = {
            index: value
            for part, values in zip(self._parts, told, strict=True)
            for index, value in zip([i for i in indices if i in set(part)], values, strict=True)
        }
        return [accuracy[index] for index in indices if index in wanted]

    def _get(self, promises: list[Any]) -> list[Any]:
        try:
            return list(self._ray.get(promises))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayActorError:
            raise UsageError(WORKER_MISSED) from None

    def close(self) -> None:
        for crew in self._crews:
            self._ray.kill(crew)
        if self._started:
            self._ray.shutdown()
