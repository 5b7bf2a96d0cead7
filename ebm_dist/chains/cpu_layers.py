"""CPU-optimised layers for frozen networks in compiled chains.

They compute the same functions from weights of the same names and shapes. Only the last bits of
the results differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEWEST_CHANNELS = 64  # of a wide convolution: with fewer, sums and copies cost what products save
_MOST_INPUTS = 4  # of a linear layer that is written as sums


def is_wide(network: nn.Module) -> bool:
    """Return whether the network has wide convolutions, which then are nearly all of its work."""
    return any(_is_suited(layer) for layer in network.modules())


def replace_layers(network: nn.Module) -> None:
    """Replace a network's layers by their fast forms, in place.

    The weights must be frozen: their gradient is not computed. Call :func:`sync_weights` after the
    weights have changed.
    """
    for layer in network.modules():
        if type(layer) is nn.Linear:
            _make_fast(layer)
        elif _is_suited(layer):
            layer.__class__ = Conv3x3
            for name, rows in _derived_kernels(layer).items():
                layer.register_buffer(name, rows, persistent=False)


@contextmanager
def fast_linear_layers(network: nn.Module) -> Iterator[None]:
    """Replace the linear layers of a frozen network by their fast forms for the block."""
    layers = [layer for layer in network.modules() if type(layer) is nn.Linear]
    weights = [layer.weight for layer in layers]
    for layer in layers:
        _make_fast(layer)
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.__class__, layer.weight = nn.Linear, weight


def _make_fast(layer: nn.Linear) -> None:
    layer.__class__ = Linear
    column_major = layer.weight.detach().t().contiguous().t()
    layer.weight = nn.Parameter(column_major, requires_grad=False)


def sync_weights(network: nn.Module) -> None:
    """Recompute the kernels that layers derive from their weights."""
    for layer in network.modules():
        if isinstance(layer, Conv3x3):
            for name, rows in _derived_kernels(layer).items():
                getattr(layer, name).copy_(rows)


class Linear(nn.Linear):
    """A linear layer with column-major weights.

    Few inputs, such as points of a plane, are summed in loops that fuse with neighbouring layers.
    """

    def forward(self, h: Tensor) -> Tensor:
        if self.in_features <= _MOST_INPUTS and torch.compiler.is_compiling():
            h = _FewInputs.apply(h, self.weight)  # type: ignore[no-untyped-call]
            return h if self.bias is None else h + self.bias
        # subtract: an added bias becomes part of the product, which first copies it to every row
        return (
            F.linear(h, self.weight)
            if self.bias is None
            else F.linear(h, self.weight) - (-self.bias)
        )


class _FewInputs(torch.autograd.Function):
    """``x W^T`` without a matrix product, also in the gradient with respect to ``x``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        first, *rest = (x[..., i, None] * column for i, column in enumerate(weight.unbind(1)))
        return sum(rest, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return torch.stack(
            [(gradient * column).sum(-1) for column in weight.unbind(1)], dim=-1
        ), None


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with half of the products.

    It is used only in compiled code, where sums and copies become a few loops.
    """

    kernel: Tensor
    kernel_transposed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 4 or not torch.compiler.is_compiling():
            return super().forward(x)
        h = _MinimalFiltering.apply(x, self.kernel, self.kernel_transposed)  # type: ignore[no-untyped-call]
        return h if self.bias is None else h + self.bias[:, None, None]  # type: ignore[no-any-return]


def _derived_kernels(layer: nn.Conv2d) -> dict[str, Tensor]:
    weight = layer.weight.detach()
    return {"kernel": kernel_rows(weight), "kernel_transposed": kernel_rows(_transposed(weight))}


class _MinimalFiltering(torch.autograd.Function):
    """:func:`convolve` with a gradient with respect to the image.

    The gradient is the convolution with the rotated, transposed kernel.
    """

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, kernel_transposed: Tensor) -> Tensor:
        return convolve(x, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return convolve(gradient, *ctx.saved_tensors), None, None


def convolve(x: Tensor, rows: Tensor) -> Tensor:
    """Convolve images ``(B, i, H, W)`` to ``(B, o, H, W)``: 3x3, stride 1, padding 1.

    ``H`` must be a multiple of 4. Winograd's minimal filtering F(4, 3) along the columns needs six
    products for four results instead of twelve. The matrices B, G and A are those of Lavin & Gray
    (2016), section 4.3. The paper filters both directions; one needs fewer sums, and the rest is an
    ordinary convolution.
    """
    height = x.shape[2]
    padded = F.pad(x, (0, 0, 1, 1))
    d0, d1, d2, d3, d4, d5 = (padded[:, :, i : i + height - 3 : 4] for i in range(6))
    a, b, c, d = d4 - 4 * d2, d3 - 4 * d1, d4 - d2, 2 * (d3 - d1)
    data = torch.cat(
        [4 * d0 - 5 * d2 + d4, a + b, a - b, c + d, c - d, 4 * d1 - 5 * d3 + d5], dim=1
    )  # B^T d
    m0, m1, m2, m3, m4, m5 = F.conv2d(data, rows, padding=(0, 1), groups=6).chunk(6, dim=1)
    a, b, c, d = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return torch.stack([m0 + a + c, b + 2 * d, a + 4 * c, b + 8 * d + m5], dim=3).flatten(
        2, 3
    )  # A^T m


def kernel_rows(weight: Tensor) -> Tensor:
    """Return G g ``(6 o, i, 1, 3)`` of a kernel ``(o, i, 3, 3)``: the rows for :func:`convolve`."""
    g0, g1, g2 = weight.unbind(2)
    a, b = -(g0 + g2) / 6, g0 / 24 + g2 / 6
    six = torch.cat([g0 / 4, a - g1 / 6, a + g1 / 6, b + g1 / 12, b - g1 / 12, g2])
    return six.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _transposed(weight: Tensor) -> Tensor:
    return weight.flip(2, 3).transpose(0, 1)


def _is_suited(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(layer) is not nn.Conv2d:
        return False
    is_plain = (
        layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )
    return (
        is_plain
        and layer.weight.shape[2:] == (3, 3)
        and min(layer.weight.shape[:2]) >= _FEWEST_CHANNELS
    )
