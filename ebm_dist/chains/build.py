"""Choose chains by the settings.

Chains of a training step are plain, compiled, or in another precision: the same algorithm, other
last bits. Chains of a trained model with noise levels go over their ladder.
"""

from typing import Protocol

from ebm_dist.chains.eager import Chains, Precision
from ebm_dist.chains.ladder import ladder
from ebm_dist.config import Params, module_of
from ebm_dist.energies import EnergyModel
from ebm_dist.samplers import Bounds, Kernel


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


def build_kernel(params: Params, *, bounds: Bounds) -> Kernel:
    """Build the kernel that samples a trained energy: that of section ``sampler``.

    For an energy of noise levels it draws from the conditionals of the ladder, unless it goes over
    the levels itself.
    """
    sampler = params.sampler
    goes_over_levels = getattr(module_of(sampler), "OVER_LEVELS", False)
    sigmas = () if goes_over_levels else params.objective.ladder
    kernel: Kernel = module_of(sampler).build(sampler, bounds=None if sigmas else bounds)
    return ladder(kernel, sigmas, sampler.num_steps, bounds=bounds) if sigmas else kernel
