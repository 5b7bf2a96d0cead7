"""Out-of-distribution samples with the shape, range and grey levels of the data."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ebm_dist.data import shards
from ebm_dist.rng import numpy_stream, stream


def synthetic(real: Tensor, index: shards.Index) -> dict[str, Tensor]:
    """Return sets made from test samples ``(n, *shape)`` and from noise.

    They are those of Du & Mordatch 2019, Figure 9, within the bounds of the data, or else within
    the range of these samples.
    """
    n = len(real)
    low, high = index.bounds or (float(real.min()), float(real.max()))
    uniform = torch.rand(real.shape, generator=stream(0, "ood/uniform")) * (high - low) + low
    shuffled = numpy_stream(0, "ood/shuffled").permuted(real.flatten(1).numpy(), axis=1)
    sets = {
        "uniform": uniform,  # every value of every sample U(low, high)
        "interpolation": (real + real.roll(1, dims=0)) / 2,  # the mean of two different samples
        # the values of a sample in random order
        "shuffled": torch.from_numpy(shuffled).view_as(real),
    }
    if real.ndim == 4:  # one colour per image
        size = (n, real.shape[1], 1, 1)
        colours = torch.rand(size, generator=stream(0, "ood/constant")) * (high - low) + low
        sets["constant"] = colours.expand_as(real)
    return {name: _rounded(sets[name], index) for name in synthetic_names(index.shape)}


def synthetic_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the synthetic sets for samples of a shape."""
    return ("uniform", *(["constant"] if len(shape) == 3 else []), "interpolation", "shuffled")


def others_like(
    index: shards.Index, others: Mapping[str, shards.Index], max_samples: int
) -> dict[str, Tensor]:
    """Return test samples ``(n, *shape)`` of other data sets, by name.

    Images are resized by area averaging, and their channels are averaged or repeated. Other samples
    must have the shape of the data.
    """
    sets = {}
    for name, other in others.items():
        x = shards.read_split(other, "test")[0][:max_samples]
        if len(index.shape) == 3:
            channels, height, width = index.shape
            if x.shape[1] != channels:
                x = x.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
            if x.shape[2:] != (height, width):
                x = F.interpolate(x, (height, width), mode="area")
        sets[name] = _rounded(x, index)
    return sets


def _rounded(x: Tensor, index: shards.Index) -> Tensor:
    """Round values to the grey levels of the data; floats have none."""
    stored = shards.read_raw(index, "test", range(1))[0].dtype
    if not np.issubdtype(stored, np.integer):
        return x
    return (x * index.scale).round() / index.scale
