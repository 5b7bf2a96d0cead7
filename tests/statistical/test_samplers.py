"""Every exact sampler against exact moments: from a wrong start it arrives, from the right one it does not leave."""

import itertools
import math

import numpy as np
import pytest
import torch

from ebm_dist.chains import adaptation, eager, tempering
from ebm_dist.config import module_of
from ebm_dist.errors import DivergedError
from ebm_dist.rng import stream
from ebm_dist.samplers import (
    accept_mask,
    gibbs,
    hmc,
    langevin,
    log_uniform,
    mala,
    metropolis,
    noise,
    reflect,
    run_chain,
)
from tests.statistical.targets import (
    Banana,
    EightGaussians,
    Gaussian,
    Ising,
    Z,
    assert_counts,
    assert_moments,
    assert_standard_normal,
)

NUM = 4000
walk = lambda step_size, **rest: metropolis.Config(step_size=step_size, **rest)
independent = lambda step_size, **rest: metropolis.Config(
    step_size=step_size, proposal="noise", **rest
)
adjusted = lambda step_size, **rest: mala.Config(step_size=step_size, **rest)
hamiltonian = lambda step_size, n=10, **rest: hmc.Config(
    step_size=step_size, num_leapfrog=n, **rest
)


def run(config, target, start, num_steps, seed=1, bounds=None, observe=None):
    """Where the chains are, and the share of accepted proposals."""
    kernel = module_of(config).build(config, bounds=bounds)
    x, chains = run_chain(kernel, target, start, num_steps, stream(seed, "chain"), observe=observe)
    return x, chains.acceptance_rate.item()


def names(values):
    return [
        f"{module_of(value[0]).__name__.rpartition('.')[2]}-{i}" for i, value in enumerate(values)
    ]


GAUSSIAN = [
    (walk(0.2), 1200),
    (independent(1.2), 1200),
    (adjusted(0.012), 500),
    (hamiltonian(0.12, 8), 40),
]
BANANA = [(walk(0.7), 500), (independent(2.5), 500), (adjusted(0.05), 600), (hamiltonian(0.15), 60)]
MIXTURE = [
    (walk(1.0), 400),
    (independent(2.0), 300),
    (adjusted(0.25), 400),
    (hamiltonian(0.35, 6), 40),
]


@pytest.mark.parametrize(("config", "num_steps"), GAUSSIAN, ids=names(GAUSSIAN))
def test_gaussian_of_condition_number_100(config, num_steps):
    x, acceptance = run(config, Gaussian(), torch.full((NUM, 4), 0.6), num_steps)
    assert_standard_normal(Gaussian().whiten(x))
    assert 0.01 < acceptance < 0.99


@pytest.mark.parametrize(("config", "num_steps"), BANANA, ids=names(BANANA))
def test_banana(config, num_steps):
    x, _ = run(config, Banana(), torch.full((NUM, 2), 0.5), num_steps)
    assert_standard_normal(Banana().whiten(x))


@pytest.mark.parametrize(("config", "num_steps"), MIXTURE, ids=names(MIXTURE))
def test_eight_gaussians_all_from_one_mode(config, num_steps):
    target = EightGaussians()
    x, _ = run(config, target, target.centres[:1].expand(NUM, 2), num_steps)
    assert_counts(target.modes(x), torch.ones(8) / 8)
    exact = target.draw(10**6, stream(2, "exact"))
    mean, variance = torch.zeros(2), torch.full((2,), target.radius**2 / 2 + target.deviation**2)
    assert_moments(x, mean, variance, kurtosis=(exact**4).mean(0) / variance**2)
    radius = exact.norm(dim=1, keepdim=True)
    spread = (radius - radius.mean()) ** 2
    assert_moments(
        x.norm(dim=1, keepdim=True),
        radius.mean(),
        radius.var(),
        kurtosis=(spread**2).mean() / radius.var() ** 2,
    )


INVARIANT = [walk(0.3), independent(1.5), adjusted(0.02), hamiltonian(0.15, 5)]
TARGETS = [Gaussian(), Banana()]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: type(target).__name__)
@pytest.mark.parametrize("config", INVARIANT, ids=names([(config,) for config in INVARIANT]))
def test_exact_draws_stay_exact_at_every_step(config, target):
    """Geweke 2004: transitions from draws of the target give draws of the target. Slow mixing cannot hide a wrong kernel."""
    start = target.draw(100_000, stream(3, "exact"))
    seen = {}
    run(
        config,
        target,
        start,
        16,
        observe=lambda step, state, info: seen.update({step: state.position}),
    )
    for step in (0, 3, 15):
        assert_standard_normal(target.whiten(seen[step]))


