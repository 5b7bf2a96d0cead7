"""The chains of a training step, with the network's current weights, run step by step."""

from typing import Literal

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
            # a start that is not finite shows in the loss, where all ranks stop together
            return run_chain(
                self.kernel,
                given(self.energy, labels),
                position,
                self.num_steps,
                generator,
                checks_start=False,
            )
