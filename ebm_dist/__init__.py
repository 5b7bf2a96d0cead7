"""Train, tune, evaluate and serve energy-based models, on one laptop or a cluster.

Low energy means likely, everywhere in this package: ``p(x) = exp(-E(x)) / Z``. The public names
are imported on first use, so that ``import ebm_dist`` is fast and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebm_dist.api.model import Model as Model
    from ebm_dist.api.model import load as load
    from ebm_dist.api.sampling import Diagnostics as Diagnostics
    from ebm_dist.api.sampling import Draws as Draws
    from ebm_dist.api.sampling import sample as sample
    from ebm_dist.api.training import train as train

_PUBLIC = {
    "Diagnostics": "sampling",
    "Draws": "sampling",
    "Model": "model",
    "load": "model",
    "sample": "sampling",
    "train": "training",
}
"""Module of :mod:`ebm_dist.api` of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name. Raise AttributeError for any other."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.api.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
