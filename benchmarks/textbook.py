"""Train an energy by Langevin dynamics as tutorials do: the baseline of the benchmarks.

It uses networks of standard layers, a spectral norm computed in each forward pass, a list of
tensors as the buffer, and gradients by ``backward()``. With ``freezes`` the sampler switches the
gradients of the weights off, as careful tutorials do.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Mlp(nn.Module):
    """The layers of :mod:`ebm_dist.energies.mlp` with two hidden layers of 128, for 2-D data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = (
            nn.ModuleList([nn.Linear(2, 128), nn.Linear(128, 128)]),
            nn.Linear(128, 1),
        )

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.last(x).squeeze(-1)


class ConvNet(nn.Module):
    """The layers of :mod:`ebm_dist.energies.convnet` with its default settings, 1x28x28."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(1, 16, 5, stride=2, padding=4),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.Conv2d(32, 64, 3, stride=2, padding=1),
                nn.Conv2d(64, 64, 3, stride=2, padding=1),
            ]
        )
        self.hidden, self.last = nn.Linear(256, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for convolution in self.convolutions:
            x = F.silu(convolution(x))
        return self.last(F.silu(self.hidden(x.flatten(1)))).squeeze(-1)


class Block(nn.Module):
    """A residual block with class-conditional gain and biases."""

    def __init__(self, i: int, o: int, num_classes: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.first = parametrizations.spectral_norm(nn.Conv2d(i, o, 3, padding=1))
        self.second = parametrizations.spectral_norm(nn.Conv2d(o, o, 3, padding=1))
        self.shortcut = (
            parametrizations.spectral_norm(nn.Conv2d(i, o, 1, bias=False))
            if i != o
            else nn.Identity()
        )
        self.classes = nn.ModuleList(nn.Embedding(num_classes, o) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first_bias, gain, second_bias = (
            embedding(y)[:, :, None, None] for embedding in self.classes
        )
        h = F.leaky_relu(self.first(x) + first_bias, 0.2)
        h = gain * self.second(h) + second_bias + self.shortcut(x)
        if self.halves:
            h = F.avg_pool2d(h, 2)
        return F.leaky_relu(h, 0.2)


class ResNet(nn.Module):
    """The layers of :mod:`ebm_dist.energies.resnet`, class-conditional, 3x32x32."""

    def __init__(
        self, channels: tuple[int, ...] = (128, 128, 256, 256, 256, 256), num_classes: int = 10
    ) -> None:
        super().__init__()
        widths = (channels[0], *channels)
        self.first = parametrizations.spectral_norm(nn.Conv2d(3, channels[0], 3, padding=1))
        self.blocks = nn.ModuleList(
            Block(widths[n], widths[n + 1], num_classes, n % 2 == 0) for n in range(len(channels))
        )
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), 0.2)
        for block in self.blocks:
            h = block(h, y)
        return self.last(h.sum(dim=(2, 3))).squeeze(-1)


def sample(
    network: nn.Module,
    x: Tensor,
    y: Tensor | None,
    num_steps: int,
    *,
    step_size: float = 10.0,
    noise_scale: float = 0.005,
    clip: float = 0.03,
    freezes: bool = False,
    noise: Tensor | None = None,
) -> Tensor:
    """Run ``num_steps`` Langevin steps from ``x (B, *shape)``.

    ``noise (num_steps, *x.shape)``: standard normal noise to use instead of random draws.
    """
    if freezes:
        for parameter in network.parameters():
            parameter.requires_grad = False
    x = x.clone().requires_grad_()
    drawn = torch.empty_like(x)
    for step in range(num_steps):
        energy = network(x) if y is None else network(x, y)
        energy.sum().backward()
        x.grad.data.clamp_(-clip, clip)
        x.data.add_(-step_size * x.grad.data)
        x.data.add_(noise_scale * (drawn.normal_() if noise is None else noise[step]))
        x.data.clamp_(0, 1)
        x.grad.detach_()
        x.grad.zero_()
    if freezes:
        for parameter in network.parameters():
            parameter.requires_grad = True
    return x.detach()


class Trainer:
    """Train with negatives from a buffer, a loss with energy penalty, and Adam."""

    def __init__(
        self,
        network: nn.Module,
        shape: tuple[int, ...],
        num_classes: int,
        num_steps: int,
        freezes: bool,
    ) -> None:
        self.network, self.num_classes, self.num_steps, self.freezes = (
            network,
            num_classes,
            num_steps,
            freezes,
        )
        self.buffer = [torch.rand(1, *shape) for _ in range(8192)]
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.0, 0.999))

    def step(self, x: Tensor) -> None:
        """Update the network on data ``x (B, *shape)``."""
        picked = [
            random.randrange(len(self.buffer)) if random.random() > 0.05 else None
            for _ in range(len(x))
        ]
        start = torch.cat(
            [torch.rand(1, *x.shape[1:]) if slot is None else self.buffer[slot] for slot in picked]
        ).to(x.device)
        y = (
            torch.randint(self.num_classes, (len(x),), device=x.device)
            if self.num_classes
            else None
        )
        negative = sample(self.network, start, y, self.num_steps, freezes=self.freezes)
        self.buffer = (list(negative.cpu().chunk(len(x))) + self.buffer)[:8192]
        self.optimizer.zero_grad()
        both = torch.cat([x, negative])
        energy = self.network(both) if y is None else self.network(both, torch.cat([y, y]))
        positive, negative_energy = energy.chunk(2)
        loss = (
            positive.mean()
            - negative_energy.mean()
            + 0.1 * (positive**2 + negative_energy**2).mean()
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 0.1)
        self.optimizer.step()
