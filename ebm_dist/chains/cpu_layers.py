"""Layers in the form that is soonest done by compiled code on a CPU: for the copy of a network on which chains walk.

The functions are the same, and so are names and shapes of the weights; only the last bits of what is computed are others.
"""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEWEST_CHANNELS = 64  # of a wide convolution: with less, sums and copies take up much of what fewer products bring
_MOST_INPUTS = 4  # of a linear layer that is written as sums


def is_wide(network: nn.Module) -> bool:
    """Whether it has convolutions of so many channels that they are nearly all the work."""
    return any(_is_suited(layer) for layer in network.modules())


def replace_layers(network: nn.Module) -> None:
    """Give a network's layers their fast form, where they have one.

    Frozen weights only: the gradient by them is not computed. After their weights have changed, call :func:`sync_weights`.
    """
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
            layer.weight = nn.Parameter(
                layer.weight.detach().t().contiguous().t(), requires_grad=False
            )
        elif _is_suited(layer):
            layer.__class__ = Conv3x3
            for name, rows in _kept(layer).items():
                layer.register_buffer(name, rows, persistent=False)


def sync_weights(network: nn.Module) -> None:
    """Compute what the layers keep beside their weights."""
    for layer in network.modules():
        if isinstance(layer, Conv3x3):
            for name, rows in _kept(layer).items():
                getattr(layer, name).copy_(rows)


class Linear(nn.Linear):
    """The weights lie column by column. Few inputs, as of points of a plane, are summed, and fuse with what is around them."""

    def forward(self, h: Tensor) -> Tensor:
        if self.in_features <= _MOST_INPUTS and torch.compiler.is_compiling():
            h = _FewInputs.apply(h, self.weight)  # type: ignore[no-untyped-call]
            return h if self.bias is None else h + self.bias
        # subtracted, as an added bias becomes part of the product, which first copies it to every row
        return (
            F.linear(h, self.weight)
            if self.bias is None
            else F.linear(h, self.weight) - (-self.bias)
        )


class _FewInputs(torch.autograd.Function):
    """``x W^T`` without a matrix product, nor in its gradient by ``x``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        first, *others = (x[..., i, None] * column for i, column in enumerate(weight.unbind(1)))
        return sum(others, first)

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
    """With half the products; only compiled, where sums and copies become a few loops."""

    kernel: Tensor
    kernel_transposed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 4 or not torch.compiler.is_compiling():
            return super().forward(x)
        h = _MinimalFiltering.apply(x, self.kernel, self.kernel_transposed)  # type: ignore[no-untyped-call]
        return h if self.bias is None else h + self.bias[:, None, None]  # type: ignore[no-any-return]


def _kept(layer: nn.Conv2d) -> dict[str, Tensor]:
    weight = layer.weight.detach()
    return {"kernel": kernel_rows(weight), "kernel_transposed": kernel_rows(_turned(weight))}


class _MinimalFiltering(torch.autograd.Function):
    """:func:`convolve`, and its gradient by the image, which is the convolution with the turned kernel ``back``."""

    @staticmethod
    def forward(x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        return convolve(x, there)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return convolve(gradient, *ctx.saved_tensors), None, None


def convolve(x: Tensor, rows: Tensor) -> Tensor:
    """Images ``(B, i, H, W)``, H a multiple of 4, to ``(B, o, H, W)``: 3x3, stride 1, padding 1.

    Winograd's minimal filtering F(4, 3) along the columns: of each four results six products instead of twelve. Matrices B, G and A
    as in Lavin & Gray (2016), section 4.3, there for both directions; along one, sums are few and the rest is a usual convolution.
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
    """G g: a kernel ``(o, i, 3, 3)`` to the six of one row that :func:`convolve` takes, ``(6 o, i, 1, 3)``."""
    g0, g1, g2 = weight.unbind(2)
    a, b = -(g0 + g2) / 6, g0 / 24 + g2 / 6
    six = torch.cat([g0 / 4, a - g1 / 6, a + g1 / 6, b + g1 / 12, b - g1 / 12, g2])
    return six.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _turned(weight: Tensor) -> Tensor:
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
