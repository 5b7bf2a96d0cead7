"""ebm_dist.sample: any energy, the right moments, and the caller's things left alone."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ebm_dist as ebm
from ebm_dist.chains import adaptation, diagnostics
from ebm_dist.errors import ConfigError, DataError, DivergedError
from ebm_dist.rng import stream
from ebm_dist.samplers import hmc, mala
from tests.statistical.targets import Ising, assert_moments

STARTS = torch.zeros(2000, 2)
SHORT = {"num_samples": 4, "num_warmup": 6}
SCALE = torch.tensor([1.0, 4.0])


def gaussian(x):
    return ((x - 1) ** 2 / SCALE).sum(1) / 2


def double_well(x):
    return ((x**2 - 1) ** 2).sum(1)


def exact(energy, scale=6.0):
    """Mean, variance and kurtosis of a density of one variable, by quadrature."""
    x = torch.linspace(-scale, scale, 20001, dtype=torch.float64)
    p = (-energy(x[:, None])).softmax(0)
    mean = (p * x).sum()
    variance = (p * (x - mean) ** 2).sum()
    return mean, variance, (p * (x - mean) ** 4).sum() / variance**2


@pytest.mark.parametrize("sampler", ["mala", "hmc"])
def test_a_gaussian_has_its_moments(sampler):
    draws = ebm.sample(gaussian, STARTS, sampler, num_samples=10, num_warmup=80)
    assert draws.x.shape == (10, 2000, 2)
    assert_moments(draws.x[-1], torch.ones(2), SCALE)
    assert abs(draws.acceptance_rate - {"mala": mala, "hmc": hmc}[sampler].ACCEPTANCE) < 0.1


@pytest.mark.parametrize("sampler", ["mala", "hmc", "metropolis"])
def test_a_double_well_has_its_moments(sampler):
    """All chains start in one of the wells."""
    draws = ebm.sample(double_well, np.ones((2000, 1)), sampler, num_samples=5, num_warmup=90)
    mean, variance, kurtosis = exact(double_well)
    assert draws.x.dtype == torch.float64
    assert_moments(draws.x[-1], mean, variance, kurtosis)


@pytest.mark.parametrize("module", [mala, hmc])
def test_a_wrong_acceptance_would_be_seen(module, monkeypatch):
    def run():
        name = module.__name__.rpartition(".")[2]
        draws = ebm.sample(gaussian, STARTS, name, num_samples=1, num_warmup=60, step_size=1.0)
        assert_moments(draws.x[-1], torch.ones(2), SCALE)

    run()
    monkeypatch.setattr(module, "accept_mask", lambda ratio, is_finite, generator: is_finite)
    with pytest.raises(AssertionError, match="variances"):
        run()


def test_langevin_has_temperature_1_and_the_bias_of_its_step():
    draws = ebm.sample(lambda x: (x**2).sum(1) / 2, STARTS, "langevin", num_samples=1, num_warmup=60, step_size=0.2)  # fmt: skip
    assert_moments(draws.x[-1], torch.zeros(2), torch.full((2,), 1 / (1 - 0.2 / 2)))
    cold = ebm.sample(gaussian, STARTS[:9], "langevin", step_size=0.2, noise_scale=0.0, **SHORT)
    assert (cold.x == cold.x[:, :1]).all()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = parametrizations.spectral_norm(nn.Linear(2, 8))
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 1)
        self.last.weight.requires_grad_(False)
        self.dropout.eval()

    def forward(self, x):
        return self.last(self.norm(self.dropout(self.first(x))).tanh()) + (x**2).sum(1, True)


def test_the_module_and_the_random_state_are_left_as_they_were():
    torch.manual_seed(0)
    module = Network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    flags = [parameter.requires_grad for parameter in module.parameters()]
    states, x0 = (torch.get_rng_state(), np.random.get_state()[1].copy()), np.zeros((5, 2))
    for sampler in ("mala", "hmc", "metropolis"):
        draws = ebm.sample(module, x0, sampler, **SHORT)
        assert draws.x.dtype == torch.float32 and not draws.x.requires_grad
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1]) and not x0.any()
    with pytest.raises(DivergedError):
        ebm.sample(module, np.full((5, 2), 1e30), **SHORT)
    assert [part.training for part in module.modules()] == modes


def test_equal_seeds_give_equal_draws_and_one_column_is_accepted():
    first = ebm.sample(gaussian, STARTS[:7], seed=1, **SHORT)
    for energy, source in (
        (gaussian, {"seed": 1}),
        (lambda x: gaussian(x)[:, None], {"seed": 1}),
    ):
        assert torch.equal(first.x, ebm.sample(energy, STARTS[:7], **source, **SHORT).x)
    assert not torch.equal(first.x, ebm.sample(gaussian, STARTS[:7], seed=2, **SHORT).x)
    of_generators = [
        ebm.sample(gaussian, STARTS[:7], generator=torch.Generator().manual_seed(5), **SHORT).x
        for _ in range(2)
    ]
    assert torch.equal(*of_generators)


def test_thinned_draws_are_some_of_all_draws():
    every = ebm.sample(gaussian, STARTS[:7], num_samples=12, num_warmup=5)
    third = ebm.sample(gaussian, STARTS[:7], num_samples=4, num_warmup=5, thin=3)
    assert torch.equal(every.x[2::3], third.x) and third.step_size == every.step_size
    fixed = ebm.sample(gaussian, STARTS[:7], "hmc", num_leapfrog=3, step_size=0.3, **SHORT)
    assert fixed.step_size == 0.3


def test_diagnostics_are_of_the_worst_coordinate_that_varies():
    draws = ebm.sample(gaussian, STARTS[:7], num_samples=50, num_warmup=20)
    x = draws.x.transpose(0, 1)
    assert draws.diagnostics.rhat == diagnostics.rhat(x).max()
    assert draws.diagnostics.ess_bulk == pytest.approx(diagnostics.ess_bulk(x).min())
    assert draws.diagnostics.ess_tail == pytest.approx(diagnostics.ess_tail(x).min())
    assert draws.diagnostics.acceptance_rate == draws.acceptance_rate
    stuck = ebm.Draws(torch.stack([draws.x[..., 0], torch.zeros(50, 7)], -1), 1.0, 0, None)
    assert stuck.diagnostics.num_constant == 1
    assert stuck.diagnostics.rhat == pytest.approx(diagnostics.rhat(x)[0])
    assert np.isnan(ebm.Draws(draws.x[:3], 1.0, 0, None).diagnostics.rhat)


@pytest.mark.slow
def test_draws_go_to_arviz():
    draws = ebm.sample(gaussian, STARTS[:3], num_samples=5)
    posterior = draws.to_arviz().posterior
    assert posterior.sizes["chain"] == 3 and posterior.sizes["draw"] == 5
    assert np.array_equal(posterior["x"].values, draws.x.transpose(0, 1).numpy())


def test_draws_say_that_arviz_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ConfigError, match="pip install"):
        ebm.sample(gaussian, STARTS[:3], **SHORT).to_arviz()


def test_gibbs_draws_the_variables_of_its_energy():
    draws = ebm.sample(Ising(), torch.zeros(500, 4, 4), "gibbs", num_samples=5, num_warmup=20)
    assert set(draws.x.unique().tolist()) == {0.0, 1.0} and draws.step_size is None
    assert draws.x.mean() > 0.55  # the field points up


def test_chains_stay_within_bounds():
    for sampler in ("mala", "hmc", "metropolis", "langevin"):
        step_size = 0.5 if sampler == "langevin" else None
        draws = ebm.sample(gaussian, STARTS[:50], sampler, bounds=(-0.5, 0.5), step_size=step_size, **SHORT)  # fmt: skip
        assert draws.x.abs().max() <= 0.5


def quartic(x):
    return -(x**4).sum(1)


REFUSED = {
    "misspelt sampler": ({"sampler": "malla"}, ConfigError, "did you mean 'mala'"),
    "misspelt setting": ({"sampler": "hmc", "num_leapfrogs": 3}, ConfigError, "did you mean 'num_leapfrog'"),
    "steps of a training": ({"num_steps": 3}, ConfigError, "mala: has no setting 'num_steps'"),
    "wrong type": ({"sampler": "hmc", "num_leapfrog": 2.5}, ConfigError, "num_leapfrog: .* found 2.5"),
    "negative step": ({"step_size": -1.0}, ConfigError, "step_size: .* greater than 0, found -1"),
    "no warm-up": ({"num_warmup": 0}, ConfigError, "set step_size"),
    "langevin without a step": ({"sampler": "langevin"}, ConfigError, "set step_size, or use a sampler that rejects"),
    "gibbs": ({"sampler": "gibbs"}, ConfigError, "conditionals"),
    "no draws": ({"num_samples": 0}, ConfigError, "num_samples: expected an integer from 1"),
    "bounds": ({"bounds": (1, 0)}, ConfigError, "lower one first"),
    "no bounds": ({"bounds": 3}, ConfigError, "lower one first"),
    "outside": ({"bounds": (1, 2)}, DataError, "outside the bounds 1 to 2"),
    "no chains": ({"x0": torch.zeros(5)}, DataError, r"expected starts \(chains, \*shape\)"),
    "integers": ({"x0": np.zeros((5, 2), int)}, DataError, "expected floats"),
    "objects": ({"x0": [[None]]}, DataError, "array of floats"),
    "NaN": ({"x0": torch.tensor([[0.0, np.nan]])}, DataError, "x0: has NaN"),
    "a matrix": ({"energy": lambda x: x}, DataError, r"shape \(5,\) .* found a tensor of shape \(5, 2\)"),
    "a row": ({"energy": lambda x: gaussian(x)[None]}, DataError, r"found a tensor of shape \(1, 5\)"),
    "one number": ({"energy": lambda x: gaussian(x).sum()}, DataError, r"found a tensor of shape \(\)"),
    "no tensor": ({"energy": lambda x: 1.0}, DataError, "found float"),
    "no gradient": ({"energy": lambda x: gaussian(x.detach())}, DataError, "metropolis"),
    "a bad start": ({"energy": lambda x: gaussian(x) / (x[:, 0] != 2), "x0": torch.tensor([[1.0], [2.0]])}, DivergedError, "start of chain 1;"),
    "diverging": ({"energy": quartic, "x0": torch.ones(5, 2), "sampler": "langevin", "step_size": 0.1, "num_warmup": 0, "num_samples": 90}, DivergedError, r"step \d+ after the warm-up: .* of chain \d.*use a smaller step_size"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_message(what):
    arguments, error, text = REFUSED[what]
    with pytest.raises(error, match=text):
        ebm.sample(**{"energy": gaussian, "x0": torch.zeros(5, 2), **SHORT, **arguments})


@pytest.mark.parametrize(
    "sampler", ["mala", pytest.param("hmc", marks=pytest.mark.slow), "metropolis"]
)
def test_coordinates_of_different_scales_are_sampled_in_units_of_their_deviation(sampler):
    sd = torch.tensor([0.01, 0.3, 1.0, 50.0])
    mean = torch.tensor([100.0, 0.0, -3.0, 2.0])

    def energy(x):
        return (((x - mean) / sd) ** 2).sum(1) / 2

    x0 = mean + sd * torch.randn(50, 4, generator=stream(0, "x0"))
    options = {"num_warmup": 400, "num_samples": 300}
    draws = ebm.sample(energy, x0, sampler, adapt_scales=True, **options)
    torch.testing.assert_close(draws.scales, sd, rtol=0.35, atol=0)
    torch.testing.assert_close(draws.x.mean((0, 1)), mean, rtol=0, atol=0.1 * sd.max())
    z = (draws.x - mean) / sd
    assert z.mean((0, 1)).abs().max() < 0.15 and (z.std((0, 1)) - 1).abs().max() < 0.1
    plain = ebm.sample(energy, x0, sampler, **options)
    assert draws.diagnostics.ess_bulk > 3 * plain.diagnostics.ess_bulk
    again = ebm.sample(energy, x0, sampler, adapt_scales=True, **options)
    assert torch.equal(again.x, draws.x)
    assert plain.scales is None


@pytest.mark.parametrize(
    "options",
    [
        {"bounds": (-1, 1)},
        {"step_size": 0.1},
        {"num_warmup": 10},
        {"sampler": "langevin", "step_size": 0.1},
        {"sampler": "dmala"},
    ],
)
def test_scales_that_cannot_be_adapted_are_one_message(options):
    with pytest.raises(ConfigError, match="adapt_scales: needs a sampler of continuous"):
        ebm.sample(lambda x: (x**2).sum(1), torch.zeros(3, 2), adapt_scales=True, **options)


def test_scales_are_those_of_all_positions_whatever_their_parts():
    x = torch.randn(30, 7, 3, generator=stream(0, "scales")) * torch.tensor([1e-4, 1.0, 1e3]) + 1e4
    found = adaptation.Scales(20)  # the first ten are left out
    for part in x[:20]:
        found.observe(part)
    used = x[10:20].flatten(0, 1).double()
    expected = ((70 * used.var(0) + 5 * 1e-3) / 75).sqrt()
    torch.testing.assert_close(found.estimate(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sampler", ["metropolis", "hmc"])
def test_a_nearly_flat_energy_within_bounds_has_its_moments(sampler):
    """All steps are accepted there, so no step is too wide for the adaptation."""
    energy = lambda x: 4 * ((x - 1.2) ** 2).sum(1)
    x = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:, None]
    p = (-energy(x)).softmax(0)
    mean = (p * x[:, 0]).sum()
    starts = torch.full((2000, 1), 0.5)
    draws = ebm.sample(energy, starts, sampler, num_samples=4, num_warmup=150, bounds=(0, 1))
    assert_moments(draws.x[-1], mean, (p * (x[:, 0] - mean) ** 2).sum())
    flat = ebm.sample(
        lambda x: 0 * x.sum(1), starts, sampler, num_samples=4, num_warmup=150, bounds=(0, 1)
    )
    assert flat.step_size <= 1
    assert_moments(flat.x[-1], torch.tensor(0.5), torch.tensor(1 / 12))


def test_arguments_that_cannot_be_used_are_one_message():
    for options, message in (
        ({"sampler": "metropolis", "proposal": "noise"}, "does not tell how wide"),
        ({"sampler": "ancestral"}, "needs an energy of noise levels"),
        ({"generator": np.random.default_rng()}, "expected a torch.Generator, found Generator"),
        ({"seed": None}, "seed: expected an integer, found None"),
        ({"seed": 1.5}, "seed: expected an integer, found 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            ebm.sample(gaussian, STARTS, **SHORT, **options)


def test_inference_mode_changes_nothing():
    usual = ebm.sample(gaussian, STARTS[:5], **SHORT)
    with torch.inference_mode():
        draws = ebm.sample(gaussian, torch.zeros(5, 2), **SHORT)
    assert torch.equal(draws.x, usual.x) and not draws.x.is_inference()


def test_each_number_of_chains_is_compiled_apart(monkeypatch):
    """Torch compiles one function for eight shapes at most; here for one, which is faster to see."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **_: compile_(f, fullgraph=True, dynamic=False, backend="eager")
    )
    with torch._dynamo.config.patch(recompile_limit=1):
        for n in (1, 2):
            draws = ebm.sample(gaussian, STARTS[:n], compile=True, num_samples=1, num_warmup=1)
            assert draws.x.shape == (1, n, 2)
