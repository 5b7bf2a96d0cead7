"""Score matching: the energy's gradient learns that of the log density, without chains or Z.

With s(x) = -grad E(x), the three criteria have the same minimum as the distance of s from the
score of the data (Hyvarinen 2005), but ``denoising`` of the data smoothed by noise:

    denoising   mean over levels of  mean |sigma s(x + sigma z) + z|^2 / 2,      z ~ N(0, I)
    sliced      mean of  v . grad(v . s(x)) + |s(x)|^2 / 2,                       v ~ N(0, I)
    exact       mean of  tr grad s(x) + |s(x)|^2 / 2

Denoising (Vincent 2011) is the cheapest, and the energy is that of the density convolved with
N(0, sigma^2 I): details below sigma are lost. DSEBM (Zhai et al. 2016) is this criterion. With
several levels one energy serves all, a compromise between them; or, with ``noise_levels``, there is
an energy E(x, k) of the density at each sigma_k, and chains go over the ladder of levels
(samplers/ancestral.py, chains/ladder.py). Sliced (Song et al. 2019) takes random directions of the
Hessian, exact its diagonal, one gradient per dimension: for a few dimensions. All are blind to how
much mass separate modes have: between them there are no data.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ebm_dist.config import (
    Mismatch,
    NonNegative,
    Params,
    Positive,
    PositiveInt,
    module_of,
    plugin,
    section,
)
from ebm_dist.energies import EnergyFn
from ebm_dist.objectives import (
    Batch,
    Objective,
    ObjectiveConfig,
    StepContext,
    Turn,
    check_levels,
    levels_in_turn,
)
from ebm_dist.samplers import Bounds, Kernel


@section
class Config(ObjectiveConfig):
    criterion: Literal["denoising", "sliced", "exact"] = "denoising"
    """``denoising``, ``sliced`` or ``exact``."""
    sigmas: tuple[Positive, ...] = (0.1,)
    """Standard deviations of the noise of ``denoising``; each sample takes one in turn."""
    noise_levels: bool = False
    """Learn E(x, k), one energy for each of the ``sigmas``."""
    data_sd: Positive | None = None
    """Standard deviation s of the data around 0, by which the energies of ``noise_levels`` are
    scaled (:class:`ebm_dist.energies.Levels`). Level k then has the weight
    ``1 + sigma_k^2 / s^2`` in the loss (Karras et al. 2022, table 1)."""
    base: Any = plugin("generators", optional=True)
    """A density to which the network adds, instead of that of one Gaussian: ``mixture``. It needs
    ``data_sd``."""
    base_from: NonNegative = 0.0
    """Standard deviation of the noise at which base and Gaussian have equal weight; with less, the
    network would have to unlearn the Gaussians of the base."""
    focus: tuple[Positive, Positive] | None = None
    """Median m and width w of the share of the ``noise_levels`` in the batch, proportional to
    ``exp(-log(sigma_k / m)^2 / 2 w^2)`` (Karras et al. 2022, section 5); equal shares without."""
    relative: bool = False
    """Multiply the noise of each feature by the standard deviation of the feature in the batch."""
    num_slices: PositiveInt = 1
    """Random directions per sample of ``sliced``."""
    conditional: bool = False
    """Learn E(x, y): data come with their labels."""

    @property
    def levels(self) -> tuple[float, ...]:
        return self.sigmas if self.noise_levels else ()

    @property
    def ladder(self) -> tuple[float, ...]:
        """The levels, and above them the noise that chains start from, in the same ratio."""
        return (*self.levels, self.levels[-1] ** 2 / self.levels[-2]) if self.levels else ()

    @property
    def compares_energies(self) -> bool:
        return True

    def check(self, params: Params) -> None:
        if not self.sigmas:
            raise Mismatch("objective.sigmas", "needs at least one level")
        if self.criterion != "denoising" and (self.relative or self.noise_levels):
            key = "relative" if self.relative else "noise_levels"
            raise Mismatch(f"objective.{key}", f"{self.criterion} adds no noise; set it to false")
        if self.base is None and self.base_from:
            raise Mismatch("objective.base_from", "there is no base; set it, or base_from: 0")
        if not self.noise_levels:
            for key in ("data_sd", "base", "focus"):
                if getattr(self, key) is not None:
                    raise Mismatch(f"objective.{key}", "is a setting of noise_levels; set them")
            return
        check_levels(self.sigmas)
        if self.base is not None and self.data_sd is None:
            raise Mismatch("objective.base", "needs data_sd, the scale of what the network adds")
        if self.base is not None and not hasattr(module_of(self.base), "IS_KNOWN_UNDER_NOISE"):
            raise Mismatch(
                "objective.base.name", "its density under noise is not known; use mixture"
            )
        for key in ("relative", "conditional"):
            if getattr(self, key):
                raise Mismatch(f"objective.{key}", "has no meaning with noise_levels")


class ScoreMatching(Objective):
    """The energy is the only player."""

    def __init__(self, config: Config, energy: nn.Module) -> None:
        self.config, self.players = config, {"energy": energy}

    def turns(self, batch: Batch, context: StepContext) -> Iterator[Turn]:
        levels = self._levels(batch.x, context)
        y = batch.y if self.config.conditional else None
        y = levels if self.config.noise_levels else y

        def energy(x: Tensor) -> Tensor:
            return cast(Tensor, context.players["energy"](x, y))

        if self.config.criterion == "denoising":
            loss, value, s = self._denoising(energy, batch.x, levels, context)
        else:
            criterion = {"sliced": self._sliced, "exact": self._exact}[self.config.criterion]
            loss, value, s = criterion(energy, batch.x, context)
        metrics = {"score_norm": s.flatten(1).norm(dim=1).mean()}
        energies = {"energy_pos": value.mean(), "energy_pos_sd": value.std(correction=0)}
        # a bias of the energy has no part in the score, but each parameter needs a gradient
        yield Turn("energy", loss + 0 * value.mean(), metrics, energies)

    def _denoising(
        self, energy: EnergyFn, x: Tensor, levels: Tensor, context: StepContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        sigmas = torch.tensor(self.config.sigmas, device=x.device)
        sigma = sigmas[levels].view(-1, *[1] * (x.ndim - 1))
        if self.config.relative:
            sigma = sigma * x.std(dim=0, correction=0)
        z = torch.randn(x.shape, generator=context.stream("noise"), device=x.device)
        value, s = score(energy, x + sigma * z)
        weight = 1 if self.config.data_sd is None else 1 + (sigma / self.config.data_sd) ** 2
        return _half_square(weight**0.5 * (sigma * s + z)), value, s

    def _levels(self, x: Tensor, context: StepContext) -> Tensor:
        """Return the level of each sample ``(B,)``: one after the other, or in shares of focus."""
        if self.config.focus is None:
            return levels_in_turn(x, len(self.config.sigmas), context)
        order = torch.arange(len(x), device=x.device)
        median, width = self.config.focus
        distances = (torch.tensor(self.config.sigmas, dtype=torch.float64) / median).log() / width
        ends = torch.softmax(-(distances**2) / 2, dim=0).cumsum(dim=0).to(x.device)
        start = torch.rand(1, generator=context.stream("levels"), device=x.device)
        return torch.searchsorted(ends[:-1], (order + start.double()) / len(x))

    def _sliced(
        self, energy: EnergyFn, x: Tensor, context: StepContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value, s = score(energy, x)
        generator, curvature = context.stream("slices"), x.new_zeros(())
        for _ in range(self.config.num_slices):
            v = torch.randn(x.shape, generator=generator, device=x.device)
            (along,) = torch.autograd.grad((v * s).sum(), x, create_graph=True)
            curvature = curvature + (v * along).flatten(1).sum(dim=1).mean()
        return curvature / self.config.num_slices + _half_square(s), value, s

    def _exact(
        self, energy: EnergyFn, x: Tensor, context: StepContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value, s = score(energy, x)
        columns, trace = s.flatten(1), x.new_zeros(())
        for i in range(columns.shape[1]):
            (row,) = torch.autograd.grad(columns[:, i].sum(), x, create_graph=True)
            trace = trace + row.flatten(1)[:, i].mean()
        return trace + _half_square(s), value, s


def score(energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies ``(B,)`` and scores ``-dE/dx (B, *shape)``, both as functions of the weights.

    The gradient of a loss of the scores is a second backward pass, through the first.
    """
    x = x if x.requires_grad else x.detach().requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return value, -gradient


def _half_square(x: Tensor) -> Tensor:
    """Return the mean of ``|x|^2 / 2`` over rows ``(B, *shape)``."""
    return (x**2).flatten(1).sum(dim=1).mean() / 2


def build(
    params: Params, *, networks: Mapping[str, nn.Module], kernel: Kernel, bounds: Bounds
) -> Objective:
    return ScoreMatching(params.objective, networks["energy"])
