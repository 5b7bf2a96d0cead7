import numpy as np
import pytest
import torch
from scipy.stats import kstest

from ebm_dist.augmentation import augmented
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
    changed = (augmented(x, 0.3, (0.0, 1.0), stream(0, "augment")) != x).flatten(1).any(1).float().mean()
    assert abs(changed - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    assert torch.equal(augmented(x, 0.0, (0.0, 1.0), stream(0, "augment")), x)


def test_angles_are_uniform_scale_and_shift_are_bounded():
    moved = augmented(bar(), 1.0, (0.0, 1.0), stream(0, "augment"))
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
    moved = augmented(corners, 1.0, (0.0, 1.0), stream(0, "augment"))
    a, b, c = (moments(moved[:, i : i + 1])[1] for i in range(3))
    is_turned_over = (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0] < 0
    assert abs(is_turned_over.float().mean() - 0.5) < 4 * (0.25 / 2000) ** 0.5


def test_what_comes_in_is_the_low_bound_and_values_stay_within():
    x = torch.full((200, 2, 9, 9), 1.0)
    moved = augmented(x, 1.0, (-1.0, 1.0), stream(0, "augment"))
    assert moved.min() == -1 and moved.max() <= 1 + 1e-6


def test_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"objective\.augment_prob: samples of shape \(5,\) are no images"):
        augmented(torch.zeros(3, 5), 0.5, None, stream(0, "augment"))
