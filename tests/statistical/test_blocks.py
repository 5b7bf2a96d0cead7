"""Blocks of steps: the same trajectories plain and compiled, in one graph, with every draw kept."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ebm_dist as ebm
from ebm_dist.chains import block, tempering
from ebm_dist.chains.block import Blocks
from ebm_dist.chains.compiled import CompiledChains
from ebm_dist.chains.eager import Chains
from ebm_dist.energies import frozen
from ebm_dist.errors import ConfigError
from ebm_dist.rng import stream
from ebm_dist.samplers import gibbs, hmc, langevin, mala, metropolis
from tests.statistical.targets import EightGaussians

BOUNDS = (-4.0, 4.0)
KERNELS = {
    "mala": mala.build(mala.Config(step_size=0.2), bounds=None),
    "mala within bounds": mala.build(mala.Config(step_size=0.2), bounds=BOUNDS),
    "hmc": hmc.build(hmc.Config(step_size=0.4, num_leapfrog=4), bounds=BOUNDS),
    "metropolis": metropolis.build(metropolis.Config(step_size=0.8), bounds=BOUNDS),
    "independent": metropolis.build(
        metropolis.Config(step_size=3.0, proposal="noise"), bounds=None
    ),
    "langevin": langevin.build(langevin.Config(step_size=0.1, noise_scale=0.4), bounds=None),
    "tempered": tempering.tempered(
        mala.build(mala.Config(step_size=0.2), bounds=None), [1.0, 2.0, 4.0], bounds=None
    ),
}
STARTS = torch.randn(200, 2, generator=stream(0, "starts"))


def sampled(blocks, kernel, target, num_draws=40, thin=1, step_size=None):
    draws, size = torch.empty(num_draws, *STARTS.shape), step_size or kernel.step_size
    state = kernel.init(target, STARTS)
    ran = list(blocks.run(state, stream(1, "chain"), size, draws, thin))
    return draws, torch.cat([part.acceptance for part in ran])


@pytest.mark.parametrize("name", KERNELS)
def test_draws_are_those_of_single_steps(name):
    kernel, target = KERNELS[name], EightGaussians()
    draws, acceptance = sampled(Blocks(kernel, target), kernel, target, 30)
    state, generator, done = kernel.init(target, STARTS), stream(1, "chain"), 0
    block_size = min(20, 60 // kernel.num_gradients)
    while done < 30:
        numbers = kernel.draw(block_size, STARTS, generator)
        for row in list(zip(*numbers, strict=True))[: 30 - done]:
            state, info = kernel.move(target, state, row, kernel.step_size)
            assert torch.equal(draws[done], state.position)
            assert acceptance[done] == info.is_accepted.double().mean()
            done += 1


@pytest.mark.parametrize("thin", [1, 2, 7, 20, 33])
def test_thinned_draws_are_every_nth(thin):
    kernel, target = KERNELS["mala"], EightGaussians()
    every, _ = sampled(Blocks(kernel, target), kernel, target, 6 * thin)
    thinned, acceptance = sampled(Blocks(kernel, target), kernel, target, 6, thin)
    assert torch.equal(thinned, every[thin - 1 :: thin]) and len(acceptance) == 6 * thin


@pytest.mark.parametrize("name", ["mala", "hmc", "metropolis"])
def test_chains_of_a_training_accept_and_move_as_step_by_step(name):
    torch.manual_seed(0)
    energy, kernel = Network().eval(), KERNELS[name]
    plain, stats = Chains(energy, kernel, 6)(STARTS, None, stream(1, "chain"))
    several = CompiledChains(energy, kernel, 6, compiles=False, precision="float32")
    end, told = several(STARTS, None, stream(1, "chain"))
    torch.testing.assert_close(end, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(told), torch.stack(stats), rtol=1e-4, atol=1e-5)
    assert 0 < told.acceptance_rate < 1


def test_large_positions_make_short_blocks(monkeypatch):
    monkeypatch.setattr(block, "_MOST_VALUES", 3 * STARTS.numel())
    kernel, target = KERNELS["mala"], EightGaussians()
    blocks = list(
        Blocks(kernel, target).run(
            kernel.init(target, STARTS), stream(1, "chain"), 0.2, torch.empty(7, *STARTS.shape)
        )
    )
    assert [len(part.acceptance) for part in blocks] == [3, 3, 1]


@pytest.mark.parametrize("name", KERNELS)
def test_a_block_is_one_graph(name):
    """Tracing raises at a graph break."""
    kernel, target = KERNELS[name], EightGaussians()
    blocks, graphs = Blocks(kernel, target), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    traced = torch.compile(blocks._steps, fullgraph=True, dynamic=False, backend=backend)
    numbers = kernel.draw(2, STARTS, stream(1, "chain"))
    with torch.no_grad():
        traced(kernel.init(target, STARTS), numbers, kernel.step_size, torch.empty(2, 200, 2))
    assert len(graphs) == 1


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(2, 32)), nn.Tanh(), nn.Linear(32, 1)
        )

    def forward(self, x):
        return self.layers(x).squeeze(1) + (x**2).sum(1) / 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_blocks_run_the_same_trajectories(name):
    torch.manual_seed(0)
    kernel, target = KERNELS[name], Network().eval()
    with frozen(target):
        plain, acceptance = sampled(Blocks(kernel, target), kernel, target, 22)
        compiled, rate = sampled(Blocks(kernel, target, compiles=True), kernel, target, 22)
    # one decision of 4,400 may differ by rounding, and its chain with it
    same = ((plain - compiled).abs().flatten(2).amax(2) < 1e-4).all(dim=0)
    assert same.double().mean() >= 0.99
    torch.testing.assert_close(acceptance, rate, rtol=0, atol=0.006)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_sampling_is_exact_and_compiles_once():
    target = EightGaussians()
    options = {"num_samples": 50, "num_warmup": 60, "compile": True}
    first = ebm.sample(target, STARTS, "mala", **options)
    again = ebm.sample(target, STARTS, "mala", **options)
    other = ebm.sample(target, STARTS, "mala", **options, seed=1)
    assert torch.equal(first.x, again.x) and not torch.equal(first.x, other.x)
    assert first.compile_seconds > 1 > again.compile_seconds == other.compile_seconds == 0
    plain = ebm.sample(target, STARTS, "mala", num_samples=50, num_warmup=60)
    assert plain.compile_seconds == 0 and plain.step_size == pytest.approx(
        first.step_size, rel=0.02
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_sampling_leaves_the_module_as_it_was_and_sees_new_weights():
    torch.manual_seed(0)
    target = Network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    last = target.layers[2]
    weight, options = last.weight, {"num_warmup": 0, "step_size": 0.2, "num_samples": 20}
    first = ebm.sample(target, STARTS, "mala", compile=True, **options)
    assert type(last) is nn.Linear and last.weight is weight and weight.requires_grad
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    plain = ebm.sample(target, STARTS, "mala", **options)
    assert ((first.x - plain.x).abs().flatten(2).amax(2) < 1e-4).all(0).double().mean() >= 0.99
    with torch.no_grad():
        last.weight.mul_(-3)
    second = ebm.sample(target, STARTS, "mala", compile=True, **options)
    assert second.compile_seconds == 0
    plain = ebm.sample(target, STARTS, "mala", **options)
    assert ((second.x - plain.x).abs().flatten(2).amax(2) < 1e-4).all(0).double().mean() >= 0.99


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bounds_as_a_list_and_an_energy_without_a_hash_are_compiled_too():
    @dataclasses.dataclass
    class Bowl:
        width: float

        def __call__(self, x):
            return (x**2).sum(1) / (2 * self.width)

    options = {"num_warmup": 0, "step_size": 0.2, "num_samples": 3, "bounds": [-9, 9]}
    for energy in (Bowl(1.0), Bowl(2.0)):
        plain = ebm.sample(energy, STARTS, "mala", **options)
        compiled = ebm.sample(energy, STARTS, "mala", compile=True, **options)
        torch.testing.assert_close(compiled.x, plain.x, rtol=0, atol=1e-5)


def test_what_cannot_be_compiled_is_one_message():
    def energy(x):
        return (x**2).sum(1) * (2.0 if x.sum().item() > 0 else 1.0)

    with pytest.raises(ConfigError, match=r"compile: torch cannot compile this energy"):
        ebm.sample(energy, STARTS, "mala", compile=True, num_samples=1, step_size=0.1)
    with pytest.raises(ConfigError, match="compile: this sampler cannot be compiled"):
        Blocks(gibbs.build(gibbs.Config(), bounds=None), energy, compiles=True)
