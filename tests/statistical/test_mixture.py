"""The mixture of Gaussians against integrals, its own draws and known clusters."""

import math

import pytest
import torch

from ebm_dist.energies import Levels, averages_of, mlp
from ebm_dist.errors import ConfigError
from ebm_dist.generators import mixture
from ebm_dist.rng import stream


def fitted(x, **values):
    noise = mixture.build(mixture.Config(**values), shape=tuple(x.shape[1:]))
    noise.initialise(averages_of(x))
    return noise


def curved(n, count=20000):
    """Four clusters on a curve, flat across it."""
    g = stream(0, "curved")
    x = torch.randn(count, n, generator=g) * torch.linspace(0.5, 0.1, n)
    x[:, 0] += 2 * (torch.arange(count) % 4)
    x[:, 1] += (torch.arange(count) % 4 - 1.5) ** 2
    return x


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_the_mixture_integrates_to_one_and_draws_what_it_says(sigma):
    x = curved(2)
    noise = fitted(x, num_components=4, num_axes=1)
    axes = [torch.linspace(-4, 10, 700), torch.linspace(-4, 7, 550)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
    density = noise.smoothed(grid, torch.full((len(grid),), sigma)).exp().double()
    volume = 14 / 699 * 11 / 549
    assert (density.sum() * volume).item() == pytest.approx(1, abs=0.001)
    drawn, log_q = noise.draw(torch.randn(100000, noise.latent_size, generator=stream(0, "z")))
    assert torch.equal(log_q, noise.log_prob(drawn))
    drawn = drawn + sigma * torch.randn(drawn.shape, generator=stream(0, "noise"))
    for power in (1, 2):
        integral = (density[:, None] * grid.double() ** power).sum(0) * volume
        torch.testing.assert_close(
            (drawn.double() ** power).mean(0), integral, rtol=0.02, atol=0.02
        )


def test_the_mixture_is_that_of_the_data_under_noise():
    """q_sigma(x) = E q_0(x - sigma n), with directions, axes and all that is across them."""
    noise, sigma = fitted(curved(6), num_components=4, num_directions=4, num_axes=2), 0.2
    points = curved(6)[:3] + 0.1
    n = torch.randn(200000, 6, generator=stream(0, "n"))
    for point in points:
        inside = noise.log_prob(point - sigma * n).double().logsumexp(0) - math.log(len(n))
        outside = noise.smoothed(point[None], torch.tensor([sigma]))
        assert outside.item() == pytest.approx(inside.item(), abs=0.02)


def test_the_mixture_finds_the_clusters():
    x = curved(2)
    near, one = fitted(x, num_components=4), fitted(x, num_components=1)
    assert near.weights.tolist() == pytest.approx([0.25] * 4, abs=0.01)
    entropy = math.log(4) + 1 + math.log(2 * math.pi) + math.log(0.5 * 0.1)
    assert near.log_prob(x).mean().item() == pytest.approx(-entropy, abs=0.1)
    assert one.log_prob(x).mean().item() < -entropy - 0.5


def test_more_gaussians_than_clusters_stay_finite():
    x = (torch.arange(2000) % 2)[:, None].float().expand(-1, 3)
    noise = fitted(x, num_components=8)
    assert noise.log_prob(x).isfinite().all() and noise.weights.sum().item() == pytest.approx(1)
    with pytest.raises(ConfigError, match="set num_components to a power of 2"):
        fitted(x, num_components=6)


SIGMAS = (0.3, 0.6, 1.4)


def test_levels_can_start_from_a_mixture():
    """-w_k log q_sigma_k(x) + (1 - w_k) |x|^2 / 2 v_k + s / sigma_k N(x / sqrt(v_k), k)."""
    base = fitted(curved(2), num_components=4)
    network = mlp.build(mlp.Config(hidden=(8,)), shape=(2,), num_classes=3)
    energy, x = Levels(network, SIGMAS, 0.8, base, base_from=0.5), curved(2)[:3]
    for k, sigma in enumerate(SIGMAS):
        y, v, w = torch.full((3,), k), sigma**2 + 0.8**2, 1 / (1 + (0.5 / sigma) ** 4)
        expected = 0.8 / sigma * network(x / v**0.5, y) + (1 - w) * (x**2).sum(1) / 2 / v
        expected = expected - w * base.smoothed(x, torch.full((3,), sigma))
        torch.testing.assert_close(energy(x, y), expected)
    whole = Levels(network, SIGMAS, 0.8, base)(x)
    left = whole - 0.8 / SIGMAS[0] * network(x / (SIGMAS[0] ** 2 + 0.64) ** 0.5, 0 * y)
    torch.testing.assert_close(left, -base.smoothed(x, torch.full((3,), SIGMAS[0])))
