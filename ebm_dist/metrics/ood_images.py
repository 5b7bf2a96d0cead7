"""Out-of-distribution images with the shape, range and grey levels of the data."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ebm_dist.data import shards
from ebm_dist.rng import numpy_stream, stream


def synthetic(real: Tensor, index: shards.Index) -> dict[str, Tensor]:
    """Return sets made from test images ``(n, channels, h, w)`` and from noise.

    They are those of Du & Mordatch 2019, Figure 9.
    """
    n, channels = real.shape[:2]
    low, high = index.bounds or (float(real.min()), float(real.max()))
    uniform = torch.rand(real.shape, generator=stream(0, "ood/uniform")) * (high - low) + low
    colours = (
        torch.rand(n, channels, 1, 1, generator=stream(0, "ood/constant")) * (high - low) + low
    )
    shuffled = numpy_stream(0, "ood/shuffled").permuted(real.flatten(1).numpy(), axis=1)
    sets = {
        "uniform": uniform,  # every pixel of every image U(low, high)
        "constant": colours.expand_as(real),  # one colour per image
        "interpolation": (real + real.roll(1, dims=0)) / 2,  # the mean of two different test images
        # the values of a test image in random order
        "shuffled": torch.from_numpy(shuffled).view_as(real),
    }
    return {name: _rounded(x, index.scale) for name, x in sets.items()}


def others_like(
    index: shards.Index, others: Mapping[str, shards.Index], max_samples: int
) -> dict[str, Tensor]:
    """Return test images ``(n, *shape)`` of other data sets, by name.

    They are resized by area averaging, and their channels are averaged or repeated.
    """
    channels, height, width = index.shape
    sets = {}
    for name, other in others.items():
        x = shards.read_split(other, "test")[0][:max_samples]
        if x.shape[1] != channels:
            x = x.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
        if x.shape[2:] != (height, width):
            x = F.interpolate(x, (height, width), mode="area")
        sets[name] = _rounded(x, index.scale)
    return sets


def _rounded(x: Tensor, scale: float) -> Tensor:
    return (x * scale).round() / scale
