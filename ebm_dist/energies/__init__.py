"""Energy functions. One file, one architecture.

Each has a ``Config`` and a ``build(config, *, shape, num_classes)``. ``shape`` is the shape of one
sample. ``num_classes`` is 0 for an unconditional energy; otherwise the energy takes labels.

An energy with ``IS_CLASSIFIER = True`` also has an energy without labels,
``-log mean_k exp(-E(x, k))``, and takes several labels of each sample at once, ``(B, n)``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from ebm_dist.config import Params, module_of
from ebm_dist.rng import seeded

EnergyFn = Callable[[Tensor], Tensor]
Average = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Return the mean of a function ``(B, *shape) -> (B, ...)`` over all training samples: float64, on
the CPU, with the same bits on every worker and for any number of workers. The function may return
the sum of its rows as the only one, ``(1, ...)``."""


def averages_of(x: Tensor) -> Average:
    """Return the means over samples ``x (B, *shape)`` that are at hand, in parts of 1,000."""
    parts = x.split(1000)
    return lambda of: reduce(torch.add, (of(part.double()).sum(dim=0) for part in parts)) / len(x)


class EnergyModel(nn.Module):
    """``E: (B, *shape) [, labels (B,)] -> (B,)`` float32; low energy means likely.

    ``p(x) = exp(-E(x)) / Z``. A forward pass changes no buffer, and the energy of a row does not
    depend on the other rows. This excludes batch normalisation.
    """

    has_heads = False
    """Whether it has an output per class, so that labels may be ``(B, n)``: several of a sample."""
    latent_size = 0
    """Length of a code over which it averages with noise ``(K, B, latent_size)``, its third input,
    while it learns; 0 without a code."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def initialise(self, average: Average) -> None:
        """Set what a good start needs from averages over the training data, before training.

        The default does nothing.
        """


class Levels(EnergyModel):
    """An energy at each of ``L`` noise levels: ``E(x, k)``, level 0 the least noise.

    Without a level it is that of level 0. With ``data_sd`` s the network N sees inputs of one scale
    at all levels, and adds to the energy of a Gaussian (the coefficients of Karras et al. 2022,
    table 1, for the score):

        E(x, k) = |x|^2 / 2 v_k + s / sigma_k N(x / sqrt(v_k), k),    v_k = sigma_k^2 + s^2

    With a ``base`` of density q_sigma, ``-w_k log q_sigma_k(x)`` is added, and the energy of the
    Gaussian has the weight ``1 - w_k``, with w_k = 1 / (1 + (base_from / sigma_k)^4).
    """

    sigmas: Tensor
    """``(L,)`` standard deviations of the noise, growing"""

    def __init__(
        self,
        network: EnergyModel,
        sigmas: tuple[float, ...],
        data_sd: float | None = None,
        base: "Smoothed | None" = None,
        base_from: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.has_heads = network, network.has_heads
        self.data_sd, self.base, self.base_from = data_sd, base, base_from
        self.register_buffer("sigmas", torch.tensor(sigmas))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return ``E(x, k)`` of levels ``y``, ``(B,)`` or ``(B, n)`` for several of each sample."""
        if y is None:
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if y.ndim == 1 or (self.has_heads and self.data_sd is None):
            return self._scaled(x, y)
        return torch.stack([self._scaled(x, level) for level in y.unbind(1)], dim=1)

    def _scaled(self, x: Tensor, y: Tensor) -> Tensor:
        if self.data_sd is None:
            return cast(Tensor, self.network(x, y))
        sigma = self.sigmas[y]
        v = sigma**2 + self.data_sd**2
        u = x / v.sqrt().view(-1, *[1] * (x.ndim - 1))
        start = (u**2).flatten(1).sum(1) / 2
        if self.base is not None:
            weight = 1 / (1 + (self.base_from / sigma) ** 4)
            start = (1 - weight) * start - weight * self.base.smoothed(x, sigma)
        energy: Tensor = start + self.data_sd / sigma * self.network(u, y)
        return energy

    def initialise(self, average: Average) -> None:
        self.network.initialise(average)
        if self.base is not None:
            self.base.initialise(average)


