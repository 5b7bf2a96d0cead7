"""What a generator cannot make of a sample: ``|x - G(e(x))|^2``, with an encoder e.

The encoder learns on training samples, with the generator fixed (Schlegl et al. 2019, section 3.2,
"izi"; a BiGAN learns both together, Donahue, Krahenbuhl & Darrell 2017).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ebm_dist.energies import frozen
from ebm_dist.rng import numpy_stream, seeded

_BATCH, _WIDTHS, _HIDDEN = 64, (16, 32, 64), 128


def error(
    generator: nn.Module, latent_size: int, train: Tensor, num_steps: int, lr: float
) -> Callable[[Tensor], Tensor]:
    """Train an encoder of ``train (n, *shape)``; return the errors ``(m,)`` of ``x (m, *shape)``.

    ``generator`` maps ``(m, latent_size)`` to ``(m, *shape)``. ``lr`` is the rate of Adam.
    """
    with seeded(0, "inversion/encoder"):
        encoder = _encoder(tuple(train.shape[1:]), latent_size)
        encoder(train[:1])  # sets the width of its input
    optimizer, rows = torch.optim.Adam(encoder.parameters(), lr=lr), numpy_stream(0, "inversion")

    def errors(x: Tensor) -> Tensor:
        missing: Tensor = x - generator(encoder(x))
        return (missing**2).flatten(1).sum(dim=1)

    with torch.enable_grad(), frozen(generator):
        for _ in range(num_steps):
            batch = torch.from_numpy(rows.integers(len(train), size=_BATCH))
            optimizer.zero_grad()
            errors(train[batch]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.no_grad()
    def scores(x: Tensor) -> Tensor:
        return torch.cat([errors(part) for part in x.split(1000)])

    return scores


def _encoder(shape: tuple[int, ...], latent_size: int) -> nn.Module:
    layers: list[nn.Module] = []
    if len(shape) == 3:
        for i, o in pairwise((shape[0], *_WIDTHS)):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.SiLU()]
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.LazyLinear(_HIDDEN),
        nn.SiLU(),
        nn.Linear(_HIDDEN, latent_size),
    )
