"""Block Gibbs sampling (Geman & Geman 1984).

    for each block b:  x_b ~ p(x_b | x_-b)

The target must have conditionals (:class:`ebm_dist.energies.HasConditionals`), and it defines the
blocks: all hidden and then all visible units of an RBM, the two colours of a checkerboard, or
single sites.
"""

from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from ebm_dist.config import Mismatch, Params, PositiveInt, plugin_name, section
from ebm_dist.energies import EnergyFn, HasConditionals
from ebm_dist.samplers import Bounds, Info, Kernel


@section
class Config:
    num_steps: PositiveInt = 1
    """Steps of the chains per training step: k of CD-k and PCD-k."""
    num_sweeps: PositiveInt = 1
    """Sweeps over all blocks per step. The energy, which is only recorded, is computed once per
    step."""
    scan: Literal["systematic", "random"] = "systematic"
    """``systematic``: all blocks in order. ``random``: the same number of blocks, drawn with
    replacement, the same for all chains."""

    def check(self, params: Params) -> None:
        if not getattr(params.energy, "has_conditionals", False):
            raise Mismatch(
                "sampler.name",
                f"gibbs needs an energy with conditionals, found {plugin_name(params.energy)}",
                "set energy.name: rbm, or choose another sampler",
            )


class State(NamedTuple):
    position: Tensor


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel of ``exp(-E)``, at temperature 1.

    ``bounds`` have no effect: the target's conditionals decide the positions. ``init`` raises
    TypeError for a target without conditionals.
    """

    def init(target: EnergyFn, position: Tensor) -> State:
        if not isinstance(target, HasConditionals):
            raise TypeError(
                "gibbs needs an energy with conditionals (num_blocks, resample);"
                " choose another sampler for this energy"
            )
        return State(position)

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        assert isinstance(target, HasConditionals)
        x, num_blocks = state.position, target.num_blocks
        for _ in range(config.num_sweeps):
            blocks = torch.arange(num_blocks)
            if config.scan == "random":
                blocks = torch.randint(
                    num_blocks, (num_blocks,), generator=generator, device=generator.device
                )
            for block in blocks.tolist():
                x = target.resample(block, x, generator)
        energy = target(x)
        no_score = torch.zeros_like(energy)
        return State(x), Info(energy, no_score, torch.ones_like(energy, dtype=torch.bool))

    return Kernel(init, step)
