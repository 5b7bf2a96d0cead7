"""The public names for type checkers; ``__init__.py`` imports them on first use."""

from ebm_dist.api.detector import EnergyDetector
from ebm_dist.api.model import Model, load
from ebm_dist.api.sampling import Diagnostics, Draws, sample
from ebm_dist.api.training import train

__all__ = ["Diagnostics", "Draws", "EnergyDetector", "Model", "load", "sample", "train"]
