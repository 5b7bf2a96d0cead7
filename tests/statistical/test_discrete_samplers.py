"""Gibbs with gradients and discrete MALA against enumeration, from a wrong start and from the right one."""

import pytest
import torch

import ebm_dist as ebm
from ebm_dist.config import module_of
from ebm_dist.energies import rbm
from ebm_dist.rng import stream
from ebm_dist.samplers import dmala, gibbs_with_gradients, run_chain
from tests.statistical.targets import Ising, assert_counts, assert_moments

gwg, langevin = gibbs_with_gradients.Config, dmala.Config
SAMPLERS = [gwg, lambda **rest: langevin(step_size=0.3, **rest)]
NAMES = ["gibbs_with_gradients", "dmala"]


class Potts:
    """Five variables of three categories on a ring, with fields: ``(B, 5, 3)`` one-hot."""

    def __init__(self):
        self.field = torch.randn(5, 3, generator=stream(0, "field")) / 2
        self.coupling = torch.randn(3, 3, generator=stream(0, "coupling")) / 2

    def __call__(self, x):
        pairs = torch.einsum("bik,kl,bil->b", x, self.coupling, x.roll(-1, 1))
        return -pairs - (x * self.field).sum((1, 2))

    @staticmethod
    def states():
        digits = torch.arange(3**5)[:, None] // 3 ** torch.arange(5) % 3
        return torch.nn.functional.one_hot(digits, 3).float()

    @staticmethod
    def index(x):
        return (x.argmax(2) * 3 ** torch.arange(5)).sum(1)


class Machine:
    """An RBM of 6 x 20 units: the free energy of its visible units."""

    def __init__(self):
        self.energy = rbm.build(rbm.Config(num_hidden=20), shape=(6,), num_classes=0)
        with torch.no_grad():
            for parameter in self.energy.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=stream(1, "rbm")) / 2)

    def __call__(self, x):
        return self.energy(x)

    @staticmethod
    def states():
        return (torch.arange(64)[:, None] // 2 ** torch.arange(6) % 2).float()

    @staticmethod
    def index(x):
        return (x.long() * 2 ** torch.arange(6)).sum(1)


def exact(target, temperature=1.0):
    with torch.no_grad():
        return (-target(target.states()).double() / temperature).softmax(0)


def run(config, target, start, num_steps, seed=1):
    kernel = module_of(config).build(config, bounds=None)
    return run_chain(kernel, target, start, num_steps, stream(seed, "chain"))


ENUMERABLE = [(Machine, False), (Potts, True)]


@pytest.mark.parametrize("temperature", [1.0, pytest.param(2.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "categories"), ENUMERABLE, ids=["rbm", "potts"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_every_state_has_its_probability(sampler, kind, categories, temperature):
    """From one state of all chains; all states counted, by chi-squared at 1e-4."""
    target = kind()
    config = sampler(categories=categories, temperature=temperature)
    start = target.states()[:1].repeat(8000, *[1] * (target.states().ndim - 1))
    x, stats = run(config, target, start, 60)
    assert_counts(target.index(x), exact(target, temperature))
    assert 0.05 < stats.acceptance_rate < 1


@pytest.mark.parametrize(("kind", "categories"), ENUMERABLE, ids=["rbm", "potts"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_exact_draws_stay_exact_after_one_step(sampler, kind, categories):
    target = kind()
    rows = torch.multinomial(exact(target), 60_000, replacement=True, generator=stream(2, "exact"))
    x, _ = run(sampler(categories=categories), target, target.states()[rows], 1)
    assert_counts(target.index(x), exact(target))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_an_ising_lattice_of_65536_states(sampler):
    """Magnetisation and energy, and all pairs of sites, from all spins down."""
    target, states = Ising(), Ising.states()
    p = exact(target)
    spins = lambda x: (2 * x - 1).flatten(1)
    x, _ = run(sampler(), target, torch.zeros(8000, 4, 4), 300)
    facts = lambda x: torch.stack([spins(x).mean(1), target(x), spins(x)[:, 0] * spins(x)[:, 5]], 1)
    values = facts(states).double()
    mean = (p[:, None] * values).sum(0)
    variance = (p[:, None] * (values - mean) ** 2).sum(0)
    kurtosis = (p[:, None] * (values - mean) ** 4).sum(0) / variance**2
    assert_moments(facts(x).double(), mean, variance, kurtosis)


@pytest.mark.parametrize("categories", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
def test_a_start_from_noise_is_the_nearest_state(sampler, categories):
    config = sampler(categories=categories)
    kernel = module_of(config).build(config, bounds=(0.0, 1.0))
    noise = torch.rand(100, 5, 3, generator=stream(0, "noise"))
    x = kernel.init(lambda x: x.sum((1, 2)), noise).position
    if categories:
        assert torch.equal(x.sum(2), torch.ones(100, 5)) and torch.equal(
            x.argmax(2), noise.argmax(2)
        )
    else:
        assert torch.equal(x, (noise >= 0.5).float())


def test_one_variable_changes_at_a_time_with_gradients():
    target = Machine()
    start = target.states()[torch.arange(1000) % 64]
    x, _ = run(gwg(), target, start, 1)
    assert set((x != start).sum(1).tolist()) == {0, 1}


def test_the_library_samples_binary_and_categorical_energies():
    target = Potts()
    start = target.states()[:1].repeat(2000, 1, 1)
    draws = ebm.sample(target, start, "dmala", categories=True, num_samples=5, num_warmup=200)
    assert 0.4 < draws.acceptance_rate < 0.75  # adapted
    assert_counts(target.index(draws.x[-1]), exact(target))
    options = {"num_samples": 2, "num_warmup": 150, "categories": True}
    draws = ebm.sample(target, start, "gibbs_with_gradients", **options)
    assert_counts(target.index(draws.x[-1]), exact(target))
