"""Train, tune, evaluate and serve energy-based models, on one laptop or a cluster.

Low energy means likely, everywhere in this package: ``p(x) = exp(-E(x)) / Z``. The public names
are imported on first use, so that ``import ebm_dist`` is fast and does not import torch; type
checkers read them in ``__init__.pyi``.
"""

import importlib
from typing import Any

__all__ = ["Diagnostics", "Draws", "EnergyDetector", "Model", "load", "sample", "train"]

_MODULES = {
    "Diagnostics": "sampling",
    "Draws": "sampling",
    "EnergyDetector": "detector",
    "Model": "model",
    "load": "model",
    "sample": "sampling",
    "train": "training",
}
"""Module of :mod:`ebm_dist.api` of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name. Raise AttributeError for any other."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.api.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
