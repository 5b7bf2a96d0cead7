"""Rejection and importance sampling against exact moments, acceptance rates and log Z."""

import math

import pytest
import torch

import ebm_dist as ebm
from ebm_dist.errors import DivergedError
from ebm_dist.metrics.importance import importance, weighted_mean
from ebm_dist.rng import stream
from ebm_dist.samplers import rejection

NUM, SCALE = 20_000, 1.5


def normal(x):
    return (x**2).sum(1) / 2


def log_bound(num_dims):
    """Return log M of a standard normal, without its constant, and N(0, SCALE^2): both peak at 0."""
    return num_dims * math.log(SCALE * math.sqrt(math.tau))


def state_after(num_steps, num_dims=2, target=normal, bounds=None, num_chains=NUM, **settings):
    kernel = rejection.build(rejection.Config(**settings), bounds=bounds)
    generator = stream(0, "rejection")
    state = kernel.init(target, torch.full((num_chains, num_dims), 0.5))
    for _ in range(num_steps):
        before = state.position
        state, info = kernel.step(target, state, generator)
    torch.testing.assert_close(info.energy, target(state.position))
    return state, before, info


def assert_standard_normal(x):
    """Within five standard errors."""
    n = x.numel()
    assert x.mean().abs() < 5 / n**0.5
    assert (x.var() - 1).abs() < 5 * (2 / n) ** 0.5
    assert ((x**4).mean() - 3).abs() < 5 * (96 / n) ** 0.5


@pytest.mark.parametrize("given", [True, False])
def test_draws_are_exact_and_independent(given):
    bound = {"log_bound": log_bound(2) + 1e-4} if given else {}
    state, before, info = state_after(3, scale=SCALE, **bound)
    assert info.is_accepted.all()
    assert_standard_normal(state.position)
    for product in (state.position * before, state.position[:, 0] * state.position[:, 1]):
        assert product.mean().abs() < 5 / product.numel() ** 0.5
    assert float(state.log_bound) == pytest.approx(log_bound(2), abs=2e-3)


@pytest.mark.parametrize("num_dims", [1, 3])
def test_the_share_of_accepted_proposals_is_z_over_m(num_dims):
    """Z = (2 pi)^(d / 2), so SCALE^-d."""
    state, _, _ = state_after(2, num_dims, scale=SCALE, log_bound=log_bound(num_dims) + 1e-4)
    share, n = float(state.num_accepted / state.num_proposals), float(state.num_proposals)
    expected = SCALE**-num_dims
    assert share == pytest.approx(expected, abs=5 * (expected / n) ** 0.5)


def test_within_bounds_at_a_temperature():
    """exp(-8 x / 2) on [0, 1] by its distribution function."""
    state, _, _ = state_after(
        2, 1, target=lambda x: 8 * x[:, 0], bounds=(0.0, 1.0), temperature=2.0, log_bound=0.0
    )
    x = state.position[:, 0]
    uniform = (1 - torch.exp(-4 * x)) / (1 - math.exp(-4))
    assert x.min() >= 0
    assert x.max() <= 1
    assert (uniform.sort().values - torch.linspace(0, 1, NUM)).abs().max() < 2 / NUM**0.5


def test_a_chain_stays_where_no_proposal_is_accepted():
    state, before, info = state_after(
        1, 8, scale=3.0, log_bound=log_bound(8) + 9, num_proposals=1, num_chains=2000
    )
    rejected = ~info.is_accepted
    assert 0 < rejected.float().mean() <= 1
    assert torch.equal(state.position[rejected], before[rejected])


def test_a_bound_that_is_none_stops_the_run():
    with pytest.raises(DivergedError, match=r"above log_bound 1\b.*"):
        state_after(1, scale=SCALE, log_bound=1.0)


def test_from_python():
    draws = ebm.sample(normal, torch.zeros(50, 2), "rejection", num_samples=200, num_warmup=5)
    assert draws.diagnostics.rhat < 1.02
    assert draws.diagnostics.ess_bulk > 8000


@pytest.mark.parametrize("num_dims", [1, 4])
def test_importance_weights(num_dims):
    """For N(0, I) by N(0, s^2 I) the effective share is (sqrt(2 s^2 - 1) / s^2)^d."""
    x = SCALE * torch.randn(200_000, num_dims, generator=stream(0, "importance")).double()
    log_q = -((x / SCALE) ** 2).sum(1) / 2 - log_bound(num_dims)
    log_w = -normal(x) - log_q
    found = importance(log_w)
    share = (math.sqrt(2 * SCALE**2 - 1) / SCALE**2) ** num_dims
    assert found.ess == pytest.approx(share, rel=0.02)
    assert found.log_z == pytest.approx(num_dims * math.log(math.tau) / 2, abs=0.01)
    moments = weighted_mean(log_w, torch.cat([x, x**2], dim=1))
    expected = torch.cat([torch.zeros(num_dims), torch.ones(num_dims)]).double()
    torch.testing.assert_close(moments, expected, atol=0.03, rtol=0)
