"""What several energies share: SiLU with a cheap gradient, spectral normalisation, the linear
energy of features, the density of a mixture of logistics, and the check for images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ebm_dist.errors import ConfigError


def check_images(name: str, shape: tuple[int, ...], min_side: int = 1) -> None:
    """Check that samples have the shape of images of a minimum size.

    Raise :class:`ConfigError` otherwise.
    """
    if len(shape) != 3:
        raise ConfigError(
            f"energy: {name} needs images, found samples of shape {shape}", "set energy.name: mlp"
        )
    if min(shape[1:]) < min_side:
        raise ConfigError(
            f"energy: {name} with these channels needs images of at least {min_side}x{min_side}"
            f" pixels, found {shape[1]}x{shape[2]}",
            "drop some of energy.channels, or set energy.name: mlp",
        )


def linear_energy(layer: nn.Linear, h: Tensor) -> Tensor:
    """Return the single output ``(B,)`` of a layer on features ``h (B, n)``.

    It is a matrix-vector product, so its gradient needs no matrix product.
    """
    energy = torch.mv(h.to(layer.weight.dtype), layer.weight[0])  # autocast on a CPU leaves mv out
    return energy if layer.bias is None else energy + layer.bias


def logistic_mixture(
    x: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor, dim: int
) -> Tensor:
    """Return the log density of each value of ``x``, of its shape, in nats (Salimans et al. 2017).

    The parameters have ``x``'s shape and ``dim`` more, over the logistic distributions.
    """
    v = (x.unsqueeze(dim) - means) * (-log_scales).exp()
    each = log_weights + F.logsigmoid(v) + F.logsigmoid(-v) - log_scales
    return each.logsumexp(dim=dim)


class _Silu(torch.autograd.Function):
    """``h sigmoid(h)`` and its slope, so that the gradient needs no second sigmoid."""

    @staticmethod
    def forward(h: Tensor) -> tuple[Tensor, Tensor]:
        sigmoid = h.sigmoid()
        unit = h * sigmoid
        return unit, sigmoid + unit * (1 - sigmoid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * ctx.saved_tensors[0]  # type: ignore[no-any-return]


def silu(h: Tensor) -> Tensor:
    """Return ``h sigmoid(h)``, of the same shape."""
    return _Silu.apply(h)[0] if torch.compiler.is_compiling() else F.silu(h)  # type: ignore[no-any-return, no-untyped-call]


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Divide a layer's weight by its largest singular value (Miyato et al. 2018).

    The layer stays in evaluation mode. Otherwise torch would run a power iteration in every
    forward pass, and the estimate would depend on the number of passes of a worker.
    :func:`ebm_dist.energies.iterate_power` runs the iteration once per update.
    """
    return parametrizations.spectral_norm(layer).eval()
