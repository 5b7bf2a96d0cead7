"""Completion and cross-class sampling, on energies with known samples."""

import pytest
import torch
from torch import nn

from ebm_dist import evaluation
from ebm_dist.data import shards
from ebm_dist.errors import ConfigError, DivergedError
from ebm_dist.evaluation import completion, composition, cross_class
from ebm_dist.metrics import features
from ebm_dist.models.trained import TrainedModel
from ebm_dist.rng import numpy_stream
from tests import helpers

STIFFNESS = 500.0


class ClassMeans(nn.Module):
    """A well at each class's mean image, under a label that is ``shift`` too small."""

    def __init__(self, means: torch.Tensor, shift: int = 0) -> None:
        super().__init__()
        self.means = means.roll(shift, dims=0)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return STIFFNESS / 2 * ((x - self.means[y]) ** 2).flatten(1).sum(1)


class Flat(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return 0 * x.flatten(1).sum(1)


class Mirror(nn.Module):
    """The lower half is the upper half upside down, moved towards the middle grey, with variance 1 / STIFFNESS."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        upper, lower = x.chunk(2, dim=2)
        return STIFFNESS / 2 * ((lower - mirrored(upper)) ** 2).flatten(1).sum(1)


def mirrored(upper: torch.Tensor) -> torch.Tensor:
    return 0.3 + 0.4 * upper.flip(2)


@pytest.fixture(scope="module")
def classifier(digits_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    features.train(
        features.Config(num_steps=300, num_threads=1), shards.read_index(digits_data), folder
    )
    return features.load(folder)


def means(digits_data) -> torch.Tensor:
    x, y = shards.read_split(shards.read_index(digits_data), "train")
    return torch.stack([x[y == k].mean(dim=0) for k in range(10)])


def subject(digits_data, energy, classifier=None, **objective):
    step_size = 0.0004
    params = helpers.params(
        sampler={"name": "langevin", "step_size": step_size, "noise_scale": (2 * step_size) ** 0.5},
        objective=objective,
    )
    index = shards.read_index(digits_data)
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}
    model = TrainedModel(energy.eval(), torch.zeros(0), torch.zeros(0), params, card)
    return evaluation.Subject(model, index, {}, classifier)


def crossed(digits_data, energy, classifier):
    config = cross_class.Config(num_samples=200, num_rounds=4, steps_per_round=15)
    return cross_class.evaluate(config, subject(digits_data, energy, classifier, conditional=True))


def test_chains_of_a_class_are_seen_as_that_class(digits_data, classifier, tmp_path):
    report = crossed(digits_data, ClassMeans(means(digits_data)), classifier)
    found = report.metrics
    assert found["hit_rate_of_real"] > 0.9 and found["chance"] == 0.1
    for start in ("noise", "images"):
        assert found[start]["hit_rate"] > 0.95 and found[start]["worst_class_hit_rate"] > 0.7, found
    rows = report.tables["rounds_from_images"]
    assert [row["steps"] for row in rows] == [0, 15, 30, 45, 60]
    assert rows[0]["hit_rate"] < 0.05 and rows[0]["stayed"] > 0.9 and rows[0]["distance"] == 0
    assert rows[-1]["stayed"] < 0.05 and rows[-1]["distance"] > 1

    report.write(tmp_path)
    assert len((tmp_path / "plots/rounds_from_noise.csv").read_text().splitlines()) == 6


def test_a_wrong_label_is_no_hit_and_a_flat_energy_changes_no_class(digits_data, classifier):
    wrong = crossed(digits_data, ClassMeans(means(digits_data), shift=1), classifier).metrics
    assert wrong["noise"]["hit_rate"] < 0.05 and wrong["images"]["worst_class_hit_rate"] < 0.05
    calm = subject(digits_data, Flat(), classifier, conditional=True)
    tiny = helpers.params(
        sampler={"name": "langevin", "step_size": 1e-8, "noise_scale": 1e-4},
        objective={"conditional": True},
    )
    calm = calm._replace(model=calm.model._replace(params=tiny))
    still = cross_class.evaluate(cross_class.Config(num_samples=100, num_rounds=2), calm).metrics
    assert still["images"]["hit_rate"] < 0.1 and still["images"]["stayed"] > 0.9


def test_images_to_start_from_are_of_every_other_class(digits_data):
    _, y = shards.read_split(shards.read_index(digits_data), "test")
    asked = torch.arange(180) % 10
    origin = y[cross_class.other_classes(y, asked, 10)]
    assert all(set(origin[asked == k].tolist()) == set(range(10)) - {k} for k in range(10))


def test_cross_class_needs_labels_and_a_classifier(digits_data, classifier):
    for own in (
        subject(digits_data, Flat(), classifier),
        subject(digits_data, Flat(), None, conditional=True),
    ):
        with pytest.raises(ConfigError, match="conditional: true"):
            cross_class.evaluate(cross_class.Config(), own)


def test_sums_of_energies_have_something_of_both(digits_data, classifier):
    """Of two wells of equal width the sum's is in the middle between them, and its energy there is known."""
    config, centre = composition.Config(samples_per_pair=4, num_steps=60), means(digits_data)
    own = subject(digits_data, ClassMeans(centre), classifier, conditional=True)
    pairs = torch.tensor([[1, 6], [0, 4]]).repeat_interleave(4, dim=0)
    ends = composition.sample(config, own, pairs)
    middle = (centre[pairs[:, 0]] + centre[pairs[:, 1]]) / 2
    assert (ends - middle).abs().mean() < 0.05
    report = composition.evaluate(config, own)
    found = report.metrics
    assert found["num_samples"] == 180 and found["chance"] == pytest.approx(1 / 45)
    assert found["share_with_both"] > 0.5 > found["share_with_both_alone"] + 0.2, found
    assert found["energy_of_both"] < found["energy_of_both_alone"]
    assert len(report.tables["pairs"]) == 45 and report.figures["pairs.png"]
    with pytest.raises(
        ConfigError, match=r"evaluation\.composition: needs a model that learnt labels"
    ):
        composition.evaluate(
            config, subject(digits_data, ClassMeans(centre), classifier, conditional=False)
        )


def test_the_nearest_upper_half_lends_its_lower_one():
    train = torch.zeros(3, 1, 4, 2)
    train[:, 0, :2] = torch.tensor([0.0, 0.5, 0.6])[:, None, None]
    train[:, 0, 2:] = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    x = train[1:2]
    assert completion.nearest(x, train, torch.tensor([[True, False, True]])).mean() == 3.0
    assert completion.nearest(x, train, torch.tensor([[True, False, False]])).mean() == 1.0
    assert completion.nearest(x, train, torch.ones(1, 3, dtype=torch.bool)).shape == (1, 1, 2, 2)
    train[2, 0, :2] = 0.5  # an equal upper half of another image is its nearest
    assert completion.nearest(x, train, torch.tensor([[True, False, True]])).mean() == 3.0
    train[0, 0, :2] = 0.51
    assert (
        completion.nearest(x + 1000, train + 1000, torch.tensor([[True, False, True]])).mean()
        == 1003.0
    )


def test_no_training_image_lends_to_itself_and_a_duplicate_does(digits_data):
    """The distance of an image to itself may round to more than 0."""
    model = subject(digits_data, Mirror())
    config = completion.Config(num_images=200, num_completions=2, num_steps=1)
    mse = completion.evaluate(config, model).metrics["train"]["mse_nearest"]
    train = shards.read_split(model.data, "train")[0]
    rows = numpy_stream(0, "completion/train").permutation(len(train))[:200]
    upper, lower = (half.flatten(1) for half in train.chunk(2, dim=2))
    distance = torch.cdist(upper[rows], upper, compute_mode="donot_use_mm_for_euclid_dist")
    distance[torch.arange(200), rows] = torch.inf
    by_hand = ((lower[distance.argmin(dim=1)] - lower[rows]) ** 2).mean().item()
    assert mse == pytest.approx(by_hand, rel=1e-3)


def test_the_mean_image_of_the_class_is_beside_a_model_that_knows_the_class(digits_data):
    found = completion.evaluate(
        completion.Config(num_images=200, num_completions=2, num_steps=1),
        subject(digits_data, ClassMeans(means(digits_data)), conditional=True),
    ).metrics["test"]
    assert found["mse_class_mean"] < 0.9 * found["mse_mean_image"]
    index = shards.read_index(digits_data)
    (train, labels), (test, of) = (shards.read_split(index, name) for name in ("train", "test"))
    lower = [x[:, :, x.shape[2] // 2 :] for x in (train, test[:200])]
    by_hand = [((lower[1][i] - lower[0][labels == of[i]].mean(0)) ** 2).mean() for i in range(200)]
    assert found["mse_class_mean"] == pytest.approx(sum(by_hand).item() / 200, rel=1e-4)


class Broken(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return x.flatten(1).sum(1) * torch.nan


@pytest.mark.parametrize("suite", [completion, composition, cross_class])
def test_chains_that_are_not_finite_have_a_message(suite, digits_data, classifier):
    conditional = suite is not completion
    broken = subject(digits_data, Broken(), classifier, conditional=conditional)
    name = suite.__name__.split(".")[-1]
    with pytest.raises(DivergedError, match=rf"evaluation\.{name}: .* NaN"):
        suite.evaluate(suite.Config(), broken)


def test_fewer_samples_than_classes_leave_the_other_classes_out(digits_data, classifier):
    config = cross_class.Config(num_samples=5, num_rounds=1, steps_per_round=15)
    model = subject(digits_data, ClassMeans(means(digits_data)), classifier, conditional=True)
    report = cross_class.evaluate(config, model)
    assert report.metrics["noise"]["worst_class_hit_rate"] == 1


def test_an_interval_of_hit_rates_ends_at_0_and_1():
    for count in range(1, 200):
        rows = [{"steps": 0, "hit_rate": 0.0}, {"steps": 1, "hit_rate": 1.0}]
        _, _, low, high = cross_class._band(rows, count)
        assert low.min() >= 0 and high.max() <= 1


def test_completions_follow_the_energy_and_keep_what_is_given(digits_data, tmp_path):
    config, own = (
        completion.Config(num_images=60, num_completions=6, num_steps=60),
        subject(digits_data, Mirror()),
    )
    report = completion.evaluate(config, own)
    report.write(tmp_path)
    x, _ = shards.read_split(own.data, "test")
    upper, lower = x[:60].chunk(2, dim=2)
    bias = ((mirrored(upper) - lower) ** 2).mean().item()
    found = report.metrics["test"]
    assert found["variance"] == pytest.approx(
        1 / STIFFNESS, rel=0.2
    )  # the step is a tenth of the well's width: 11 % too wide
    assert found["mse"] == pytest.approx(bias + 1 / STIFFNESS, rel=0.02)
    assert found["mse_of_mean_completion"] == pytest.approx(bias + 1 / STIFFNESS / 6, rel=0.02)
    train = shards.read_split(own.data, "train")[0]
    mean_image = ((train.mean(dim=0)[:, 4:] - lower) ** 2).mean().item()
    assert found["mse_mean_image"] == pytest.approx(mean_image, rel=1e-5)
    assert report.metrics["mse_over_mean_image"] == pytest.approx(
        found["mse"] / mean_image, rel=1e-5
    )
    ratio = found["mse"] / report.metrics["train"]["mse"]
    assert report.metrics["mse_test_over_train"] == pytest.approx(ratio)


def test_a_conditional_model_completes_under_the_label(digits_data):
    own = subject(digits_data, ClassMeans(means(digits_data)), conditional=True)
    report = completion.evaluate(
        completion.Config(num_images=60, num_completions=2, num_steps=60), own
    )
    x, y = shards.read_split(own.data, "test")
    bias = ((means(digits_data)[y[:60]] - x[:60])[:, :, 4:] ** 2).mean().item()
    assert report.metrics["test"]["mse_of_mean_completion"] == pytest.approx(bias, rel=0.05)
    assert report.metrics["mse_over_mean_image"] < 0.8
