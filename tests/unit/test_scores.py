"""Scores against closed forms and against other implementations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from sklearn.metrics import roc_auc_score

from ebm_dist import evaluation, models
from ebm_dist.data import shards
from ebm_dist.datasets import Arrays, digits
from ebm_dist.errors import ConfigError, DataError, DivergedError
from ebm_dist.evaluation import chains, continual, histogram, long_run, ood, samples
from ebm_dist.metrics import features, ood_images
from ebm_dist.metrics.detectors import Gaussian, rows
from tests import helpers

RNG = np.random.default_rng(0)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    a, b = RNG.normal(size=(500, 5)) @ RNG.normal(size=(5, 5)), RNG.normal(size=(400, 5)) + 1
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = linalg.sqrtm(sa @ sb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * cross)
    assert features.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert features.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert features.frechet_distance(a, a + 3) == pytest.approx(9 * 5)
    flat = np.concatenate([a, np.zeros((500, 2))], axis=1)  # a feature that never fires
    assert features.frechet_distance(flat, flat + 1) == pytest.approx(7)


def test_inception_score_between_one_and_the_number_of_classes():
    certain = np.eye(4)[np.arange(40) % 4]
    assert features.inception_score(certain) == pytest.approx(4)
    assert features.inception_score(np.full((9, 4), 0.25)) == pytest.approx(1)
    assert features.inception_score(np.eye(4)[np.zeros(9, int)]) == pytest.approx(1)
    assert features.class_shares(certain).tolist() == [0.25] * 4


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=30),
    st.lists(st.integers(0, 6), min_size=2, max_size=30),
)
@settings(deadline=None, max_examples=60)
def test_auroc_is_scikit_learn_s_with_ties(inside, outside):
    a, b = np.array(inside, float), np.array(outside, float)
    value, low, high = ood.auroc(a, b, 40)
    assert value == pytest.approx(
        roc_auc_score(np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[a, b])
    )
    assert 0 <= low <= high <= 1


def test_the_bootstrap_interval_has_the_right_width():
    """Against the standard error of Hanley & McNeil (1982) for a binormal model."""
    a, b = RNG.normal(1, 1, 400), RNG.normal(0, 1, 400)
    value, low, high = ood.auroc(a, b, 2000)
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    error = np.sqrt((value * (1 - value) + 399 * (q1 - value**2) + 399 * (q2 - value**2)) / 400**2)
    assert (high - low) / 2 / 1.96 == pytest.approx(error, rel=0.15)


def test_nearest_neighbours():
    train = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    distance, which = samples.nearest_neighbours(torch.tensor([[0.0, 1.0], [5.0, 5.0]]), train)
    assert distance.tolist() == [1.0, 0.0] and which.tolist()[1] == 2


def test_distances_far_from_zero_are_exact():
    """Integers at 2^20: the square of the offset has no room for theirs in float32."""
    whole = torch.from_numpy(RNG.integers(0, 8, size=(200, 30))).float()
    x, train = whole[:100], whole[100:]
    near, _ = samples.nearest_neighbours(x, train)
    far, rows = samples.nearest_neighbours(x + 2**20, train + 2**20)
    assert torch.equal(near, far)
    assert torch.equal(far, (x.double() - train[rows].double()).norm(dim=1))
    by_hand = torch.cdist(x.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(near, by_hand.amin(dim=1))
    assert samples.nearest_neighbours(train, train)[0].max() == 0


@pytest.mark.parametrize("num_duplicates", [0, 1, 20])
def test_duplicates_in_the_data_do_not_hide_copies(num_duplicates):
    train = torch.from_numpy(RNG.normal(size=(300, 20)))
    real = torch.from_numpy(RNG.normal(size=(60, 20)))
    real[:num_duplicates] = train[:num_duplicates]
    real_distance, _ = samples.nearest_neighbours(real, train)

    def share(x):
        return samples.copies(samples.nearest_neighbours(x, train)[0], real_distance)

    noisy = train[:100] + 0.01 * torch.from_numpy(RNG.normal(size=(100, 20)))
    assert share(noisy)["copies"] == share(train)["copies"] == 1
    assert share(torch.from_numpy(RNG.normal(size=(100, 20))))["copies"] < 0.03
    assert share(noisy)["copies_of_real"] == pytest.approx(num_duplicates / 60, abs=0.03)


def test_without_unseen_samples_no_share_of_copies_is_told():
    assert samples.copies(torch.ones(3), torch.zeros(4)) == {}


class Well(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return 50 * ((x.flatten(1) - 0.5) ** 2).sum(1)


def subject_of(index, energy, judge=None):
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}
    chains = torch.rand(40, *index.shape, generator=torch.Generator().manual_seed(0))
    model = models.TrainedModel(energy.eval(), chains, torch.zeros(40), helpers.params(), card)
    return evaluation.Subject(model, index, {}, judge)


def test_samples_floor_and_gaussian_are_scored_at_one_number(tmp_path):
    whole = digits.load(digits.Config())
    few = Arrays(whole.splits["train"].x[:90], whole.splits["train"].y[:90])
    data = whole._replace(splits={"train": few, "test": whole.splits["test"]})
    index = shards.write(tmp_path, "digits", data)
    torch.manual_seed(0)
    subject = subject_of(index, Well(), features.Classifier(index.shape, 10, 16))
    config = samples.Config(num_samples=200, num_steps=5)
    report = samples.evaluate(config, subject)
    counts = {row["set"]: row["count"] for row in report.tables["quality"]}
    assert counts.pop("model, replay buffer") == report.metrics["num_replay"] == 40
    assert set(counts.values()) == {90} and report.metrics["num_scored"] == 90
    assert report.metrics["num_real"] == 360 and report.metrics["num_samples"] == 200
    of_model, of_real = (
        features.classify(subject.classifier, x).features
        for x in (samples.sample(config, subject)[0][:90], shards.read_split(index, "test")[0])
    )
    assert report.metrics["fid_clf"] == features.frechet_distance(of_model, of_real)


def test_chains_that_go_on_are_scored_at_their_ends(tmp_path):
    index = shards.write(tmp_path, "digits", digits.load(digits.Config()))
    torch.manual_seed(0)
    subject = subject_of(index, Well(), features.Classifier(index.shape, 10, 16))
    plain, longer = (
        samples.evaluate(samples.Config(num_samples=60, num_steps=2, num_continued=n), subject)
        for n in (0, 30)
    )
    added = set(longer.metrics) - set(plain.metrics)
    assert added == {"num_continued", "fid_clf_continued", "fid_clf_continued_last"}
    assert all(longer.metrics[key] == value for key, value in plain.metrics.items())
    looks = {row["set"]: row["fid_clf"] for row in longer.tables["quality"] if "more" in row["set"]}
    assert [*looks] == [f"model, {step} steps more" for step in range(3, 31, 3)]
    assert longer.metrics["fid_clf_continued"] == np.mean([*looks.values()])
    assert longer.metrics["fid_clf_continued_last"] == [*looks.values()][-1]
    further = samples.Config(num_samples=60, num_steps=32)
    ends = samples.evaluate(further, subject).metrics["fid_clf"]
    assert longer.metrics["fid_clf_continued_last"] == ends


def test_scores_are_means_over_sets_of_their_own_noise(tmp_path):
    index = shards.write(tmp_path, "digits", digits.load(digits.Config()))
    torch.manual_seed(0)
    subject = subject_of(index, Well(), features.Classifier(index.shape, 10, 16))
    one, two, three = (
        samples.evaluate(samples.Config(num_samples=60, num_steps=2, num_sets=n), subject).metrics
        for n in (1, 2, 3)
    )
    for key in ("fid_clf", "fid_clf_floor", "is_clf"):
        second, third = 2 * two[key] - one[key], 3 * three[key] - 2 * two[key]
        assert len({round(value, 9) for value in (one[key], second, third)}) == 3
        assert max(one[key], second, third) < 2 * min(one[key], second, third)
    assert one["fid_clf_mixture"] == three["fid_clf_mixture"]


def test_too_few_images_have_no_frechet_distance():
    with pytest.raises(DataError, match="at least 2 images"):
        features.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    assert features.frechet_distance(np.zeros((3, 1)), np.ones((4, 1))) == 1  # one feature
    same = RNG.normal(size=(50, 4)) * 1e4
    assert features.frechet_distance(same, same) >= 0  # also after rounding


class Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return x.flatten(1).sum(1) * torch.nan


@pytest.mark.parametrize("suite", [samples, histogram, ood, chains, long_run])
def test_energies_that_are_not_finite_have_a_message(suite, digits_data):
    subject = subject_of(shards.read_index(digits_data), Broken())
    options = {"num_steps": 3} if suite in (samples, long_run) else {}
    with pytest.raises(DivergedError, match=rf"evaluation\.{suite.__name__.split('.')[-1]}: .*NaN"):
        suite.evaluate(suite.Config(**options), subject)


def test_labels_are_not_chosen_among_energies_that_are_not_finite():
    with pytest.raises(DivergedError, match=r"evaluation\.continual: energies .* 6 of 6"):
        continual._energies(continual.Config(), Broken(), torch.rand(3, 1, 2, 2), 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_auroc_refuses_scores_that_are_not_finite_or_cannot_be_resampled(bad):
    with pytest.raises(DivergedError, match="scores: 1 of 5"):
        ood.auroc(np.array([1.0, bad]), np.array([0.0, 1.0, 2.0]), 40)
    with pytest.raises(DataError, match="at least 2 on each side"):
        ood.auroc(np.array([1.0]), np.array([0.0, 1.0, 2.0]), 40)


@pytest.mark.parametrize(
    ("suite", "option"),
    [
        ("ood", "num_bootstrap"),
        ("samples", "num_samples"),
        ("completion", "num_completions"),
        ("completion", "num_images"),
    ],
)
def test_one_is_too_few_for_an_interval_or_a_variance(suite, option):
    with pytest.raises(ConfigError, match=rf"evaluation\.{suite}\.{option}.*at least"):
        helpers.params(evaluation={suite: {option: 1}})


def test_a_residual_is_not_negative_by_rounding():
    """All of the variance lies in the leading component, far from zero."""
    x = rows(torch.linspace(-1e6, 1e6, 500)[:, None] * torch.ones(1, 8))
    assert Gaussian(x).residual(x, 1).min() >= 0
    assert Gaussian(x[:, :1]).mahalanobis(x[:, :1], 0.0).max() < 4  # one feature


def test_the_gaussian_baseline_has_the_data_s_moments():
    x = torch.from_numpy(
        RNG.beta(4, 4, size=(2000, 3)) @ np.array([[1, 0.5, 0], [0, 0.5, 0.3], [0, 0, 0.7]])
    ).float()
    y = samples._gaussian(x, 20000)
    torch.testing.assert_close(y.mean(0), x.mean(0), atol=0.01, rtol=0)
    np.testing.assert_allclose(np.cov(y.T), np.cov(x.T), atol=2e-3)


def test_out_of_distribution_sets_are_what_they_say(digits_data, photos_data):
    index = shards.read_index(digits_data)
    real = shards.read_split(index, "test")[0]
    sets = ood_images.synthetic(real, index) | ood_images.others_like(
        index, {"photos": shards.read_index(photos_data)}, 100
    )
    assert list(sets) == ["uniform", "constant", "interpolation", "shuffled", "photos"]
    for name, x in sets.items():
        assert x.shape[1:] == (1, 8, 8) and x.min() >= 0 and x.max() <= 1, name
        torch.testing.assert_close(
            x * 16, (x * 16).round(), msg=f"{name} has grey levels that the data has not"
        )
    assert (sets["constant"].flatten(1).std(1) == 0).all()
    torch.testing.assert_close(
        sets["shuffled"].flatten(1).sort().values, real.flatten(1).sort().values
    )
    mean = (real[1] + real[0]) / 2
    assert (sets["interpolation"][1] - mean).abs().max() <= 1 / 32 + 1e-6
    assert abs(sets["uniform"].mean() - 0.5) < 0.02


def test_others_are_resized_by_averaging(tmp_path, digits_data):
    from ebm_dist.datasets import Dataset

    big = np.zeros((40, 3, 16, 16), np.uint8)
    big[:, :, ::2] = 255
    other = shards.write(
        tmp_path, "big", Dataset({"test": Arrays(big, None)}, 255.0, (0.0, 1.0), 0, "", False)
    )
    x = ood_images.others_like(shards.read_index(digits_data), {"big": other}, 99)["big"]
    assert x.shape == (40, 1, 8, 8) and (x == 0.5).all()


def test_the_classifier_learns_and_comes_back(digits_data, tmp_path):
    index = shards.read_index(digits_data)
    card = features.train(features.Config(num_steps=150, num_threads=1), index, tmp_path)
    assert card["accuracy"] > 0.85
    model = features.load(tmp_path)
    x, y = shards.read_split(index, "test")
    seen = features.classify(model, x)
    assert (seen.probabilities.argmax(1) == y.numpy()).mean() == pytest.approx(card["accuracy"])
    assert seen.features.shape == (360, 64)
    (tmp_path / features.WEIGHTS).write_bytes(
        (tmp_path / features.WEIGHTS).read_bytes()[:-1] + b"x"
    )
    with pytest.raises(features.DataError, match="altered"):
        features.load(tmp_path)


def test_images_of_every_size_have_a_classifier():
    for shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 20)):
        assert features.Classifier(shape, 3, 16)(torch.rand(2, *shape)).shape == (2, 3)


class Wells(torch.nn.Module):
    """Two classes: a well at 0, and one of half the depth at 10."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 10.0 * y[:, None]).abs().sum(1) / (1.0 + y)


def test_the_fall_of_the_energy_is_that_of_a_chain_under_the_likeliest_label_in_its_units():
    sampler = {"num_steps": 3, "step_size": 0.5, "noise_scale": 0.0}
    params = helpers.params(
        objective={"conditional": True, "label_temperature": 2.0}, sampler=sampler
    )
    card = {
        "num_classes": 2,
        "bounds": None,
        "class_energies": {"mean": [5.0, 7.0], "sd": [1.0, 0.25]},
    }
    own = models.TrainedModel(Wells(), torch.zeros(0), torch.zeros(0), params, card)
    x = torch.tensor([[0.0], [3.0], [10.0], [14.0]])
    # slopes are 1 and 1/2: three steps of 0.5 go 1.5 and 0.75 towards the well, and energies fall by 1.5 and 0.375
    assert own.likeliest(x).tolist() == [0, 0, 1, 1]
    assert ood.energy_drop(own, x).tolist() == pytest.approx([0.0, 1.5, 0.0, 0.375 / 0.25])
    assert own.energies(x).tolist() == pytest.approx([-5.0, -2.0, -7 / 0.25, (2 - 7) / 0.25])
