"""Random image transformations as a transition of chains (Du et al. 2021, section 3.2).

A rotated or mirrored chain starts near its mode, at a position that the sampler would not reach
from noise. It then moves to another mode, or it is a negative sample at that position.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ebm_dist.errors import ConfigError
from ebm_dist.samplers import Bounds

Augmentation = Literal["affine", "crop"]

_MAX_LOG_SCALE, _MAX_SHEAR, _MAX_SHIFT = 0.3, 0.3, 0.15  # the shift is in half image widths
_LEAST_AREA, _MAX_COLOUR = 0.08, 0.4


def affine(x: Tensor, prob: float, bounds: Bounds, generator: Generator) -> Tensor:
    """Apply a random affine map to each image ``(B, C, H, W)`` with probability ``prob``.

    It rotates by any angle, mirrors half of the images, scales, shears and shifts. Pixels from
    outside the image are the lower bound, or 0. Raise :class:`ConfigError` if ``x`` is not images.
    """
    low = bounds[0] if bounds else 0.0
    uniform = _uniform(x, generator)
    is_changed, mirror = uniform(1.0).add(1).div(2) < prob, torch.where(uniform(1.0) < 0, -1.0, 1.0)
    angle, scale, shear = uniform(math.pi), uniform(_MAX_LOG_SCALE).exp(), uniform(_MAX_SHEAR)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    top = torch.stack([cos * mirror, shear * cos * mirror - sin, uniform(_MAX_SHIFT)], dim=1)
    bottom = torch.stack([sin * mirror, shear * sin * mirror + cos, uniform(_MAX_SHIFT)], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(x.shape), align_corners=False)
    return torch.where(
        is_changed.view(-1, 1, 1, 1), F.grid_sample(x - low, grid, align_corners=False) + low, x
    )


def crop(x: Tensor, prob: float, bounds: Bounds, generator: Generator) -> Tensor:
    """Randomly crop and recolour each image ``(B, C, H, W)`` with probability ``prob``.

    Half of the images are mirrored. The square crop has 8 to 100 % of the area, log-uniformly, and
    is enlarged to the image. Saturation, contrast, brightness and hue change by up to 40, 40, 20
    and 10 % of the range. Raise :class:`ConfigError` if ``x`` is not images.
    """
    uniform = _uniform(x, generator)
    is_changed, mirror = uniform(1.0).add(1).div(2) < prob, torch.where(uniform(1.0) < 0, -1.0, 1.0)
    side = (uniform(1.0).add(1).div(4) * math.log(_LEAST_AREA)).exp()
    zero = torch.zeros_like(side)
    top = torch.stack([side * mirror, zero, uniform(1.0) * (1 - side)], dim=1)
    bottom = torch.stack([zero, side, uniform(1.0) * (1 - side)], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(x.shape), align_corners=False)
    y = F.grid_sample(x, grid, align_corners=False, padding_mode="border")
    grey = y.mean(dim=1, keepdim=True)
    y = grey + (y - grey) * (1 + uniform(_MAX_COLOUR)).view(-1, 1, 1, 1)
    mean = y.mean(dim=(1, 2, 3), keepdim=True)
    shift = uniform(_MAX_COLOUR / 2)[:, None] + torch.stack(
        [uniform(_MAX_COLOUR / 4) for _ in range(x.shape[1])], dim=1
    )
    y = mean + (y - mean) * (1 + uniform(_MAX_COLOUR)).view(-1, 1, 1, 1) + shift[:, :, None, None]
    return torch.where(is_changed.view(-1, 1, 1, 1), y if bounds is None else y.clamp(*bounds), x)


AUGMENTATIONS: dict[Augmentation, Callable[[Tensor, float, Bounds, Generator], Tensor]] = {
    "affine": affine,
    "crop": crop,
}


def _uniform(x: Tensor, generator: Generator) -> Callable[[float], Tensor]:
    """Return a function ``largest -> (B,)`` that draws uniformly in ``(-largest, largest)``."""
    if x.ndim != 4:
        raise ConfigError(
            f"objective.augment_prob: needs images, found samples of shape {tuple(x.shape[1:])}",
            "set it to 0",
        )
    return lambda largest: (
        (2 * torch.rand(len(x), generator=generator, device=x.device) - 1) * largest
    )
