"""The chains of a training step: of a network that has just learnt, and learns again when they are done.

Plainly, or several steps at once in code that ``torch.compile`` made (on a GPU replayed as a CUDA graph), or with the network in
bfloat16. The algorithm is the same; only the last bits are others.
"""

from typing import Literal, Protocol

from torch import Generator, Tensor
from torch.profiler import record_function

from ebm_dist.energies import EnergyModel, frozen, given
from ebm_dist.samplers import ChainStats, Kernel, run_chain

Precision = Literal["float32", "bfloat16"]


class Chains:
    """Chains of ``energy``, with the weights that it has whenever they are called."""

    def __init__(self, energy: EnergyModel, kernel: Kernel, num_steps: int) -> None:
        self.energy, self.kernel, self.num_steps = energy, kernel, num_steps

    @record_function("sampler")
    def __call__(
        self, position: Tensor, labels: Tensor | None, generator: Generator
    ) -> tuple[Tensor, ChainStats]:
        """From ``position (B, *shape)``, under ``labels (B,)`` if there are any, to where the chains end, and what they did."""
        with frozen(self.energy):
            return run_chain(
                self.kernel, given(self.energy, labels), position, self.num_steps, generator
            )


class Options(Protocol):
    """What section ``train`` says about chains."""

    @property
    def compile(self) -> bool:
        """whether several steps become one compiled function"""

    @property
    def precision(self) -> Precision:
        """of the network in the chains"""


def build_chains(options: Options, energy: EnergyModel, kernel: Kernel, num_steps: int) -> Chains:
    """The chains that these options ask for."""
    if not options.compile and options.precision == "float32":
        return Chains(energy, kernel, num_steps)
    from ebm_dist.chains.compiled import CompiledChains

    return CompiledChains(
        energy, kernel, num_steps, compiles=options.compile, precision=options.precision
    )
