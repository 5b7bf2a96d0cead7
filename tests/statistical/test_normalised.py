"""Normalised energies against integrals and closed forms, and their learning."""

import math
from pathlib import Path

import pytest
import torch

from ebm_dist import config
from ebm_dist.energies import averages_of, vae
from ebm_dist.errors import ConfigError
from ebm_dist.generators import pixelcnn
from ebm_dist.objectives import Batch, StepContext, maximum_likelihood
from ebm_dist.rng import stream
from tests import helpers

LEARNT = {"name": "maximum_likelihood"}


def network(shape, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    made = pixelcnn.build(pixelcnn.Config(**{"width": 4, "num_blocks": 2} | changes), shape=shape)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.to(dtype)


def test_an_autoregressive_density_integrates_to_one_and_draws_what_it_says():
    made, extent = network((1, 1, 2), num_logistics=3), 60.0
    made.centre.fill_(0.3)
    made.spread.fill_(1.7)
    side = torch.linspace(-extent, extent, 700, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(side, side, indexing="ij"), dim=-1).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        p = made.log_prob(points).exp() * (2 * extent / 699) ** 2
        z = torch.randn(5_000, 2, generator=stream(0, "z"), dtype=torch.float64)
        x, log_q = made.draw(z)
    assert p.sum().item() == pytest.approx(1, abs=2e-3)
    cells = torch.linspace(-4, 4, 5, dtype=torch.float64)

    def shares(v, weights):  # of the 36 parts into which lines at cells cut the plane
        row, column = torch.bucketize(v.flatten(1).contiguous(), cells).unbind(1)
        return torch.zeros(36, dtype=torch.float64).index_add(0, 6 * row + column, weights)

    drawn = shares(x, torch.full((len(x),), 1 / len(x), dtype=torch.float64))
    torch.testing.assert_close(drawn, shares(points, p), rtol=0, atol=0.02)
    assert drawn.max() < 0.3
    torch.testing.assert_close(made.log_prob(x), log_q)


def test_a_value_depends_on_the_values_before_it_alone():
    made, x = network((3, 4, 4)), torch.randn(1, 3, 4, 4, dtype=torch.float64)

    def means(v):  # in reading order, channel by channel within a pixel
        return made.mixtures(v[None])[1][0].sum(dim=1).permute(1, 2, 0).flatten()

    seen = torch.autograd.functional.jacobian(means, x[0]).permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(seen.triu(), torch.zeros_like(seen))
    assert (seen[-1, :-1] != 0).sum() > 20  # from most of the image
    before = seen.diagonal(-1)  # the value just before it
    assert (before != 0).all()


def test_a_pixelcnn_starts_with_the_mean_and_the_spread_of_each_channel():
    x = torch.randn(400, 2, 4, 4, generator=stream(0, "x")) * torch.tensor([0.1, 3.0]).view(2, 1, 1)
    x = x + 5
    made = pixelcnn.build(pixelcnn.Config(), shape=(2, 4, 4))
    made.initialise(averages_of(x))
    torch.testing.assert_close(made.centre.flatten(), x.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.spread.flatten(), x.std(dim=(0, 2, 3)), rtol=1e-2, atol=1e-3)
    at_scale = made.log_prob(x).mean() + 16 * (math.log(0.1) + math.log(3))
    assert -3 * 32 < at_scale < -1 * 32  # nats of 32 values of about unit scale


def test_a_variational_bound_is_near_the_integral_with_many_draws_and_above_it_with_one():
    torch.manual_seed(0)
    made = vae.build(
        vae.Config(latent_size=1, channels=(), hidden=8, num_draws=20_000),
        shape=(3,),
        num_classes=0,
    ).double()
    made.initialise(averages_of(torch.randn(50, 3) + 2))
    x = torch.randn(6, 3, generator=stream(0, "x"), dtype=torch.float64) + 2
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        image = made.centre + made.decoder(z)
        given = torch.distributions.Normal(image, made.log_sd.exp()).log_prob(x[:, None]).sum(dim=2)
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0])
        exact = (given + prior).logsumexp(dim=1) + math.log(16 / 4000)
        torch.testing.assert_close(made(x), -exact, atol=0.02, rtol=0)
        noise = torch.randn(2000, 1, 6, 1, generator=stream(0, "n"), dtype=torch.float64)
        single = torch.stack([made(x, noise=n) for n in noise]).mean(dim=0)
    assert (single > -exact + 0.01).all() and (single < -exact + 5).all()


