"""Averaging five models of 100 MB from files, beside a running mean of tensors already in memory.

Usage: python -m scripts.bench.averaging
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import torch
from p2pfl_state.manifest import Manifest
from torch import nn

from p2pfl_train.aggregate import Contribution, aggregate
from p2pfl_train.tensors import layout_of, stored_tensors
from p2pfl_train.weights import open_checked, save_model
from scripts.bench.harness import TASK, Result, at_most, median, report

MODELS = 5
LAYERS = 6
WIDTH = 2041
"""Six layers of 2041 x 2041 float32: 100 MB."""
REPEATS = 5


def make_model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def running_mean_s(own: dict[str, torch.Tensor], others: list[dict[str, torch.Tensor]]) -> float:
    """The yardstick: in place, one addition a model and tensor."""
    started = time.perf_counter()
    for name, tensor in own.items():
        tensor.mul_(1 / (MODELS + 1))
        for other in others:
            tensor.add_(other[name], alpha=1 / (MODELS + 1))
    return time.perf_counter() - started


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    torch.set_num_threads(1)
    model = make_model()
    own = stored_tensors(model)
    model_mb = sum(tensor.numel() * tensor.element_size() for tensor in own.values()) / 1e6
    with tempfile.TemporaryDirectory(prefix="p2pfl-bench-") as folder, torch.no_grad():
        paths, manifests = [], []
        for index in range(MODELS):
            for tensor in own.values():
                tensor.normal_(0, 0.01)
            path = Path(folder) / f"{index}.safetensors"
            manifests.append(save_model(path, model, Manifest(1, 100, TASK, "0" * 64)))
            paths.append(path)
        before_mb = peak_mb()
        verified, averaged = [], []
        for _ in range(REPEATS):
            started = time.perf_counter()
            files = [
                open_checked(path, layout_of(own), manifest)
                for path, manifest in zip(paths, manifests, strict=True)
            ]
            verified.append(time.perf_counter() - started)
            started = time.perf_counter()
            aggregate(own, 100, [Contribution(file, 100) for file in files])
            averaged.append(time.perf_counter() - started)
        extra_mb = peak_mb() - before_mb
    with torch.no_grad():
        others = [{name: torch.randn_like(tensor) for name, tensor in own.items()} for _ in range(MODELS)]
        yardstick = [running_mean_s(own, others) for _ in range(REPEATS)]
    report(
        f"averaging {MODELS} models of {model_mb:.0f} MB, one thread, {REPEATS} runs",
        [
            Result("running mean in memory, median", median(yardstick), "s"),
            Result("average from mapped files, median", median(averaged), "s"),
            at_most("ratio", median(averaged) / median(yardstick), "", 1.5),
            Result("checking before it (digest, NaN), median", median(verified), "s"),
            at_most("peak memory over the trainer's own, in models", extra_mb / model_mb, "", 1.3),
        ],
    )


if __name__ == "__main__":
    main()
