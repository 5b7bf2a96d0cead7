"""Choose the chains of a training step by the settings: plain, compiled, or in another precision.

The algorithm is the same; only the last bits differ.
"""

from typing import Protocol

from ebm_dist.chains.eager import Chains, Precision
from ebm_dist.energies import EnergyModel
from ebm_dist.samplers import Kernel


class Options(Protocol):
    """The settings of section ``train`` that concern chains."""

    @property
    def compile(self) -> bool:
        """Whether several steps become one compiled function."""

    @property
    def precision(self) -> Precision:
        """Precision of the network in the chains."""


def build_chains(options: Options, energy: EnergyModel, kernel: Kernel, num_steps: int) -> Chains:
    """Build the chains for these options."""
    if not options.compile and options.precision == "float32":
        return Chains(energy, kernel, num_steps)
    from ebm_dist.chains.compiled import CompiledChains

    return CompiledChains(
        energy, kernel, num_steps, compiles=options.compile, precision=options.precision
    )
