"""The chains of a training step, with the network's current weights, run step by step."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Generator, Tensor
from torch.profiler import record_function

from ebm_dist.chains import tempering
from ebm_dist.energies import EnergyModel, frozen, given
from ebm_dist.samplers import Bounds, ChainStats, Info, Kernel, run_chain

Precision = Literal["float32", "bfloat16"]


class Chains:
    """Chains of ``energy``, with its weights at the time of the call."""

    metrics: dict[str, Tensor]
    """Scalars of the last call, besides its statistics"""

    def __init__(self, energy: EnergyModel, kernel: Kernel, num_steps: int) -> None:
        self.metrics = {}
        self.energy, self.kernel, self.num_steps = energy, kernel, num_steps

    def coldest(self, ends: Tensor) -> Tensor:
        """Return the samples ``(B, *shape)`` of the energy among what a call returned."""
        return ends

    @record_function("sampler")
    def __call__(
        self, position: Tensor, labels: Tensor | None, generator: Generator, num_done: int = 0
    ) -> tuple[Tensor, ChainStats]:
        """Run from ``position (B, *shape)`` with ``labels (B,)``.

        ``num_done`` calls came before. Return the positions and statistics.
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


class TemperedChains(Chains):
    """Chains with a replica at each temperature, all of which persist (Desjardins et al. 2010)."""

    def __init__(
        self,
        energy: EnergyModel,
        kernel: Kernel,
        num_steps: int,
        temperatures: Sequence[float],
        temperature: float,
        bounds: Bounds,
    ) -> None:
        super().__init__(energy, kernel, num_steps)
        self.temperatures, self.temperature, self.bounds = temperatures, temperature, bounds

    def coldest(self, ends: Tensor) -> Tensor:
        """Return the replica at the lowest temperature ``(B, *shape)``."""
        return ends[:, 0]

    @record_function("sampler")
    def __call__(
        self, position: Tensor, labels: Tensor | None, generator: Generator, num_done: int = 0
    ) -> tuple[Tensor, ChainStats]:
        """Run from all replicas ``(B, R, *shape)``, coldest first, with ``labels (B,)``.

        ``num_done`` calls came before: pairs alternate over calls too. Return all replicas, and
        statistics of the coldest.
        """
        kernel = tempering.tempered(
            self.kernel,
            self.temperatures,
            bounds=self.bounds,
            temperature=self.temperature,
            replicas=position.transpose(0, 1),
            num_done=num_done * self.num_steps,
        )
        repeated = None if labels is None else labels.repeat(len(self.temperatures))
        end: Any = None

        def keep(step: int, state: Any, info: Info) -> None:
            nonlocal end
            end = state

        with frozen(self.energy):
            target = given(self.energy, repeated)
            start, steps = position[:, 0], self.num_steps
            _, stats = run_chain(
                kernel, target, start, steps, generator, observe=keep, checks_start=False
            )
        self.metrics = {"chain_least_swap_rate": 1 - end.journey.refusal_rates.nan_to_num(0).amax()}
        return end.replicas.transpose(0, 1), stats