class Smoothed(Protocol):
    """A density known at all noise levels, such as :mod:`ebm_dist.generators.mixture`."""

    def smoothed(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the log density of ``x (B, *shape)`` under noise of ``sigma (B,)``, in nats."""

    def initialise(self, average: Average) -> None:
        """Fit the density to the training data."""


@runtime_checkable
class HasConditionals(Protocol):
    """An energy with blocks of variables that can be drawn given all others.

    Gibbs sampling needs such a target.
    """

    @property
    def num_blocks(self) -> int:
        """Number of blocks; their union is all variables."""

    def resample(self, block: int, x: Tensor, generator: Generator) -> Tensor:
        """Return ``x (B, *shape)`` with one block redrawn, by a step that keeps ``exp(-E)``."""

    def __call__(self, x: Tensor) -> Tensor: ...


def given(energy: EnergyModel, y: Tensor | None) -> EnergyFn:
    """Return ``x -> E(x, y)`` for labels ``y (B,)``; the energy itself if ``y`` is None.

    The result has conditionals if the energy has them.
    """
    if y is None:
        return energy
    return (
        _ConditionalsGiven(energy, y) if isinstance(energy, HasConditionals) else _Given(energy, y)
    )


class _Given:
    def __init__(self, energy: Any, y: Tensor) -> None:
        self.energy, self.y = energy, y

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.energy(x, self.y))


class _ConditionalsGiven(_Given):
    @property
    def num_blocks(self) -> int:
        return int(self.energy.num_blocks)

    def resample(self, block: int, x: Tensor, generator: Generator) -> Tensor:
        return cast(Tensor, self.energy.resample(block, x, generator, self.y))


def score(energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return energy ``(B,)`` and score ``-dE/dx (B, *shape)`` at ``x``, both detached.

    Parameters get no gradient.
    """
    if torch.compiler.is_compiling():  # torch.compile cannot trace torch.autograd
        gradient, value = torch.func.grad(
            lambda x: ((value := energy(x)).sum(), value.detach()), has_aux=True
        )(x)
        return value, -gradient
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    # not negated in place: the gradient of a linear energy is one number, expanded
    return value.detach(), -gradient


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Freeze the parameters and compute normalised weights once for the block, for sampling."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with parametrize.cached():
            yield model
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@torch.no_grad()
def iterate_power(model: nn.Module, num_iterations: int = 1) -> None:
    """Run power iterations for every spectrally normalised weight.

    The result depends on the weights alone, so it is equal on all ranks.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for normalised in module.parametrizations.values():  # type: ignore[union-attr,operator]
                normalised.train()
                for _ in range(num_iterations):
                    normalised()
                normalised.eval()


def is_conditional(params: Params) -> bool:
    """Return whether the energy of a parameter file takes labels, which the objective decides."""
    return bool(params.objective.conditional)


def is_classifier(params: Params) -> bool:
    """Return whether the energy of a parameter file has one output per class."""
    return bool(getattr(module_of(params.energy), "IS_CLASSIFIER", False))


def build_energy(params: Params, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    """Build the energy of a parameter file, with the initial weights of its seed.

    It takes labels only if it is a classifier or if the objective is conditional, and noise levels
    (:class:`Levels`) if the objective has them.
    """
    takes_labels, sigmas = is_conditional(params) or is_classifier(params), params.objective.levels
    classes = len(sigmas) or (num_classes if takes_labels else 0)
    with seeded(params.seed, "energy"):
        energy: EnergyModel = module_of(params.energy).build(
            params.energy, shape=shape, num_classes=classes
        )
    if not sigmas:
        return energy
    objective = params.objective
    base = objective.base and module_of(objective.base).build(objective.base, shape=shape)
    return Levels(energy, sigmas, objective.data_sd, base, objective.base_from)
