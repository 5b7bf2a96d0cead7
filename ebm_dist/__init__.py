"""Train, tune, evaluate and serve energy-based models, on one laptop or a cluster.

Low energy means likely, everywhere in this package: ``p(x) = exp(-E(x)) / Z``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ebm_dist.models import TrainedModel


def load(model: str | Path) -> "TrainedModel":
    """Load a trained model: its folder, ``models:/name@alias`` or ``models:/name/version``.

    Raise :class:`DataError` for a folder that is not a model, :class:`RegistryError` if the
    registry does not have the version.
    """
    from ebm_dist.registry import versions

    return versions.load(model)
