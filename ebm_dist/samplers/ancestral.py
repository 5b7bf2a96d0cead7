"""Ancestral sampling over noise levels (Ho et al. 2020; Song et al. 2021, eq. 47).

Of an energy of levels sigma_0 < ... < sigma_L, with the score s_k = -grad E(., k) of the data under
noise sigma_k, and sigma_-1 = 0, a step is

    x <- x + sigma_L z
    for k = L, ..., 0:
        x <- x + d_k^2 s_k(x) + d_k sigma_k-1 / sigma_k z,      d_k^2 = sigma_k^2 - sigma_k-1^2
        x <- x + h sigma_k-1^2 s_k-1(x) + sqrt(h (2 - h)) sigma_k-1 z    (``correction`` h, k > 0)

Given x at level k, the sample under less noise has exactly this mean (Tweedie's formula), and for
small d_k this variance. So a step goes from data to data: with exact scores and many levels it
keeps the density of the data. With a sigma_L far above the data's size, steps are independent. The
correction draws samples back to the density of the new level, from which errors of the scores have
led them away (Song et al. 2021, section 4.2). It is a Langevin step with slightly less noise, so
that the noise in x keeps its variance sigma^2 for any h: a part h of it is taken away and as much
put in its place, as in the churn of Karras et al. (2022). The inner kernels of chains/ladder.py
need more gradients, and are exact with few levels too.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from ebm_dist.config import (
    Mismatch,
    NonNegative,
    Params,
    PositiveInt,
    Probability,
    plugin_name,
    section,
)
from ebm_dist.energies import EnergyFn, score
from ebm_dist.samplers import Bounds, Info, Kernel

OVER_LEVELS = True


@section
class Config:
    num_steps: PositiveInt = 1
    """Steps of the chains per training step, which the objectives for this sampler do not need."""
    correction: Probability = 0.0
    """h of the Langevin step at each level, in units of sigma^2; none if 0."""
    corrected_from: NonNegative = 0.0
    """Lowest sigma that is corrected: errors that the scores make at large noise decide what an
    image shows."""

    def check(self, params: Params) -> None:
        if plugin_name(params.objective) != "score_matching" or not params.objective.ladder:
            raise Mismatch(
                "sampler.name",
                "ancestral needs score matching at noise levels",
                "set objective.name: score_matching and noise_levels: true, or choose another"
                " sampler",
            )


@runtime_checkable
class HasLevels(Protocol):
    """A target with noise levels, such as :class:`ebm_dist.energies.Levels`."""

    sigmas: Tensor
    """``(L,)`` standard deviations, growing"""

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return energies ``(B,)`` of ``x (B, *shape)`` at levels ``y (B,)``, 0 without."""


class State(NamedTuple):
    position: Tensor


def build(config: Config, *, bounds: Bounds) -> Kernel:
    """Build the kernel. The ends of a step are clamped to ``bounds``.

    ``init`` raises TypeError for a target without levels.
    """

    def init(target: EnergyFn, position: Tensor) -> State:
        if not isinstance(target, HasLevels):
            raise TypeError("ancestral needs an energy of noise levels; choose another sampler")
        return State(position)

    def step(target: EnergyFn, state: State, generator: Generator) -> tuple[State, Info]:
        assert isinstance(target, HasLevels)
        energy, x, sigmas = target, state.position, [0.0, *target.sigmas.tolist()]

        def noise() -> Tensor:
            return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        def score_at(k: int) -> Tensor:
            level = torch.full((len(x),), k, device=x.device)
            return score(partial(energy, y=level), x)[1]

        x = x + sigmas[-1] * noise()
        for k, (lower, upper) in reversed(list(enumerate(pairwise(sigmas)))):
            d, s = (upper**2 - lower**2) ** 0.5, score_at(k)
            x = x + d**2 * s
            if k:
                x = x + d * lower / upper * noise()
            if k and config.correction and lower >= config.corrected_from:
                x = x + config.correction * lower**2 * score_at(k - 1)
                x = x + (config.correction * (2 - config.correction)) ** 0.5 * lower * noise()
        if bounds is not None:
            x = x.clamp(*bounds)
        value, norm = energy(x), s.flatten(1).norm(dim=1)
        return State(x), Info(value, norm, torch.ones_like(value, dtype=torch.bool))

    return Kernel(init, step)
