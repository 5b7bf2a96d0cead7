"""Block Gibbs sampling (Geman & Geman 1984), for targets with conditionals (:class:`ebm_dist.energies.HasConditionals`).

    for each block b:  x_b ~ p(x_b | x_-b)

What the blocks are is the target's affair: all hidden and then all visible units of an RBM, the two colours of a checkerboard, one
site after the other.
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
    """Steps of the chains for each training step: k of CD-k and PCD-k."""
    num_sweeps: PositiveInt = 1
    """Sweeps over all blocks in a step; the energy, for the record only, is computed once a step."""
    scan: Literal["systematic", "random"] = "systematic"
    """``systematic``: the blocks in turn. ``random``: as many blocks, drawn with replacement, the same for all chains."""

    def check(self, params: Params) -> None:
        if not getattr(params.energy, "has_conditionals", False):
            raise Mismatch(
                "sampler.name",
                f"gibbs needs an energy with conditionals, such as rbm; not {plugin_name(params.energy)}",
            )


class State(NamedTuple):
    position: Tensor


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """``bounds`` change nothing: positions are where the target's conditionals put them. There is no temperature but 1, since the
    conditionals are those of ``exp(-E)``. A target without conditionals raises TypeError at ``init``.
    """

    def init(target: EnergyFn, position: Tensor) -> State:
        if not isinstance(target, HasConditionals):
            raise TypeError(
                "gibbs needs an energy with conditionals (num_blocks, resample); choose another sampler for this one"
            )
        return State(position)

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        assert isinstance(target, HasConditionals)
        x, num = state.position, target.num_blocks
        for _ in range(config.num_sweeps):
            blocks = torch.arange(num)
            if config.scan == "random":
                blocks = torch.randint(num, (num,), generator=generator, device=generator.device)
            for block in blocks.tolist():
                x = target.resample(block, x, generator)
        energy = target(x)
        no_score = torch.zeros_like(energy)
        return State(x), Info(energy, no_score, torch.ones_like(energy, dtype=torch.bool))

    return Kernel(init, step)
