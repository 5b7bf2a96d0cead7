"""The chains of a training step, with the network's current weights.

They run step by step, or several steps per call in code from ``torch.compile`` (on a GPU replayed
as a CUDA graph), or with the network in bfloat16. The algorithm is the same; only the last bits
differ.
"""

from typing import Literal, Protocol

from torch import Generator, Tensor
from torch.profiler import record_function

from ebm_dist.energies import EnergyModel, frozen, given
from ebm_dist.samplers import ChainStats, Kernel, run_chain

Precision = Literal["float32", "bfloat16"]


class Chains:
    """Chains of ``energy``, with its weights at the time of the call."""

    def __init__(self, energy: EnergyModel, kernel: Kernel, num_steps: int) -> None:
        self.energy, self.kernel, self.num_steps = energy, kernel, num_steps

    @record_function("sampler")
    def __call__(
        self, position: Tensor, labels: Tensor | None, generator: Generator
    ) -> tuple[Tensor, ChainStats]:
        """Run from ``position (B, *shape)`` with ``labels (B,)``.

        Return the positions and statistics.
        """
        with frozen(self.energy):
            return run_chain(
                self.kernel, given(self.energy, labels), position, self.num_steps, generator
            )


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
