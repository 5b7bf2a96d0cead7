"""A multilayer perceptron with SiLU units, for vectors and small images."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebm_dist.config import (
    Mismatch,
    NonNegative,
    NonNegativeInt,
    Params,
    Positive,
    PositiveInt,
    section,
)
from ebm_dist.energies import EnergyModel, is_conditional
from ebm_dist.energies._layers import linear_energy, silu, spectral_norm
from ebm_dist.errors import ConfigError


@section
class Config:
    hidden: tuple[PositiveInt, ...] = (256, 256, 256, 64)
    """Width of each hidden layer."""
    num_frequencies: NonNegativeInt = 0
    """Number of random projections of the input; their sines and cosines are further inputs (Rahimi
    & Recht 2007; Tancik et al. 2020). They speed up learning of short-range variation."""
    frequency: Positive = 6.0
    """Standard deviation of the projections' entries, in radians per unit of the input."""
    confinement: NonNegative = 0.0
    """Weight of ``|x|^2 / 2``, which is added to the network's output (Nijkamp et al. 2019). It
    makes energies high far from the data."""
    heads: bool = False
    """Give each class or noise level an output of its own, instead of a bias in each layer."""
    spectral_norm: bool = False
    """Divide the weight of each hidden layer by its largest singular value (Miyato et al. 2018)."""
    gates: bool = False
    """Give each class its own equal share of every layer's units; the other units are off for it
    (Masse et al. 2018). Learning one class then does not change the others."""

    def check(self, params: Params) -> None:
        if self.gates and not is_conditional(params):
            raise Mismatch(
                "energy.gates",
                "selects units by class, and the energy takes no labels",
                "set objective.conditional: true, or gates: false",
            )
        if self.heads and not (is_conditional(params) or params.objective.levels):
            raise Mismatch(
                "energy.heads",
                "the energy takes no labels and no noise levels",
                "set heads: false, or choose another objective",
            )
        if self.heads and self.gates:
            raise Mismatch("energy.heads", "gates select units by class; set one of them to false")
        if self.gates and self.spectral_norm:
            raise Mismatch(
                "energy.gates",
                "with spectral_norm the norm of a layer would depend on all classes",
                "set spectral_norm: false",
            )


class MLP(EnergyModel):
    """``h <- g_y * silu(W h + b + c_y)`` for each layer, then ``E = w.h``, with heads ``w_y.h``.

    Class bias ``c_y``, gates ``g_y`` and the confining term are there only if they are configured.
    """

    def __init__(self, config: Config, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.confinement = config.confinement
        widths = (num_inputs + 2 * config.num_frequencies, *config.hidden)
        wrap = spectral_norm if config.spectral_norm else nn.Identity()
        self.layers = nn.ModuleList(wrap(nn.Linear(i, o)) for i, o in pairwise(widths))
        self.has_heads = config.heads and num_classes > 0
        self.classes = nn.ModuleList(
            nn.Embedding(num_classes, o) for o in widths[1:] if num_classes and not self.has_heads
        )
        for embedding in self.classes:
            # with small initial biases training ignores labels and hit rates stay at chance
            nn.init.normal_(embedding.weight, std=0.5)  # type: ignore[arg-type]
        self.gates = [f"gates_{i}" for i, o in enumerate(widths[1:]) if config.gates]
        for name, width in zip(self.gates, widths[1:], strict=False):
            if width % num_classes:
                raise ConfigError(
                    f"energy.hidden: {width} units cannot be divided among {num_classes} classes",
                    "choose multiples of the number of classes, or set gates: false",
                )
            owner = torch.arange(width) * num_classes // width
            self.register_buffer(
                name, (owner == torch.arange(num_classes)[:, None]).float(), persistent=False
            )
        num_outputs = num_classes if self.has_heads else 1
        self.last = nn.Linear(widths[-1], num_outputs, bias=not config.gates)
        self.projections: Tensor | None
        projections = (
            config.frequency * torch.randn(num_inputs, config.num_frequencies)
            if config.num_frequencies
            else None
        )
        self.register_buffer("projections", projections)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = x.flatten(1)
        if self.projections is not None:
            angles = h @ self.projections
            h = torch.cat([h, angles.sin(), angles.cos()], dim=1)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            h = silu(h + self.classes[i](y) if self.classes else h)
            if self.gates:
                h = h * self.get_buffer(self.gates[i])[y]
        squares = (x**2).flatten(1).sum(dim=1)
        if self.has_heads:
            assert y is not None
            energy: Tensor = self.last(h).gather(1, y.view(len(x), -1)).view(y.shape)
            squares = squares.view(-1, *[1] * (y.ndim - 1))
        else:
            energy = linear_energy(self.last, h)
        return energy + self.confinement / 2 * squares if self.confinement else energy


def build(config: Config, *, shape: tuple[int, ...], num_classes: int) -> EnergyModel:
    return MLP(config, math.prod(shape), num_classes)
