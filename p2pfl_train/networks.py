"""The networks that come built in: functions from (input_shape, classes) to a module.

Each adapts to any input that it can take; one that is too small for its pooling makes PyTorch raise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_LAYERS = 64
"""Hidden layers of `mlp`: bounds what a list of arguments from the network makes us build."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}


class ImageNetwork(nn.Sequential):
    """Layers over images (batch, channels, height, width).

    The images are laid out channels last, with which convolutions on a CPU take half the time forward
    and a little less in training.
    """

    def forward(self, images: Tensor) -> Tensor:
        # `to`, not `contiguous`: with one channel the latter sees nothing to do.
        output: Tensor = super().forward(images.to(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
        return output


def paper_cnn(
    input_shape: Sequence[int], classes: int, *, hidden: int = 128, dropout: float = 0.0
) -> nn.Module:
    """The CNN of the paper: two 3 x 3 convolutions (32, 64), one 2 x 2 max-pool, `hidden`, classes.

    'P2PFL: Peer to Peer Federated Learning System', Laws & Vosburg. Its published 1,625,866
    parameters on 28 x 28 fix the geometry: 64·14·14 inputs of the first dense layer, which takes
    convolutions padded by one and a single pooling. Dropout has no parameters; it is off by default.
    """
    channels, height, width = image_shape(input_shape)
    return ImageNetwork(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),  # before the ReLU: the same function, on a quarter of the numbers
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 2) * (width // 2), hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, classes),
    )


def lenet(input_shape: Sequence[int], classes: int) -> nn.Module:
    """LeNet-5's shape with ReLU and max-pooling: 5 x 5 convolutions (6, 16), then 120, 84, classes.

    LeCun et al., 'Gradient-Based Learning Applied to Document Recognition', 1998. Sides from 16 on.
    """
    return _lenet(input_shape, classes, filters=(6, 16), hidden=(120, 84))


def caffe_lenet(input_shape: Sequence[int], classes: int) -> nn.Module:
    """The LeNet that came with Caffe: 5 x 5 convolutions (20, 50), then 500 units, classes.

    Jia et al., 'Caffe: Convolutional Architecture for Fast Feature Embedding', 2014; 431,080 parameters on
    28 x 28. Sides from 16 on.
    """
    return _lenet(input_shape, classes, filters=(20, 50), hidden=(500,))


def _lenet(
    input_shape: Sequence[int], classes: int, *, filters: tuple[int, int], hidden: Sequence[int]
) -> nn.Module:
    channels, height, width = image_shape(input_shape)
    height, width = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    if min(height, width) < 1:
        raise ValueError("images need sides of at least 16 pixels")
    layers: list[nn.Module] = []
    for number in filters:
        layers += [nn.Conv2d(channels, number, 5), nn.MaxPool2d(2), nn.ReLU()]
        channels = number
    layers.append(nn.Flatten())
    before = channels * height * width
    for size in hidden:
        layers += [nn.Linear(before, size), nn.ReLU()]
        before = size
    return ImageNetwork(*layers, nn.Linear(before, classes))


def cnn_bn(input_shape: Sequence[int], classes: int, *, width: int = 32) -> nn.Module:
    """A small CNN with batch norm (`width`, 2·`width` channels) and global average pooling."""
    channels, _, _ = image_shape(input_shape)
    return ImageNetwork(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


def mlp(
    input_shape: Sequence[int],
    classes: int,
    *,
    hidden: int | Sequence[int] = (256, 128),
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Fully connected layers of `hidden` units over the flattened input."""
    sizes = [hidden] if isinstance(hidden, int) else list(hidden)
    if len(sizes) > MAX_LAYERS or not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"hidden must be a number of units, or a list of at most {MAX_LAYERS} of them")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}")
    layers: list[nn.Module] = [nn.Flatten()]
    before = math.prod(input_shape)
    for size in sizes:
        layers += [nn.Linear(before, size), _ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        before = size
    return nn.Sequential(*layers, nn.Linear(before, classes))


def bank(input_shape: Sequence[int], classes: int, *, first: int = 128, second: int = 2096) -> nn.Module:
    """The fully connected network of the bank paper that the paper compares with: 128, 2096, classes."""
    return mlp(input_shape, classes, hidden=(first, second))


def image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width). Raises `ValueError` for what is no image."""
    if len(input_shape) != 3:
        raise ValueError(f"it takes images (channels, height, width), not {tuple(input_shape)}: try mlp")
    channels, height, width = input_shape
    return channels, height, width
