"""The fast forms of layers against the layers: the same function, the same gradient by the input."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ebm_dist.chains.cpu_layers import (
    Conv3x3,
    Linear,
    _MinimalFiltering,
    convolve,
    is_wide,
    kernel_rows,
    replace_layers,
    sync_weights,
)
from ebm_dist.energies import resnet
from ebm_dist.energies._layers import silu


@pytest.fixture
def compiling(monkeypatch):
    """What layers do in compiled code, without a compiler."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def close(a, b, digits=12):
    torch.testing.assert_close(a, b, rtol=0, atol=10.0**-digits)


@pytest.mark.parametrize(
    ("i", "o", "height", "width"), [(1, 1, 4, 1), (3, 2, 4, 7), (2, 5, 8, 8), (4, 3, 16, 3)]
)
def test_half_the_products_give_the_convolution_and_its_gradient(i, o, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, i, height, width, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(o, i, 3, 3, dtype=torch.float64, generator=generator)
    there, back = kernel_rows(weight), kernel_rows(weight.flip(2, 3).transpose(0, 1))
    expected = F.conv2d(x, weight, padding=1)
    close(convolve(x, there), expected)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    (right,) = torch.autograd.grad(expected, x, gradient)
    close(torch.autograd.grad(_MinimalFiltering.apply(x, there, back), x, gradient)[0], right)


def test_half_the_products_of_the_residual_net_are_saved(compiling):
    network, x = (
        resnet.build(resnet.Config(spectral_norm=False), shape=(3, 32, 32), num_classes=0),
        torch.rand(1, 3, 32, 32),
    )

    def gflop():
        with FlopCounterMode(display=False) as counter:
            network(x.requires_grad_()).sum().backward()
        return counter.get_total_flops() / 1e9

    network.requires_grad_(False)
    assert gflop() == pytest.approx(2.36, abs=0.005)
    assert is_wide(network)
    replace_layers(network)
    assert gflop() == pytest.approx(1.49, abs=0.005)


class OwnConv(nn.Conv2d):
    pass


def test_only_layers_whose_fast_form_is_the_same_function_get_it():
    conv = nn.Conv2d
    unsuited = [
        conv(64, 64, 3, padding=1, stride=2), conv(64, 64, 3), conv(64, 64, 5, padding=1), conv(64, 64, 3, padding=1, groups=2),
        conv(64, 64, 3, padding=1, dilation=2), conv(3, 64, 3, padding=1), conv(64, 3, 3, padding=1), OwnConv(64, 64, 3, padding=1),
        nn.ConvTranspose2d(64, 64, 3, padding=1), conv(64, 64, 3, padding=1, padding_mode="reflect"), conv(64, 64, 3, padding="same"),
    ]  # fmt: skip
    kinds = [type(layer) for layer in unsuited]
    assert not is_wide(nn.ModuleList(unsuited))
    replace_layers(nn.ModuleList(unsuited))
    assert [type(layer) for layer in unsuited] == kinds
    suited = nn.Sequential(
        conv(64, 128, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(128 * 16, 2)
    )
    assert is_wide(suited)
    replace_layers(suited)
    assert [type(layer) for layer in suited] == [Conv3x3, nn.Flatten, Linear]
    assert not is_wide(nn.Linear(2, 3))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("height", [4, 6, 8])
def test_fast_layers_are_the_layers_and_follow_their_weights(compiling, height, bias):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1, bias=bias),
        nn.Flatten(),
        nn.Linear(64 * height * 5, 2, bias=bias),
    ).double()
    fast = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1, bias=bias),
        nn.Flatten(),
        nn.Linear(64 * height * 5, 2, bias=bias),
    ).double()
    replace_layers(fast)
    assert fast[2].weight.stride() == (1, 2)
    fast.load_state_dict(plain.state_dict())  # the same names and shapes
    sync_weights(fast)
    x = torch.randn(2, 64, height, 5, dtype=torch.float64, requires_grad=True)
    close(fast(x), plain(x))
    close(*(torch.autograd.grad(network(x).sum(), x)[0] for network in (fast, plain)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_inputs", [1, 2, 4, 5])
def test_few_inputs_are_summed_without_a_product(compiling, num_inputs, bias):
    torch.manual_seed(0)
    plain = nn.Linear(num_inputs, 6, bias=bias).double()
    fast = nn.ModuleList([copy.deepcopy(plain)])
    replace_layers(fast)
    x = torch.randn(7, num_inputs, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        fast[0](x).square().sum().backward()
    close(fast[0](x), plain(x))
    close(x.grad, torch.autograd.grad(plain(x).square().sum(), x)[0])
    assert (counter.get_total_flops() == 0) == (num_inputs <= 4)


def test_a_slope_that_is_kept_is_that_of_the_unit(compiling):
    h = torch.linspace(-20, 20, 401, dtype=torch.float64, requires_grad=True)
    close(silu(h), F.silu(h))
    close(*(torch.autograd.grad(unit(h).sum(), h)[0] for unit in (silu, F.silu)))
