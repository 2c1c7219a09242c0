"""From the description of an architecture to a function that makes the model.

A registry name with JSON arguments is data, and may come from anywhere. A Python file is code: it
runs only when it is the user's own, or when its SHA-256 is one that the user has accepted. What is
built is first built on torch's meta device, which allocates nothing, so that a description from the
network cannot make us allocate a monster.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from p2pfl_state.manifest import canonical_json
from torch import nn

from p2pfl_train import networks
from p2pfl_train.errors import ModelError, SourceNotAccepted, UsageError
from p2pfl_train.paths import expanded
from p2pfl_train.task import Architecture

Builder = Callable[..., nn.Module]
"""(input_shape, classes, **arguments) to a module."""

REGISTRY: Mapping[str, Builder] = {
    "paper-cnn": networks.paper_cnn,
    "lenet": networks.lenet,
    "caffe-lenet": networks.caffe_lenet,
    "bank": networks.bank,
    "mlp": networks.mlp,
    "cnn-bn": networks.cnn_bn,
}
"""The models known by name. A name stands for one network for ever: it is part of the task digest."""

MAX_SOURCE_BYTES = 512 << 10
MAX_ARGUMENTS_BYTES = 16 << 10
MAX_PARAMETERS = 2_000_000_000
"""8 GB of float32. A guess at what no machine that trains here can hold several times."""
MAX_INPUT_ELEMENTS = 1 << 24
"""Numbers in one example; 16 million are a colour image of 2300 x 2300."""

DEFAULTS = {"digits": "mlp", "mnist": "paper-cnn", "fashion-mnist": "paper-cnn", "cifar10": "lenet"}


def default_model(data_name: str, input_shape: Sequence[int]) -> str:
    """The registry name for a data set: a function of what all peers share, so that they agree."""
    if data_name in DEFAULTS:
        return DEFAULTS[data_name]
    if len(input_shape) != 3 or min(input_shape[1:]) < 16:
        return "mlp"
    small_and_gray = input_shape[0] == 1 and max(input_shape[1:]) <= 64
    return "paper-cnn" if small_and_gray else "lenet"


def parse_model_arguments(items: Sequence[str]) -> dict[str, Any]:
    """The arguments in `["hidden=64", 'activation="tanh"']`; values are JSON. Raises `UsageError`."""
    arguments: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--model-arg {item[:60]!r} must be like hidden=64")
        if name in arguments:
            raise UsageError(f"--model-arg {name} is given twice")
        try:
            arguments[name] = json.loads(text)
            canonical_json(arguments)
        except (ValueError, RecursionError):
            raise UsageError(
                f"--model-arg {item[:60]}: the value must be JSON: a finite number, true, [1, 2], "
                "or a text in double quotes"
            ) from None
    return arguments


def architecture(model: str, arguments: Mapping[str, Any]) -> Architecture:
    """The architecture of a registry name, or of `file.py:Class`, whose file is read here, once.

    Raises `ModelError`.
    """
    if model in REGISTRY:
        return Architecture(model, dict(arguments))
    path, colon, name = model.rpartition(":")
    if not colon or not path.endswith(".py") or not (name.isidentifier() and name.isascii()):
        raise ModelError(f"unknown model {model[:80]!r}: use one of {', '.join(REGISTRY)}, or file.py:Class")
    try:
        with open(expanded(Path(path)), "rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)
        source = data.decode()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not a UTF-8 text file") from None
    if len(data) > MAX_SOURCE_BYTES:
        raise ModelError(f"{path} is larger than {MAX_SOURCE_BYTES >> 10} KiB: move data out of it")
    return Architecture(name, dict(arguments), source)


def model_factory(
    wanted: Architecture, input_shape: Sequence[int], classes: int, *, accepted: frozenset[str]
) -> Callable[[], nn.Module]:
    """A function that makes the model with fresh weights from torch's global random state.

    `accepted` holds the SHA-256 of sources that may run. The model is tried on an empty batch here:
    `ModelError` when it is unknown, not accepted, cannot be built, has more than `MAX_PARAMETERS`, or
    does not turn (batch, *input_shape) into (batch, classes). With `classes` 0 any output will do.
    """
    if not 1 <= len(input_shape) <= 4 or not 1 <= math.prod(input_shape) <= MAX_INPUT_ELEMENTS:
        raise ModelError(f"an input of shape {tuple(input_shape)} is beyond what is trained here")
    if len(canonical_json(dict(wanted.arguments))) > MAX_ARGUMENTS_BYTES:
        raise ModelError(f"the model's arguments are larger than {MAX_ARGUMENTS_BYTES >> 10} KiB")
    with torch.random.fork_rng(devices=[]):  # a trial must not move the seed that weights start from
        if wanted.source is None:
            make = _from_registry(wanted, tuple(input_shape), classes)
            _try(wanted, make, input_shape, classes, device="meta")
            return make
        make = _from_source(wanted, wanted.source, tuple(input_shape), classes, accepted)
        try:
            _try(wanted, make, input_shape, classes, device="meta")
        except _Oversized:
            raise
        except ModelError:  # code that looks at values cannot run on meta: then memory decides
            _try(wanted, make, input_shape, classes, device="cpu")
        return make


class _Oversized(ModelError):
    """More parameters than we are willing to allocate."""


def _from_registry(
    wanted: Architecture, input_shape: tuple[int, ...], classes: int
) -> Callable[[], nn.Module]:
    builder = REGISTRY.get(wanted.name)
    if builder is None:
        raise ModelError(f"unknown model {wanted.name[:80]!r}: this version has {', '.join(REGISTRY)}")
    if classes < 1:
        raise ModelError(f"{wanted.name} classifies, and the task has no classes: use file.py:Class")
    names = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(wanted.arguments) - set(names))
    if unknown:
        raise ModelError(
            f"{wanted.name} takes no argument {unknown[0][:40]!r}: it takes {', '.join(names) or 'none'}"
        )
    return lambda: builder(input_shape, classes, **wanted.arguments)


def _from_source(
    wanted: Architecture, source: str, input_shape: tuple[int, ...], classes: int, accepted: frozenset[str]
) -> Callable[[], nn.Module]:
    digest = hashlib.sha256(source.encode()).hexdigest()
    if digest not in accepted:
        raise SourceNotAccepted(wanted.name, digest, source, canonical_json(dict(wanted.arguments)))
    made = getattr(_execute(source, digest), wanted.name, None)
    if not callable(made):
        raise ModelError(f"the model's file defines no class {wanted.name[:80]!r}")
    offered = {"input_shape": input_shape, "classes": classes}
    try:
        takes = inspect.signature(made).parameters
    except (TypeError, ValueError):
        takes = types.MappingProxyType({})
    arguments = {name: value for name, value in offered.items() if name in takes} | dict(wanted.arguments)

    def make() -> nn.Module:
        model = made(**arguments)
        if not isinstance(model, nn.Module):
            raise ModelError(f"{wanted.name} made a {type(model).__name__}, not a torch.nn.Module")
        return model

    return make


def _execute(source: str, digest: str) -> types.ModuleType:
    """Runs exactly the text whose digest was checked, as a module of its own.

    As text, not as bytes: those may name an encoding in which they say something else.
    """
    name = f"p2pfl_architecture_{digest[:16]}"
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses and others look their module up by name
    try:
        text = source.removeprefix("\ufeff")  # the mark of an editor, which only bytes may begin with
        exec(compile(text, f"<model {digest[:16]}>", "exec"), module.__dict__)  # noqa: S102
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        del sys.modules[name]
        raise ModelError(f"the model's file cannot be run: {_one_line(error)}") from None
    return module


def _try(
    wanted: Architecture,
    make: Callable[[], nn.Module],
    input_shape: Sequence[int],
    classes: int,
    *,
    device: str,
) -> None:
    """Builds the model on `device` and passes two examples through it. Raises `ModelError`."""
    try:
        with torch.device(device):
            model = make().eval()
        size = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
        if size > MAX_PARAMETERS:
            raise _Oversized(
                f"{wanted.name} would have {size:,} parameters on inputs of shape {tuple(input_shape)}, "
                f"more than {MAX_PARAMETERS:,}: make it or the inputs smaller"
            )
        with torch.no_grad():
            output = model(torch.zeros(2, *input_shape, device=device))
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code may raise anything
        raise ModelError(
            f"{wanted.name} cannot be built for inputs of shape {tuple(input_shape)}: {_one_line(error)}"
        ) from None
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if classes and shape != (2, classes):
        raise ModelError(
            f"{wanted.name} turns (2, {', '.join(map(str, input_shape))}) into {shape}; "
            f"it must give (2, {classes}), one number a class"
        )


def _one_line(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
