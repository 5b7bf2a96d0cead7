"""Energy functions. One file, one architecture; each has a ``Config`` and a ``build(config, *, shape, num_classes)``.

``shape`` is that of one sample; ``num_classes`` is 0 for an unconditional energy, else the energy takes labels. One that has an
energy without labels too, ``-log mean_k exp(-E(x, k))``, says so by ``IS_CLASSIFIER = True``; it can be asked for several labels of
each sample at once, ``(B, n)``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from ebm_dist.config import Params, module_of
from ebm_dist.rng import seeded

EnergyFn = Callable[[Tensor], Tensor]
Average = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Of a function ``(B, *shape) -> (B, ...)``, its mean over all training samples: float64, on the CPU, and bitwise the same
on all workers, however many there are."""


class EnergyModel(nn.Module):
    """``E: (B, *shape) [, labels (B,)] -> (B,)`` float32; low energy = likely; ``p(x) = exp(-E(x)) / Z``.

    A forward pass changes no buffer and a row's energy does not depend on the other rows (so no batch norm).
    """

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def initialise(self, average: Average) -> None:
        """Before training: take what a good start needs from averages over the training data; nothing, as a rule."""


@runtime_checkable
class HasConditionals(Protocol):
    """An energy whose variables can be drawn block by block, each given all others: what Gibbs sampling needs of a target."""

    @property
    def num_blocks(self) -> int:
        """Blocks whose union is all variables"""

    def resample(self, block: int, x: Tensor, generator: Generator) -> Tensor:
        """A new ``(B, *shape)``: ``x`` with one block drawn anew, by a step that leaves ``exp(-E)`` as it is."""

    def __call__(self, x: Tensor) -> Tensor: ...


def given(energy: EnergyModel, y: Tensor | None) -> EnergyFn:
    """``x -> E(x, y)`` for these labels ``(B,)``, or without any; it has conditionals if the energy has."""
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
    """Energy ``(B,)`` and score ``-dE/dx`` ``(B, *shape)`` at ``x``, both detached; parameters get no gradient."""
    if torch.compiler.is_compiling():  # which cannot take torch.autograd apart
        gradient, value = torch.func.grad(
            lambda x: ((value := energy(x)).sum(), value.detach()), has_aux=True
        )(x)
        return value, -gradient
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = energy(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return (
        value.detach(),
        -gradient,
    )  # not in place: that of a linear energy is one number, seen many times


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """For sampling: parameters ask for no gradient and normalised weights are computed once for the whole block."""
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
    """Power iterations of every spectrally normalised weight: a function of the weights alone, hence equal on all ranks."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for normalised in module.parametrizations.values():  # type: ignore[union-attr,operator]
                normalised.train()
                for _ in range(num_iterations):
                    normalised()
                normalised.eval()


def is_conditional(params: Params) -> bool:
    """Whether the energy of a parameter file takes labels: the objective says so."""
    return bool(params.objective.conditional)


def is_classifier(params: Params) -> bool:
    """Whether the energy of a parameter file has an energy for each class, and with them one without labels."""
    return bool(getattr(module_of(params.energy), "IS_CLASSIFIER", False))


def build_energy(params: Params, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    """The energy of a parameter file, with the initial weights of its seed; unconditional unless it or the objective is not."""
    takes_labels = is_conditional(params) or is_classifier(params)
    classes = num_classes if takes_labels else 0
    with seeded(params.seed, "energy"):
        energy: EnergyModel = module_of(params.energy).build(
            params.energy, shape=shape, num_classes=classes
        )
    return energy
