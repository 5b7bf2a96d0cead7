"""A smoothed histogram of the data, mixed with a uniform box: noise near data of few dimensions.

A grid of cells of side h covers the data. With the share p_c of the data in cell c and its centre
m_c, and the tent t(u) = max(0, 1 - |u|),

    q(x) = (1 - a) sum_c p_c prod_j t((x_j - m_cj) / h) / h + a / volume of the box.

The tents interpolate the shares between centres. A draw takes a cell and adds the sum of two
uniform numbers in (-h/2, h/2). Nothing is learnt: the shares are averages over the training data.
Noise this near to the data makes contrastive estimation accurate (Gutmann & Hyvarinen 2012,
section 2.4: the noise should be as close to the data as possible).
"""

import itertools
import math

import torch
from torch import Tensor

from ebm_dist.config import Positive, PositiveInt, Share, section
from ebm_dist.energies import Average
from ebm_dist.errors import ConfigError
from ebm_dist.generators import FlowModel

HAS_DENSITY, LEARNS = True, False
_MOST_CELLS = 1 << 20
_FIRST_POWER, _POWER = 16, 128  # of the norm that bounds the data
_SLACK = 1e12 ** (1 / _POWER)  # times that norm, no datum of 1e12 is outside


@section
class Config:
    num_cells: PositiveInt = 64
    """Cells of the grid in each dimension."""
    box_share: Share = 0.5
    """Share of the uniform box, ``a``: the energy far from the data is learnt from it."""
    margin: Positive = 1.0
    """Distance of the box from the data, in standard deviations."""


class Histogram(FlowModel):
    """The noise; latents are standard normal, and their distribution functions are used."""

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        n = math.prod(shape)
        if config.num_cells**n > _MOST_CELLS:
            raise ConfigError(
                f"generator: a histogram of {n} dimensions with {config.num_cells} cells in each is"
                " too large",
                "choose another noise, such as gaussian or flow, or fewer cells",
            )
        self.latent_size = 1 + 2 * n  # what to draw from, and two numbers in each dimension
        self.low: Tensor
        self.high: Tensor
        self.margin: Tensor
        self.shares: Tensor
        self.register_buffer("low", -torch.ones(n))
        self.register_buffer("high", torch.ones(n))
        self.register_buffer("margin", torch.ones(n))
        self.register_buffer("shares", torch.full((config.num_cells**n,), config.num_cells**-n))

    def initialise(self, average: Average) -> None:
        mean = average(lambda x: x.flatten(1))
        sd = average(lambda x: (x.flatten(1) - mean) ** 2).sqrt()
        if not (sd > 0).all():
            raise ConfigError(
                "generator: a histogram of data with a constant value has no width",
                "drop the value, or choose another noise, such as gaussian",
            )
        # in two steps: the power of a far value alone may overflow
        wide = average(lambda x: ((x.flatten(1) - mean) / sd) ** _FIRST_POWER) ** (1 / _FIRST_POWER)
        wide = wide * sd
        norm = average(lambda x: ((x.flatten(1) - mean) / wide) ** _POWER) ** (1 / _POWER)
        reach = _SLACK * norm * wide
        self.low.copy_(mean - reach)
        self.high.copy_(mean + reach)
        self.margin.copy_(self.config.margin * sd)

        def counts(x: Tensor) -> Tensor:
            cell = self._cells(x.flatten(1).to(self.low)).floor().long()
            flat = (cell.clamp(0, self.config.num_cells - 1) * self._strides()).sum(dim=1)
            return torch.bincount(flat, minlength=len(self.shares))[None].double()

        self.shares.copy_(average(counts))

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.special.ndtr(z.double())
        share = u[:, 0]
        first, second = u[:, 1:].chunk(2, dim=1)
        total = self.shares.double().cumsum(0)
        wanted = ((share - self.config.box_share) / (1 - self.config.box_share)) * total[-1]
        index = torch.searchsorted(total, wanted.clamp(min=0)).clamp(max=len(total) - 1)
        cell = index[:, None] // self._strides() % self.config.num_cells
        near = self.low + (cell + first + second - 0.5) * self._side()
        low, high = self.low - self.margin, self.high + self.margin
        anywhere = low + first * (high - low)
        x = torch.where((share < self.config.box_share)[:, None], anywhere, near).to(z)
        return x.view(-1, *self.shape), self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        place = self._cells(x) - 0.5  # from the first centre, in cells
        corner, rest = place.floor(), place - place.floor()
        density = x.new_zeros(len(x))
        for offset in itertools.product((0, 1), repeat=x.shape[1]):
            step = torch.tensor(offset, device=x.device)
            cell = corner + step
            weight = torch.where(step == 1, rest, 1 - rest).prod(dim=1)
            is_inside = ((cell >= 0) & (cell < self.config.num_cells)).all(dim=1)
            index = (cell.clamp(0, self.config.num_cells - 1).long() * self._strides()).sum(dim=1)
            density = density + weight * self.shares[index] * is_inside
        low, high = self.low - self.margin, self.high + self.margin
        is_inside = ((x >= low) & (x <= high)).all(dim=1)
        box = is_inside / (high - low).prod()
        a = self.config.box_share
        return ((1 - a) * density / self._side().prod() + a * box).log()

    def _side(self) -> Tensor:
        return (self.high - self.low) / self.config.num_cells

    def _cells(self, x: Tensor) -> Tensor:
        return (x - self.low) / self._side()

    def _strides(self) -> Tensor:
        powers = torch.arange(len(self.low) - 1, -1, -1, device=self.low.device)
        return torch.as_tensor(self.config.num_cells) ** powers


def build(config: Config, *, shape: tuple[int, ...]) -> FlowModel:
    return Histogram(config, shape)
