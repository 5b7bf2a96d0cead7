"""Random changes of images as a transition of chains (Du et al. 2021, Improved Contrastive Divergence, section 3.2).

A chain that is turned or mirrored lands beside its mode, in a place where the sampler alone would not come from noise: it finds
the way to other modes, or is a negative there.
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

_MAX_LOG_SCALE, _MAX_SHEAR, _MAX_SHIFT = 0.3, 0.3, 0.15  # the shift is in half widths of the image
_LEAST_AREA, _MAX_COLOUR = 0.08, 0.4


def affine(x: Tensor, prob: float, bounds: Bounds, generator: Generator) -> Tensor:
    """Images ``(B, C, H, W)``, each with probability ``prob`` turned by any angle, mirrored or not, scaled, sheared and shifted.

    What comes in from beyond the edge is the low bound, or 0. Raises :class:`ConfigError` if these are no images.
    """
    low = bounds[0] if bounds else 0.0
    uniform = _uniform(x, generator)
    chosen, mirror = uniform(1.0).add(1).div(2) < prob, torch.where(uniform(1.0) < 0, -1.0, 1.0)
    angle, scale, shear = uniform(math.pi), uniform(_MAX_LOG_SCALE).exp(), uniform(_MAX_SHEAR)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    top = torch.stack([cos * mirror, shear * cos * mirror - sin, uniform(_MAX_SHIFT)], dim=1)
    bottom = torch.stack([sin * mirror, shear * sin * mirror + cos, uniform(_MAX_SHIFT)], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(x.shape), align_corners=False)
    return torch.where(
        chosen.view(-1, 1, 1, 1), F.grid_sample(x - low, grid, align_corners=False) + low, x
    )


def crop(x: Tensor, prob: float, bounds: Bounds, generator: Generator) -> Tensor:
    """Images ``(B, C, H, W)``, each with probability ``prob`` mirrored or not, a square part of it enlarged, its colours changed.

    The part has 8 to 100 % of the area, log-uniformly; saturation, contrast, brightness and hue change by up to 40, 40, 20 and 10 %
    of the range. Raises :class:`ConfigError` if these are no images.
    """
    uniform = _uniform(x, generator)
    chosen, mirror = uniform(1.0).add(1).div(2) < prob, torch.where(uniform(1.0) < 0, -1.0, 1.0)
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
    return torch.where(chosen.view(-1, 1, 1, 1), y if bounds is None else y.clamp(*bounds), x)


AUGMENTATIONS: dict[Augmentation, Callable[[Tensor, float, Bounds, Generator], Tensor]] = {
    "affine": affine,
    "crop": crop,
}


def _uniform(x: Tensor, generator: Generator) -> Callable[[float], Tensor]:
    """``largest -> (B,)`` uniform between plus and minus that."""
    if x.ndim != 4:
        raise ConfigError(
            f"objective.augment_prob: samples of shape {tuple(x.shape[1:])} are no images to turn; set it to 0"
        )
    return lambda largest: (
        (2 * torch.rand(len(x), generator=generator, device=x.device) - 1) * largest
    )