@pytest.mark.parametrize("temperature", [0.25, 4.0])
@pytest.mark.parametrize("build", [walk, independent, adjusted, hamiltonian])
def test_temperature_scales_the_variance(build, temperature):
    """exp(-x^2 / 2T) has variance T, at whatever step size."""
    sd = temperature**0.5
    step_size = {walk: 1.5 * sd, independent: 1.5 * sd, adjusted: 0.5, hamiltonian: 0.3 * sd}[build]
    start = torch.zeros(NUM, 2)
    x, _ = run(build(step_size, temperature=temperature), lambda v: (v**2).sum(1) / 2, start, 60)
    assert_moments(x, torch.zeros(2), torch.full((2,), temperature))


@pytest.mark.parametrize(("dim", "a"), [(2, 0.01), (128, 0.1)])
def test_mala_with_the_squared_norm(dim, a):
    """Without the square E[x^2] is 15 for the first and 0.5 for the second, and acceptance 0.12 where it should be 0.90."""
    start = torch.randn(NUM if dim == 2 else 500, dim, generator=stream(4, "exact"))
    x, acceptance = run(adjusted(a), lambda v: (v**2).sum(1) / 2, start, 60)
    assert_moments(x, torch.zeros(dim), torch.ones(dim))
    assert acceptance > 0.85


def test_mala_proposes_a_langevin_step():
    config = mala.Config(step_size=1e-3, temperature=0.3)
    cold = langevin.Config(step_size=1e-3, noise_scale=(2 * 1e-3 * 0.3) ** 0.5)
    assert cold.temperature == pytest.approx(config.temperature)
    start = torch.randn(50, 3, generator=stream(5, "start"))
    target = lambda v: (v**2).sum(1) / 2
    taken = []
    adjusted_, _ = run(
        config, target, start, 1, observe=lambda step, state, info: taken.append(info.is_accepted)
    )
    plain, _ = run(cold, target, start, 1)
    assert taken[0].sum() > 40
    torch.testing.assert_close(adjusted_[taken[0]], plain[taken[0]])
    assert torch.equal(adjusted_[~taken[0]], start[~taken[0]])


@pytest.mark.parametrize("config", [walk(3.0), adjusted(1.5), hamiltonian(1.5, 3)])
def test_a_rejected_chain_keeps_position_energy_and_score(config):
    """Also acceptance is for each chain: in one batch some are accepted and some are not, and neither changes the other."""
    target = lambda v: (v**2).sum(1) * torch.tensor([0.5, 2.0]).repeat(500)
    kernel = module_of(config).build(config, bounds=None)
    generator = stream(6, "chain")
    state = kernel.init(target, torch.randn(1000, 2, generator=generator))
    for _ in range(5):
        old = state
        state, info = kernel.step(target, state, generator)
        taken = info.is_accepted
        assert 0 < taken.sum() < 1000
        for before, after in zip(old, state, strict=True):
            assert torch.equal(after[~taken], before[~taken])
        assert not torch.equal(state.position[taken], old.position[taken])
        torch.testing.assert_close(state.energy, target(state.position))
        if hasattr(state, "score"):
            scale = 2 * torch.tensor([0.5, 2.0]).repeat(500)[:, None]
            torch.testing.assert_close(state.score, -scale * state.position)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "config", [walk(1.0), independent(1.0), adjusted(0.3), hamiltonian(0.3, 3)]
)
def test_what_is_not_finite_is_rejected_and_counted(config, value):
    """The half-normal, as a target that is not finite on the other side."""
    target = lambda v: torch.where(v[:, 0] < 0, value, (v**2).sum(1) / 2)
    bad = []
    x, _ = run(
        config,
        target,
        torch.rand(NUM, 1),
        60,
        observe=lambda step, state, info: bad.append((~info.is_finite).sum()),
    )
    assert x.min() >= 0 and sum(bad) > 0
    mean, variance = (2 / math.pi) ** 0.5, 1 - 2 / math.pi
    assert_moments(x, torch.tensor(mean), torch.tensor(variance), kurtosis=3.87)


