"""Random changes of images as a transition of chains (Du et al. 2021, Improved Contrastive Divergence, section 3.2).

A chain that is turned or mirrored lands beside its mode, in a place where the sampler alone would not come from noise: it finds
the way to other modes, or is a negative there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ebm_dist.errors import ConfigError
from ebm_dist.samplers import Bounds

_MAX_LOG_SCALE, _MAX_SHEAR, _MAX_SHIFT = 0.3, 0.3, 0.15  # the shift is in half widths of the image


def augmented(x: Tensor, prob: float, bounds: Bounds, generator: Generator) -> Tensor:
    """Images ``(B, C, H, W)``, each with probability ``prob`` turned by any angle, mirrored or not, scaled, sheared and shifted.

    What comes in from beyond the edge is the low bound, or 0. Raises :class:`ConfigError` if these are no images.
    """
    if x.ndim != 4:
        raise ConfigError(f"objective.augment_prob: samples of shape {tuple(x.shape[1:])} are no images to turn; set it to 0")
    low = bounds[0] if bounds else 0.0

    def uniform(largest: float) -> Tensor:
        return (2 * torch.rand(len(x), generator=generator, device=x.device) - 1) * largest

    chosen, mirror = uniform(1.0).add(1).div(2) < prob, torch.where(uniform(1.0) < 0, -1.0, 1.0)
    angle, scale, shear = uniform(math.pi), uniform(_MAX_LOG_SCALE).exp(), uniform(_MAX_SHEAR)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    top = torch.stack([cos * mirror, shear * cos * mirror - sin, uniform(_MAX_SHIFT)], dim=1)
    bottom = torch.stack([sin * mirror, shear * sin * mirror + cos, uniform(_MAX_SHIFT)], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(x.shape), align_corners=False)
    return torch.where(chosen.view(-1, 1, 1, 1), F.grid_sample(x - low, grid, align_corners=False) + low, x)
