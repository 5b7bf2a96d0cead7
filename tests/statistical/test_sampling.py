"""The fast ways to run chains against the plain one, trajectory by trajectory, with the same noise."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.exc import TorchDynamoException
from torch.nn.utils import parametrize

from ebm_dist.chains import compiled, cpu_layers
from ebm_dist.chains.block import Blocks
from ebm_dist.chains.build import build_chains
from ebm_dist.chains.compiled import CompiledChains
from ebm_dist.chains.eager import Chains, TemperedChains
from ebm_dist.energies import convnet, frozen, given, mlp, resnet, score
from ebm_dist.errors import ConfigError
from ebm_dist.rng import stream
from ebm_dist.samplers import langevin, noise
from tests import helpers

SHAPE = (1, 8, 8)
NETWORKS = {
    "mlp": lambda k: mlp.build(
        mlp.Config(hidden=(32, 16), spectral_norm=True), shape=SHAPE, num_classes=k
    ),
    "convnet": lambda k: convnet.build(
        convnet.Config(channels=(8, 8), hidden=16), shape=SHAPE, num_classes=k
    ),
    "resnet": lambda k: resnet.build(
        resnet.Config(channels=(8, 16, 16)), shape=SHAPE, num_classes=k
    ),
    "wide resnet": lambda k: resnet.build(
        resnet.Config(channels=(64, 64)), shape=SHAPE, num_classes=k
    ),
}
CONFIG = langevin.Config(step_size=2.0, noise_scale=0.02, score_clip=0.03)


def network(name, num_classes=0):
    torch.manual_seed(1)
    return NETWORKS[name](num_classes)


def ends(chains, num_classes=0, seed=0):
    labels = torch.arange(6) % num_classes if num_classes else None
    return chains(noise((6, *SHAPE), (0.0, 1.0), stream(0, "start")), labels, stream(seed, "chain"))


def fast(energy, num_steps, **options):
    kernel = langevin.build(CONFIG, bounds=(0.0, 1.0))
    return CompiledChains(
        energy, kernel, num_steps, **{"compiles": False, "precision": "float32"} | options
    )


def plain(energy, num_steps):
    return Chains(energy, langevin.build(CONFIG, bounds=(0.0, 1.0)), num_steps)


@pytest.mark.parametrize("num_steps", [1, 7, 11, 20])
@pytest.mark.parametrize("name", NETWORKS)
def test_several_steps_at_once_are_bitwise_the_steps_one_by_one(name, num_steps):
    own = network(name, 3)
    (a, told), (b, told_too) = ends(plain(own, num_steps), 3), ends(fast(own, num_steps), 3)
    assert torch.equal(a, b)
    for one, other in zip(told, told_too, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(a, ends(fast(own, num_steps), 3, seed=1)[0])


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_chains_in_parts_are_the_chains_all_at_once(monkeypatch, at_once, num_classes):
    own = network("mlp", num_classes)
    monkeypatch.setattr(compiled, "_MOST_CHAINS", at_once)
    (a, told), (b, told_too) = ends(plain(own, 20), num_classes), ends(fast(own, 20), num_classes)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.stack(told), torch.stack(told_too))


def compiled_is_plain(name, num_classes):
    own = network(name, num_classes)
    (a, told), (b, told_too) = (
        ends(plain(own, 6), num_classes),
        ends(fast(own, 6, compiles=True), num_classes),
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(told), torch.stack(told_too), rtol=1e-4, atol=1e-5)


def test_compiled_steps_are_the_plain_ones():
    compiled_is_plain("mlp", 3)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_steps_are_the_plain_ones_in_every_network(name, num_classes):
    compiled_is_plain(name, num_classes)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_copy_follows_the_weights_and_leaves_them_alone(name):
    own = network(name)
    chains = fast(own, 4)
    before = ends(chains)[0]
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1)
    assert torch.equal(ends(chains)[0], ends(plain(own, 4))[0])
    assert not torch.equal(ends(chains)[0], before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in own.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_chains_of_fast_layers_follow_the_weights(monkeypatch, name):
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: function
    )  # all that compiled code does, but not compiled
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    own = network(name, 3)
    chains = fast(own, 4, compiles=True)
    ends(chains, 3)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1)
    (a, told), (b, told_too) = ends(chains, 3), ends(plain(own, 4), 3)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(told), torch.stack(told_too), rtol=1e-4, atol=1e-5)
    kinds = {type(layer) for layer in chains.copy.modules()}
    assert (cpu_layers.Conv3x3 in kinds, cpu_layers.Linear in kinds) == (
        name == "wide resnet",
        True,
    )


def test_without_a_compiler_chains_run_as_they_are_and_it_is_said(monkeypatch, caplog):
    def broken(function, **_):
        def call(*arguments):
            raise TorchDynamoException("no compiler here\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    own = network("mlp")
    chains = fast(own, 6, compiles=True)
    with caplog.at_level(logging.WARNING):
        end = ends(chains)[0]
        ends(chains)
    torch.testing.assert_close(end, ends(plain(own, 6))[0], rtol=0, atol=1e-6)
    assert [record.message for record in caplog.records] == [
        "torch.compile failed, chains run uncompiled: no compiler here"
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_keeps_positions_exact_and_scores_near(name):
    own = network(name)
    chains = fast(own, 5, precision="bfloat16")
    end, told = ends(chains)
    assert end.dtype == told.energy.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in own.parameters())
    assert len(end.unique()) > 6 * 64 / 2, "positions were rounded to 8 bits"
    x = noise((6, *SHAPE), (0.0, 1.0), stream(0, "start"))
    with frozen(own):
        _, exact = score(given(own, None), x)
    _, near = score(lambda x: chains.copy(x.bfloat16()).float(), x)
    assert F.cosine_similarity(exact.flatten(1), near.flatten(1)).min() > 0.99


def test_options_choose_the_chains_and_do_not_suit_every_sampler():
    own, kernel = network("mlp"), langevin.build(CONFIG, bounds=None)
    for sections, expected in (
        ({}, Chains),
        ({"train": {"precision": "bfloat16"}}, CompiledChains),
        ({"replay": {"temperatures": [1.0, 2.0]}}, TemperedChains),
    ):
        params = helpers.params(**sections)
        assert type(build_chains(params, own, kernel, bounds=None)) is expected
    for key, value in (("compile", True), ("precision", "bfloat16")):
        with pytest.raises(ConfigError, match=f"train.{key}: gibbs cannot be compiled"):
            helpers.params(train={key: value}, sampler={"name": "gibbs"}, energy={"name": "rbm"})


@pytest.mark.parametrize("side", [8, 9, 16, 26, 27, 28])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolution_on_cells_is_the_convolution(side, channels):
    torch.manual_seed(0)
    layer, x = convnet.FirstConv(channels, 5), torch.rand(2, channels, side, side)
    expected = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=4)
    parametrize.register_parametrization(layer, "weight", convnet.Cells(), unsafe=True)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("side", [4, 7, 8])
def test_a_pooled_kernel_is_convolution_and_pooling(side):
    torch.manual_seed(0)
    weight, x = torch.randn(5, 3, 3, 3), torch.rand(2, 3, side, side)
    expected = F.avg_pool2d(F.conv2d(x, weight, padding=1), 2)
    torch.testing.assert_close(F.conv2d(x, resnet.Pooled()(weight), stride=2, padding=1), expected)


def test_a_block_is_the_formula_of_its_docstring():
    torch.manual_seed(0)
    block = resnet.Block(3, 5, 4, halves=True, normalised=False)
    x, y = torch.rand(2, 3, 6, 6), torch.tensor([1, 3])
    kernel = block.second.parametrizations.weight.original
    b, g, c = (embedding(y)[:, :, None, None] for embedding in block.classes)
    h = F.leaky_relu(F.conv2d(x, block.first.weight, block.first.bias, padding=1) + b, 0.2)
    h = g * F.conv2d(h, kernel, block.second.bias, padding=1) + c + block.shortcut(x)
    torch.testing.assert_close(block(x, y), F.leaky_relu(F.avg_pool2d(h, 2), 0.2))


def test_langevin_steps_use_each_row_of_noise_once():
    kernel = langevin.build(langevin.Config(step_size=0.1, noise_scale=0.3), bounds=None)
    rows = torch.randn(4, 5, 2)
    kernel = kernel._replace(draw=lambda *_: (rows,))
    draws = torch.empty(4, 5, 2)
    blocks = Blocks(kernel, lambda x: (x**2).sum(1) / 2)
    list(blocks.run(kernel.init(None, torch.zeros(5, 2)), None, 0.1, draws))
    expected = torch.zeros(5, 2)
    for row, draw in zip(rows, draws, strict=True):
        expected = 0.9 * expected + 0.3 * row
        torch.testing.assert_close(draw, expected)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_training_has_the_same_bits_on_one_worker_and_two(digits_data, tmp_path):
    settings = helpers.values(train={"compile": True})
    for workers in (1, 2):
        helpers.spawn(workers, tmp_path / str(workers), digits_data, settings)
    one, two = (helpers.state_of(tmp_path / str(workers)) for workers in (1, 2))
    assert one == two
    helpers.spawn(1, tmp_path / "plain", digits_data, helpers.values())
    assert helpers.state_of(tmp_path / "plain").keys() == one.keys()
