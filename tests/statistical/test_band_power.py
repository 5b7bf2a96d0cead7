"""The powers of an image's bands, and the energy that rises on either side of those of the data."""

import math
from pathlib import Path

import pytest
import torch
from scipy import stats

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.energies import averages_of, band_power, mlp
from ebm_dist.errors import ConfigError
from ebm_dist.rng import stream
from tests import helpers

SHAPE = (3, 16, 16)


def smooth_images(n, seed=0):
    """White noise and, louder, its averages: some power in each octave."""
    g = stream(seed, "images")
    x = torch.full((n, *SHAPE), 0.5)
    for side in (2, 4, 8, 16):
        part = (
            torch.randn(n, 3, side, side, generator=g) * torch.rand(n, 1, 1, 1, generator=g) / side
        )
        x = x + torch.nn.functional.interpolate(part, SHAPE[1:], mode="bilinear")
    return x


def energy(data, **options):
    model = band_power.build(
        band_power.Config(network=mlp.Config(hidden=(4,)), **options), shape=SHAPE, num_classes=0
    )
    model.initialise(averages_of(data))
    return model


def second_term(model, x):
    return model(x) - model.network(x)


def test_a_wave_has_its_power_in_its_octave():
    columns = torch.arange(16)
    powers = []
    for period in (2, 4, 8):
        wave = (
            (columns % period < period // 2).float().expand(1, 1, 16, 16)
        )  # a square wave, so its power is 1/4
        powers.append(band_power.log_powers(wave, 1e-9)[0].exp())
    assert all(own.shape == (4,) for own in powers), "three octaves and what is left"
    assert [int(own.argmax()) for own in powers] == [0, 1, 2]
    assert powers[0][0] == pytest.approx(1 / 4, rel=0.02) and powers[0][1:].max() < 1e-6


def test_what_is_left_of_a_step_is_its_variance():
    step = (torch.arange(16) >= 8).float().expand(1, 1, 16, 16)
    assert band_power.log_powers(step, 1e-9)[0, -1].exp() == pytest.approx(1 / 4, rel=1e-4)


def test_colours_are_brightness_and_contrasts():
    red, green, blue = torch.rand(3, 2, 4, 4, generator=stream(0, "x"))
    found = band_power.contrasts(torch.stack([red, green, blue], dim=1))
    expected = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], dim=1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(band_power.contrasts(red[:, None]), red[:, None]), (
        "one channel is its own brightness"
    )


@pytest.mark.parametrize(
    ("shape", "num_powers"), [((1, 28, 28), 4), ((3, 32, 32), 15), ((1, 8, 8), 3), ((2, 5, 9), 4)]
)
def test_as_many_powers_as_octaves_and_one(shape, num_powers):
    x = torch.rand(2, *shape)
    powers = band_power.log_powers(x, 1e-5)
    assert powers.shape == (2, num_powers) and powers.isfinite().all()
    torch.testing.assert_close(
        band_power.log_powers(torch.zeros(1, *shape), 1e-5),
        torch.full((1, num_powers), math.log(1e-5)),
    )


def test_the_second_term_is_that_of_the_docstring():
    data, x = smooth_images(3000), smooth_images(50, seed=1)
    model = energy(data, weight=0.7, floor=1e-4)
    own = band_power.log_powers(data, 1e-4).double()
    d = band_power.log_powers(x, 1e-4).double() - own.mean(0)
    covariance = torch.cov(own.T, correction=0) + 1e-3 * torch.eye(own.shape[1])
    squared = (d * torch.linalg.solve(covariance, d.T).T).sum(1)
    torch.testing.assert_close(
        second_term(model, x).double(), 0.7 * torch.log(1 + squared / 12), rtol=1e-3, atol=1e-4
    )


def test_it_rises_on_either_side_of_the_data():
    data = smooth_images(2000)
    model, real = energy(data), smooth_images(300, seed=1)
    own = second_term(model, real).detach()
    for name, other in {
        "constant": torch.rand(300, 3, 1, 1).expand(-1, *SHAPE),
        "uniform": torch.rand(300, *SHAPE),
        "grey": real.mean(dim=1, keepdim=True).expand_as(real),
        "blurred": torch.nn.functional.avg_pool2d(real, 3, stride=1, padding=1),
    }.items():
        above = stats.mannwhitneyu(second_term(model, other).detach(), own).statistic / 300**2
        assert above > 0.95, f"{name}: {above}"


def settings():
    return helpers.values(
        energy={"name": "band_power", "network": {"name": "mlp", "hidden": [8]}},
        train={"num_steps": 2},
    )


def test_moments_are_those_of_all_training_data(digits_data):
    model = helpers.build(
        config.from_values(settings(), Path("test")), digits_data
    ).objective.players["energy"]
    own = band_power.log_powers(
        shards.read_split(shards.read_index(digits_data), "train")[0].double(), 1e-5
    )
    torch.testing.assert_close(model.mean.double(), own.mean(0), rtol=1e-5, atol=1e-5)
    precision = torch.linalg.inv(torch.cov(own.T, correction=0) + 1e-3 * torch.eye(3))
    torch.testing.assert_close(model.precision.double(), precision, rtol=1e-4, atol=1e-4)


def test_moments_and_training_have_the_same_bits_on_one_worker_and_two(digits_data, tmp_path):
    for workers in (1, 2):
        helpers.spawn(workers, tmp_path / str(workers), digits_data, settings())
    assert helpers.state_of(tmp_path / "1") == helpers.state_of(tmp_path / "2")


def test_a_classifier_has_no_place_for_it():
    with pytest.raises(ConfigError, match=r"energy.network: a classifier has one energy per class"):
        helpers.params(energy={"name": "band_power", "network": {"name": "classifier"}})


def test_what_does_not_suit_is_said_in_one_message():
    with pytest.raises(
        ConfigError, match=r"gates: selects units by class"
    ):  # the check of the network within
        helpers.params(energy={"name": "band_power", "network": {"name": "mlp", "gates": True}})
    with pytest.raises(ConfigError, match=r"needs images, found samples of shape \(2,\)"):
        band_power.build(band_power.Config(network=mlp.Config()), shape=(2,), num_classes=0)