@pytest.mark.parametrize(
    "config",
    [walk(0.6), independent(1.0), adjusted(0.03), hamiltonian(0.3, 4), hamiltonian(0.9, 4)],
)
def test_bounds_leave_the_sampler_exact(config):
    """E = 3 x on [0, 1]: a truncated exponential. Clamping would pile mass up on the bounds."""
    target = lambda v: (3 * v).sum(1)
    start = torch.rand(NUM, 2, generator=stream(7, "start"))
    x, _ = run(config, target, start, 150, bounds=(0.0, 1.0))
    assert x.min() >= 0 and x.max() <= 1 and ((x == 0) | (x == 1)).float().mean() < 1e-3
    cell = (
        ((1 - torch.exp(-3 * x)) / (1 - math.exp(-3)) * 20).long().clamp(max=19)
    )  # uniform if x is exact
    for i in range(2):
        assert_counts(cell[:, i], torch.ones(20) / 20)


def test_a_path_is_mirrored_as_often_as_it_must():
    x, turned = reflect(torch.tensor([0.3, -0.2, 1.2, 2.3, -1.4, 5.9]), (0.0, 1.0))
    torch.testing.assert_close(x, torch.tensor([0.3, 0.2, 0.8, 0.3, 0.6, 0.1]))
    assert turned.tolist() == [False, True, True, False, False, True]


