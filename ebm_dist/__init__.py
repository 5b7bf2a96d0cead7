"""Train, tune, evaluate and serve energy-based models, on one laptop or a cluster.

Low energy means likely, everywhere in this package: ``p(x) = exp(-E(x)) / Z``. The public names
are imported on first use, so that ``import ebm_dist`` is fast and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebm_dist.api.detector import EnergyDetector
    from ebm_dist.api.model import Model, load
    from ebm_dist.api.sampling import Diagnostics, Draws, sample
    from ebm_dist.api.training import train

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


if not TYPE_CHECKING:  # else any name would pass a type checker

    def __getattr__(name: str) -> Any:
        """Import a public name. Raise AttributeError for any other."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.api.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
