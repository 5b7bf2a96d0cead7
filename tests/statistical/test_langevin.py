"""Langevin dynamics against exact moments; each test fails if the rule is changed in the way that it names."""

import numpy as np
import pytest
import torch
from scipy import stats

from ebm_dist.rng import stream
from ebm_dist.samplers import langevin, run_chain

Z = stats.norm.isf(1e-4 / 2)  # two-sided, at 1e-4; seeds are fixed


def quadratic(precision: torch.Tensor, mean: torch.Tensor):
    return lambda x: ((x - mean) ** 2 * precision).sum(1) / 2


def chain(
    step_size,
    noise_scale,
    num_steps,
    precision,
    mean,
    num_chains=20000,
    bounds=None,
    clip=None,
    start=None,
):
    config = langevin.Config(step_size=step_size, noise_scale=noise_scale, score_clip=clip)
    x = torch.zeros(num_chains, len(precision)) if start is None else start
    return run_chain(
        langevin.build(config, bounds=bounds),
        quadratic(precision, mean),
        x,
        num_steps,
        stream(1, "chain"),
    )


@pytest.mark.parametrize(("a", "temperature"), [(0.1, 1.0), (0.5, 1.0), (0.1, 0.25)])
def test_stationary_moments_on_a_gaussian_are_those_of_the_discretised_chain(a, temperature):
    """On E = p x^2/2 the chain is AR(1): variance T/p / (1 - a p / 2) exactly. No noise, wrong sign or wrong factor: all fail."""
    precision, mean = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([1.0, -2.0, 0.0])
    x, _ = chain(a, (2 * a * temperature) ** 0.5, 300, precision, mean)
    exact = temperature / precision / (1 - a * precision / 2)
    n = len(x)
    z_mean = (x.mean(0) - mean) / (exact / n).sqrt()
    z_variance = (x.var(0) / exact - 1) / np.sqrt(2 / (n - 1))
    assert z_mean.abs().max() < Z and z_variance.abs().max() < Z


def test_temperature_is_what_the_step_and_noise_belong_to():
    assert langevin.Config(step_size=10.0, noise_scale=0.005).temperature == pytest.approx(
        1.25e-6
    )  # Du & Mordatch's
    assert langevin.Config(step_size=0.5, noise_scale=1.0).temperature == pytest.approx(1.0)


def test_without_noise_it_descends_the_energy():
    target = quadratic(torch.ones(3), torch.zeros(3))
    start = torch.randn(50, 3, generator=stream(0, "start"))
    x, _ = chain(0.1, 0.0, 10, torch.ones(3), torch.zeros(3), start=start)
    torch.testing.assert_close(x, start * 0.9**10)
    assert (target(x) < target(start)).all()


def test_score_clip_bounds_each_component_of_a_step():
    start = torch.full((4, 2), 100.0)
    x, stats_ = chain(2.0, 0.0, 1, torch.ones(2), torch.zeros(2), clip=0.03, start=start)
    torch.testing.assert_close(x, start - 0.06)
    assert stats_.score_norm.item() == pytest.approx(100 * 2**0.5)  # reported before the clip


def test_positions_are_clamped_after_every_step():
    seen = []
    kernel = langevin.build(langevin.Config(step_size=1.0, noise_scale=2.0), bounds=(0.0, 1.0))
    run_chain(kernel, quadratic(torch.ones(2), torch.zeros(2)), torch.rand(100, 2), 5, stream(0, "c"),
              observe=lambda step, state, info: seen.append(state.position.clone()))  # fmt: skip
    assert len(seen) == 5 and all(x.min() >= 0 and x.max() <= 1 for x in seen)


def test_chains_have_noise_of_their_own():
    x, _ = chain(0.1, 0.4, 50, torch.ones(1), torch.zeros(1), num_chains=2000)
    assert abs(np.corrcoef(x[:1000, 0], x[1000:, 0])[0, 1]) < Z / np.sqrt(1000)