def test_chains_are_independent():
    """Chains of one batch share a generator and nothing else."""
    for config in (walk(1.5), independent(1.5), adjusted(0.5), hamiltonian(0.3)):
        x, _ = run(config, lambda v: (v**2).sum(1) / 2, torch.zeros(NUM, 1), 60)
        assert abs(np.corrcoef(x[: NUM // 2, 0], x[NUM // 2 :, 0])[0, 1]) < Z / (NUM / 2) ** 0.5


ADAPTED = [
    (walk(5.0), 0.234),
    (walk(0.001), 0.44),
    (adjusted(1.0), 0.574),
    (hamiltonian(1e-3, 5), 0.8),
]


@pytest.mark.parametrize(("config", "wanted"), ADAPTED, ids=names(ADAPTED))
def test_adaptation_reaches_its_acceptance(config, wanted):
    start = torch.zeros(500, 4)
    chosen = None if wanted == module_of(config).ACCEPTANCE else wanted
    adapted, x = adaptation.adapt(
        config, Gaussian(), start, 300, stream(8, "warmup"), bounds=None, acceptance=chosen
    )
    assert type(adapted) is type(config) and adapted.step_size != config.step_size
    x, acceptance = run(adapted, Gaussian(), x, 100, seed=9)
    assert acceptance == pytest.approx(wanted, abs=0.04)


def test_a_warm_up_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        adaptation.adapt(
            adjusted(0.3), Gaussian(), torch.zeros(5, 4), 0, stream(8, "warmup"), bounds=None
        )


def test_a_uniform_number_of_zero_accepts_nothing_impossible():
    """Of 2^24 numbers with 24 random bits one is 0 on average; this stream has one early."""
    size = 2**19
    assert (torch.rand(size, generator=stream(1, "accept")) == 0).sum() > 0
    log_ratio, is_finite = torch.full((size,), -1e30), torch.ones(size, dtype=torch.bool)
    log_u = log_uniform((size,), stream(1, "accept"))
    assert not accept_mask(log_ratio, is_finite, log_u).any()
    assert accept_mask(log_ratio * 0, is_finite, log_u).all()
    half = accept_mask(torch.full((size,), math.log(0.5)), is_finite, log_u)
    assert half.float().mean() == pytest.approx(0.5, abs=3e-3)


def half_line(x):
    """A half-normal; to the left of 0 its energy is infinite."""
    return torch.where(x[:, 0] < 0, torch.inf, (x**2).sum(1) / 2)


def steep(x):
    """Finite energies, and a gradient that is not finite at 0."""
    return x.abs().sqrt().sum(1)


@pytest.mark.parametrize("temperatures", [[], [1.0, 2.0]])
@pytest.mark.parametrize(
    "config", [walk(1.0), independent(1.0), adjusted(0.3), hamiltonian(0.3, 3)]
)
def test_a_start_that_no_chain_could_leave_is_refused(config, temperatures):
    kernel = module_of(config).build(config, bounds=None)
    if temperatures:
        kernel = tempering.tempered(kernel, temperatures, bounds=None)
    start = torch.tensor([[1.0], [-1.0], [2.0]])
    count = "2 of 6" if temperatures else "1 of 3"
    with pytest.raises(DivergedError, match=f"{count} chains start where"):
        run_chain(kernel, half_line, start, 5, stream(0, "chain"))
    run_chain(kernel, half_line, start.abs(), 5, stream(0, "chain"))


@pytest.mark.parametrize("config", [walk(1.0), adjusted(0.3), hamiltonian(0.3, 3)])
def test_chains_of_the_training_go_on_from_any_start(config):
    """Their energies are in the loss, where all ranks stop together."""

    class HalfLine(torch.nn.Module):
        def forward(self, x, y=None):
            return half_line(x)

    kernel = module_of(config).build(config, bounds=None)
    start = torch.tensor([[1.0], [-1.0], [2.0]])
    x, stats = eager.Chains(HalfLine(), kernel, 5)(start, None, stream(0, "chain"))
    assert x[1] == -1 or half_line(x)[1].isfinite()
    assert 0 < stats.acceptance_rate < 1


def test_a_gradient_that_is_not_finite_is_no_start_either():
    start = torch.tensor([[1.0], [0.0]])
    for config in (adjusted(0.3), hamiltonian(0.3, 3)):
        with pytest.raises(DivergedError, match="1 of 2 chains"):
            run(config, steep, start, 5)
        with pytest.raises(DivergedError, match="1 of 2 chains"):
            adaptation.adapt(config, steep, start, 5, stream(8, "warmup"), bounds=None)
    run(walk(0.3), steep, start, 5)  # it takes no gradient


# Gibbs


@pytest.mark.parametrize("sites", [False, True], ids=["checkerboard", "sites"])
@pytest.mark.parametrize("scan", ["systematic", "random"])
def test_gibbs_on_an_enumerated_ising_lattice(scan, sites):
    """All 65,536 states: from all spins down it arrives at the exact distribution of energy and of magnetisation."""
    target, states = Ising(sites=sites), Ising.states()
    p = (-target(states).double()).softmax(0)
    x, _ = run(gibbs.Config(scan=scan), target, torch.zeros(NUM, 4, 4), 60)
    for value in (target, lambda s: s.sum((1, 2))):
        levels, cell = (
            torch.cat([value(states), value(x)]).mul(100).round().unique(return_inverse=True)
        )
        exact = torch.zeros(len(levels), dtype=torch.float64).index_add(0, cell[: len(states)], p)
        assert_counts(cell[len(states) :], exact)
    mean = (p @ states.flatten(1).double()).float()
    z = (x.flatten(1).mean(0) - mean) / (mean * (1 - mean) / NUM) ** 0.5
    assert z.abs().max() < Z


def test_gibbs_sweeps_in_a_step_are_steps():
    (a, _), (b, _) = (
        run(gibbs.Config(num_sweeps=k), Ising(), torch.zeros(8, 4, 4), 6 // k) for k in (1, 3)
    )
    assert torch.equal(a, b)


def test_gibbs_refuses_a_target_without_conditionals():
    with pytest.raises(TypeError, match="conditionals"):
        run(gibbs.Config(), lambda v: v.sum(1), torch.zeros(2, 1), 1)


# Tempering

FAR = EightGaussians(radius=4.0, deviation=0.35)


def replicas(inner, target, start, num_steps, temperatures, seed=1, bounds=None):
    kernel = tempering.tempered(
        module_of(inner).build(inner, bounds=bounds), temperatures, bounds=bounds
    )
    states = []
    x, _ = run_chain(
        kernel,
        target,
        start,
        num_steps,
        stream(seed, "chain"),
        observe=lambda step, state, info: states.append(state),
    )
    return x, states


@pytest.mark.parametrize("inner", [walk(0.5), adjusted(0.12), hamiltonian(0.2, 5)])
def test_tempering_keeps_the_target_exact_at_every_temperature(inner):
    """Exact draws of each replica stay exact."""
    temperatures = [1.0, 2.0, 5.0]
    x, states = replicas(inner, lambda v: (v**2).sum(1) / 2, torch.zeros(NUM, 2), 150, temperatures)
    assert_standard_normal(x)
    for replica, temperature in zip(states[-1].replicas, temperatures, strict=True):
        assert_standard_normal(replica / temperature**0.5)
    assert torch.equal(states[-1].replicas[0], x)
    assert (states[-1].journey.refusal_rates < 0.7).all()


@pytest.mark.parametrize("inner", [walk(0.5), adjusted(0.12), langevin.Config(step_size=0.01)])
def test_tempering_reports_the_energy_and_score_of_the_position_after_the_swap(inner):
    kernel = tempering.tempered(module_of(inner).build(inner, bounds=None), [1.0, 3.0], bounds=None)
    target, generator = lambda v: (v**2).sum(1) / 2, stream(1, "chain")
    state = kernel.init(target, torch.randn(200, 2, generator=generator))
    for _ in range(3):
        state, info = kernel.step(target, state, generator)
        torch.testing.assert_close(info.energy, target(state.position))
        if isinstance(inner, mala.Config):
            torch.testing.assert_close(info.score_norm, state.position.norm(dim=1))
    assert state.journey.refusal_rates[0] < 0.9


def test_tempering_fills_modes_that_the_kernel_alone_does_not_leave():
    start = FAR.centres[:1].expand(1000, 2)
    alone, _ = run(adjusted(0.06), FAR, start, 200)
    assert (FAR.modes(alone) == 0).float().mean() > 0.95
    x, _ = replicas(adjusted(0.06), FAR, start, 200, tempering.geometric(6, 40.0))
    assert_counts(FAR.modes(x), torch.ones(8) / 8)


@pytest.mark.parametrize("bounds", [None, (-9.0, 9.0)])
def test_temperatures_are_multiples_of_that_of_the_kernel(bounds):
    """From exact draws of each replica, which stay exact up to the error of the small step."""
    inner, temperatures = langevin.Config(step_size=0.01, noise_scale=0.1), [1.0, 2.0]
    start = torch.randn(2, NUM, 2, generator=stream(3, "start"))
    start *= torch.tensor(temperatures)[:, None, None].sqrt() * inner.temperature**0.5
    kernel = tempering.tempered(
        langevin.build(inner, bounds=bounds),
        temperatures,
        bounds=bounds,
        temperature=inner.temperature,
        replicas=start,
    )
    target, generator = lambda v: (v**2).sum(1) / 2, stream(1, "chain")
    state = kernel.init(target, start[0])
    for _ in range(150):
        state, _ = kernel.step(target, state, generator)
    for replica, t in zip(state.replicas, temperatures, strict=True):
        assert_standard_normal(replica / (t * inner.temperature) ** 0.5)


def test_tempering_within_bounds():
    x, _ = replicas(
        hamiltonian(0.3, 4),
        lambda v: (8 * v).sum(1),
        torch.rand(NUM, 1, generator=stream(7, "start")),
        100,
        [1.0, 4.0],
        bounds=(0.0, 1.0),
    )
    assert_counts(
        ((1 - torch.exp(-8 * x[:, 0])) / (1 - math.exp(-8)) * 20).long().clamp(max=19),
        torch.ones(20) / 20,
    )


def test_tempering_at_one_temperature_is_the_kernel():
    start = torch.randn(20, 2, generator=stream(0, "start"))
    x, _ = replicas(adjusted(0.1), Banana(), start, 20, [1.0])
    torch.testing.assert_close(x, run(adjusted(0.1), Banana(), start, 20)[0])


@pytest.mark.parametrize("temperatures", [[], [2.0, 3.0], [1.0, 1.0], [1.0, 3.0, 2.0]])
def test_temperatures_start_at_one_and_grow(temperatures):
    with pytest.raises(ValueError, match="start at 1 and grow"):
        tempering.tempered(mala.build(adjusted(0.1), bounds=None), temperatures, bounds=None)


def test_geometric_temperatures():
    assert tempering.geometric(3, 4.0) == pytest.approx([1, 2, 4]) and tempering.geometric(
        1, 9.0
    ) == [1]


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_any_shape_and_double_precision(shape):
    for config, dtype in itertools.product(
        (walk(1.0), adjusted(0.3), hamiltonian(0.2)), (torch.float32, torch.float64)
    ):
        start = noise((5, *shape), None, stream(0, "start")).to(dtype)
        x, _ = run(config, lambda v: (v**2).flatten(1).sum(1) / 2, start, 3)
        assert x.shape == start.shape and x.dtype == dtype