def turn_of(energy, x, **changes):
    objective = maximum_likelihood.MaximumLikelihood(maximum_likelihood.Config(**changes), energy)
    context = StepContext(0, None, {"energy": energy}, lambda purpose: stream(0, purpose))
    (turn,) = objective.turns(Batch(x, torch.zeros(len(x), dtype=torch.long)), context)
    return turn


class Uniform(torch.nn.Module):
    """A density of 1 between 0 and 1, which keeps what it sees."""

    latent_size = 0

    def forward(self, x, y=None):
        self.seen = x
        return torch.zeros(len(x))


def test_a_uniform_density_has_the_bits_of_all_grey_levels():
    levels, energy = torch.arange(256.0).view(1, 256) / 256 + 1 / 512, Uniform()
    turn = turn_of(energy, levels.expand(50, 256), grey_step=1 / 256)
    assert turn.loss == 0 and turn.metrics["bits_per_dim"].item() == pytest.approx(8)
    offsets = 256 * (energy.seen - levels)
    assert offsets.abs().max() <= 0.5 + 1e-4
    assert offsets.mean().abs() < 0.01 and offsets.std().item() == pytest.approx(12**-0.5, rel=0.02)
    assert turn_of(energy, levels).metrics["bits_per_dim"] == 0
    assert torch.equal(energy.seen, levels)


def test_a_vae_learns_with_noise_of_its_own_in_each_step():
    made = vae.build(vae.Config(channels=(4,), hidden=8), shape=(1, 4, 4), num_classes=0)
    x = torch.rand(8, 1, 4, 4)
    n = torch.randn(1, 8, 64, generator=stream(0, "code"))
    assert turn_of(made, x).loss == made(x, noise=n).mean() != made(x).mean()


@pytest.mark.parametrize(
    "energy",
    [
        {"name": "density", "generator": {"name": "glow", "num_steps": 2, "hidden": 8}},
        {"name": "density", "generator": {"name": "pixelcnn", "width": 8, "num_blocks": 1}},
        {"name": "vae", "latent_size": 8, "channels": [8]},
    ],
    ids=lambda energy: energy.get("generator", energy)["name"],
)
def test_normalised_energies_learn_digits(energy, digits_data):
    params = helpers.params(
        energy=energy,
        objective=LEARNT | {"grey_step": 1 / 16},
        optimizer={"lr": 3e-3},
        cluster={"workers": 1},
        train={"num_steps": 40, "batch_size": 64, "num_shards": 1, "log_every": 1},
    )
    trainer = helpers.build(params, digits_data)
    bits = [trainer.advance()["bits_per_dim"].item() for _ in range(40)]
    assert sum(bits[-5:]) / 5 < sum(bits[:5]) / 5 - 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": LEARNT}, "energy.name: its Z is unknown; use density or vae"),
        ({"energy": {"name": "density", "generator": {"name": "mlp"}}, "objective": LEARNT}, "energy.generator: needs a density that learns"),
        ({"energy": {"name": "density", "generator": {"name": "histogram"}}, "objective": LEARNT}, "energy.generator: needs a density that learns"),
    ],
)  # fmt: skip
def test_what_has_no_likelihood_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config.from_values(helpers.values(**changes), Path("test"))


def test_shapes_that_a_vae_cannot_have_are_refused():
    with pytest.raises(ConfigError, match=r"set energy\.channels"):
        vae.build(vae.Config(channels=()), shape=(1, 8, 8), num_classes=0)
    with pytest.raises(ConfigError, match="halves images 1 times"):
        vae.build(vae.Config(channels=(4,)), shape=(1, 7, 7), num_classes=0)
