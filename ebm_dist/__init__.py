"""Train, tune, evaluate and serve energy-based models, on one laptop or a cluster.

Low energy means likely, everywhere in this package: ``p(x) = exp(-E(x)) / Z``. The public names
are imported on first use, so that ``import ebm_dist`` is fast and does not import torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebm_dist.api.detector import EnergyDetector as EnergyDetector
    from ebm_dist.api.training import train as train
    from ebm_dist.models import TrainedModel

_PUBLIC = {"EnergyDetector": "detector", "train": "training"}
"""Module of :mod:`ebm_dist.api` of each public name."""


def load(model: str | Path) -> "TrainedModel":
    """Load a trained model: its folder, ``models:/name@alias`` or ``models:/name/version``.

    Raise :class:`DataError` for a folder that is not a model, :class:`RegistryError` if the
    registry does not have the version.
    """
    from ebm_dist.registry import versions

    return versions.load(model)


def __getattr__(name: str) -> Any:
    """Import a public name. Raise AttributeError for any other."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.api.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
