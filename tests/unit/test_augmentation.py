import numpy as np
import pytest
import torch
from scipy.stats import kstest

from ebm_dist.chains.augmentation import affine, crop
from ebm_dist.errors import ConfigError
from ebm_dist.rng import stream


def moments(x):
    """Ink, centre and second central moments of images ``(n, 1, s, s)``, in pixels, y first."""
    weight = x[:, 0].double()
    ink = weight.sum((1, 2))
    axis = torch.arange(x.shape[-1]).double()
    y, x_ = (weight.sum(2) @ axis) / ink, (weight.sum(1) @ axis) / ink
    dy, dx = axis[None] - y[:, None], axis[None] - x_[:, None]
    yy, xx = (weight.sum(2) * dy**2).sum(1) / ink, (weight.sum(1) * dx**2).sum(1) / ink
    xy = torch.einsum("nij,ni,nj->n", weight, dy, dx) / ink
    return ink, torch.stack([y, x_]), torch.stack([yy, xy, xx])


def bar(n=4000):
    x = torch.zeros(n, 1, 33, 33)
    x[:, :, 15:18, 10:23] = 1
    return x


def test_the_share_of_changed_images_is_the_probability():
    x = bar()
    changed = (
        (affine(x, 0.3, (0.0, 1.0), stream(0, "augment")) != x).flatten(1).any(1).float().mean()
    )
    assert abs(changed - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    assert torch.equal(affine(x, 0.0, (0.0, 1.0), stream(0, "augment")), x)


def test_angles_are_uniform_scale_and_shift_are_bounded():
    moved = affine(bar(), 1.0, (0.0, 1.0), stream(0, "augment"))
    ink, (y, x), (yy, xy, xx) = moments(moved)
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)  # of the bar's long axis
    assert kstest(angle.numpy(), "uniform", args=(-np.pi / 2, np.pi)).pvalue > 1e-4
    area = ink / bar(1).sum()
    assert 0.5 < area.min() < 0.65 and 1.6 < area.max() < 2.0  # exp(+-0.6)
    assert 4 < (y - 16).abs().max() < 10 and 4 < (x - 16).abs().max() < 10


def test_half_are_mirrored():
    corners = torch.zeros(2000, 3, 33, 33)  # a triangle: one corner a channel, all moved alike
    for channel, (y, x) in enumerate([(12, 14), (20, 14), (20, 19)]):
        corners[:, channel, y - 1 : y + 2, x - 1 : x + 2] = 1
    moved = affine(corners, 1.0, (0.0, 1.0), stream(0, "augment"))
    a, b, c = (moments(moved[:, i : i + 1])[1] for i in range(3))
    is_turned_over = (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0] < 0
    assert abs(is_turned_over.float().mean() - 0.5) < 4 * (0.25 / 2000) ** 0.5


def test_what_comes_in_is_the_low_bound_and_values_stay_within():
    x = torch.full((200, 2, 9, 9), 1.0)
    moved = affine(x, 1.0, (-1.0, 1.0), stream(0, "augment"))
    assert moved.min() == -1 and moved.max() <= 1 + 1e-6


def ramps(n):
    """Grey images that rise to the right, and down: the value tells the place."""
    axis = (torch.arange(32) + 0.5) / 32
    return torch.stack(
        [axis.expand(32, 32), axis[:, None].expand(32, 32), torch.full((32, 32), 0.5)]
    ).expand(n, -1, -1, -1)


def test_crops_have_areas_log_uniform_from_8_percent_inside_the_image_and_half_are_mirrored():
    x = 0.5 + 0.1 * (ramps(4000) - 0.5)  # far from black and white, and from the colours' reach
    y = crop(x, 1.0, None, stream(0, "augment"))
    across = (y[:, 0, 16, -1] - y[:, 0, 16, 0]) / (
        y[:, 1, -1, 16] - y[:, 1, 0, 16]
    )  # colours change both rises alike
    assert ((across.abs() - 1).abs() < 0.15).all()  # half a pixel at the edge is flat
    assert abs((across < 0).float().mean() - 0.5) < 4 * (0.25 / 4000) ** 0.5
    plain = crop(
        torch.rand(1, 1, 32, 32, generator=stream(0, "x")).expand(4000, 1, 32, 32),
        1.0,
        None,
        stream(0, "augment"),
    )
    assert plain.flatten(1).std(dim=1).min() > 0.05  # parts of the image, not what is outside it


def test_the_part_that_a_crop_enlarges(monkeypatch):
    monkeypatch.setattr("ebm_dist.chains.augmentation._MAX_COLOUR", 0.0)
    y = crop(ramps(4000), 1.0, (0.0, 1.0), stream(0, "augment"))
    side = (y[:, 1, -1, 16] - y[:, 1, 0, 16]) * 32 / 31
    area = side.clamp(max=1).double() ** 2
    assert 0.075 < area.min() < 0.085 and area.max() > 0.95
    log = (area.log() / np.log(0.08)).numpy()
    assert kstest(log, "uniform").pvalue > 1e-4
    for channel in (0, 1):  # across and down
        middle = y[:, channel].mean(dim=(1, 2)).double()
        assert ((middle - 0.5).abs() <= (1 - side) / 2 + 0.02).all()
        place = ((middle - 0.5) / ((1 - side.double()) / 2))[side < 0.8]
        assert kstest(place.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-4


def test_colours_change_each_in_its_range_and_stay_within_bounds(monkeypatch):
    monkeypatch.setattr("ebm_dist.chains.augmentation._LEAST_AREA", 1.0)
    grey = torch.full((4000, 3, 8, 8), 0.5)
    shift = crop(grey, 1.0, None, stream(0, "augment"))[:, :, 0, 0] - 0.5
    assert 0.25 < shift.abs().max() <= 0.3  # brightness 0.2 and hue 0.1
    assert 0.17 < (shift - shift.mean(dim=1, keepdim=True)).abs().max() * 1.5 <= 0.2001
    stripes = grey + torch.where(torch.arange(8) % 2 == 0, 0.1, -0.1)
    contrast = crop(stripes, 1.0, None, stream(0, "augment")).std(dim=(2, 3)) / stripes.std(
        dim=(2, 3)
    )
    assert 0.6 <= contrast.min() < 0.62 and 1.38 < contrast.max() <= 1.4001
    wide = crop(
        torch.rand(500, 3, 8, 8, generator=stream(0, "x")), 1.0, (0.0, 1.0), stream(0, "augment")
    )
    assert wide.min() == 0 and wide.max() == 1
    assert torch.equal(crop(grey, 0.0, None, stream(0, "augment")), grey)


@pytest.mark.parametrize("change", [affine, crop])
def test_vectors_are_refused(change):
    with pytest.raises(
        ConfigError, match=r"objective\.augment_prob: needs images, found samples of shape \(5,\)"
    ):
        change(torch.zeros(3, 5), 0.5, None, stream(0, "augment"))
