"""The data sets known by name. Importable without torch: `make launch` asks for no more."""

from __future__ import annotations

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10")
