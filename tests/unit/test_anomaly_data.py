"""The data sets of the anomaly tasks, and how scores on them are judged."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from ebm_dist import config, energies, evaluation, models
from ebm_dist.data import shards
from ebm_dist.datasets import Arrays, digits, kdd99, mnist, odds
from ebm_dist.errors import ConfigError, DataError, DivergedError
from ebm_dist.evaluation import anomaly, modes
from ebm_dist.metrics import features
from tests import helpers

needs_data = pytest.mark.skipif("EBM_DATA_DIR" not in os.environ, reason="EBM_DATA_DIR is not set")


def loaded(plugin, **chosen):
    try:
        return plugin.load(plugin.Config(**chosen))
    except DataError as missing:
        pytest.skip(f"not at hand: {missing}")


def test_whitened_rows_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 300)) @ rng.normal(size=(300, 300))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(kdd99._whiten(x, x[:3000]))
    assert np.array_equal(*found)


@needs_data
def test_kdd99_is_split_as_published():
    data = loaded(kdd99)
    train, test = data.splits["train"], data.splits["test"]
    assert train.x.shape[1] == 121 and train.x.min() == 0 and train.x.max() == 1
    assert not train.y.any() and 170_000 < len(train.x) < 180_000
    assert data.splits["val"].y.mean() == pytest.approx(0.2, abs=1e-3)
    assert test.y.mean() == pytest.approx(
        0.197, abs=0.004
    )  # fewer than a fifth: the half has no more of them


@needs_data
def test_distinct_rows_of_kdd99_have_normals_as_inliers():
    data = loaded(kdd99, distinct=True, inliers="normals", switches="numbers", scaling="log")
    train, test = data.splits["train"], data.splits["test"]
    assert train.x.shape[1] == 118 and 39_000 < len(train.x) < 40_000
    assert test.y.mean() == pytest.approx(0.2, abs=1e-3)
    both = np.concatenate([train.x, test.x])
    assert len(np.unique(both, axis=0)) > 0.999 * len(
        both
    )  # but for what 32 bits cannot tell apart
    other = loaded(kdd99, distinct=True, inliers="normals", split_seed=1)
    assert len(other.splits["train"].x) != len(train.x)


@needs_data
def test_white_columns_are_measured_by_the_training_rows():
    plain, data = loaded(kdd99, scaling="log"), loaded(kdd99, scaling="white")
    known, x = (np.sinh(data.splits[split].x.astype(float)) for split in ("train", "test"))
    assert data.bounds is None and np.array_equal(data.splits["test"].y, plain.splits["test"].y)
    assert abs(known.mean(axis=0)).max() < 1e-3
    covariance = np.cov(known, rowvar=False)
    varies = covariance.diagonal() > 0.5
    assert (
        80 < varies.sum() < 121
        and abs(covariance[np.ix_(varies, varies)] - np.eye(varies.sum())).max() < 0.1
    )
    assert (
        abs(x[:, ~varies]).max() > 100 * abs(known[:, ~varies]).max()
    )  # what never varied gives an anomaly away
    assert (
        (np.linalg.norm(data.splits["test"].x, axis=1)[data.splits["test"].y == 1]).mean() > 3
    )  # of inliers below 3


@needs_data
def test_a_held_out_digit_is_in_the_test_alone_and_no_image_twice():
    data = loaded(mnist, held_out=3)
    train, val, test = (data.splits[name] for name in ("train", "val", "test"))
    assert not train.y.any() and not val.y.any()
    assert test.y.sum() == 7141 and len(train.x) + len(val.x) + len(test.x) == 70000
    assert (test.y == 0).sum() == (70000 - 7141) // 5
    rows = [set(map(bytes, arrays.x)) for arrays in (train, val, test)]
    assert not rows[0] & rows[2] and not rows[1] & rows[2]


def test_what_a_kernel_leaves_is_the_distance_to_its_components(monkeypatch):
    rng = np.random.default_rng(0)
    train, x = rng.normal(size=(40, 3)) * [1, 2, 0.5], rng.normal(size=(7, 3))
    gamma = 1 / (3 * train.var())

    def k(a, b):
        return np.exp(-gamma * ((a[:, None] - b[None]) ** 2).sum(axis=2))

    monkeypatch.setattr(anomaly, "_NUM_KERNEL", 4)
    monkeypatch.setattr(anomaly, "_PART", 3)
    centred = np.eye(40) - 1 / 40
    values, vectors = np.linalg.eigh(centred @ k(train, train) @ centred)
    of_x = (k(x, train) - k(train, train).mean(axis=0)) @ centred
    along = of_x @ vectors[:, -4:] / np.sqrt(values[-4:])
    whole = 1 - 2 * k(x, train).mean(axis=1) + k(train, train).mean()
    found = anomaly.KernelResidual(train).residual(x)
    np.testing.assert_allclose(found, whole - (along**2).sum(axis=1), rtol=1e-6)
    monkeypatch.setattr(anomaly, "_NUM_KERNEL", 39)
    assert abs(anomaly.KernelResidual(train).residual(train)).max() < 1e-6


@needs_data
def test_known_classes_leave_the_anomaly_beyond_them():
    plain, data = loaded(mnist, held_out=3), loaded(mnist, held_out=3, known_classes=True)
    assert data.num_classes == 9 and set(data.splits["train"].y.tolist()) == set(range(9))
    for split in ("train", "val", "test"):
        assert np.array_equal(data.splits[split].x, plain.splits[split].x)
    assert np.array_equal(data.splits["test"].y == 9, plain.splits["test"].y == 1)
    digits = loaded(mnist)
    digit_of = {
        bytes(x): y for x, y in zip(digits.splits["train"].x, digits.splits["train"].y, strict=True)
    }
    seen = {
        (digit_of[bytes(x)], y)
        for x, y in zip(data.splits["train"].x, data.splits["train"].y, strict=True)
        if bytes(x) in digit_of
    }
    assert {int(digit): int(y) for digit, y in seen} == {
        0: 0,
        1: 1,
        2: 2,
        4: 3,
        5: 4,
        6: 5,
        7: 6,
        8: 7,
        9: 8,
    }


@needs_data
def test_stacked_digits_spell_their_class():
    plain, data = loaded(mnist), loaded(mnist, num_channels=2, num_stacked=400)
    assert (
        data.num_classes == 100
        and data.splits["train"].x.shape == (400, 2, 28, 28)
        and len(data.splits["test"].x) == 100
    )
    digit_of = {
        bytes(x): y for x, y in zip(plain.splits["test"].x, plain.splits["test"].y, strict=True)
    }
    for image, number in zip(data.splits["test"].x, data.splits["test"].y, strict=True):
        assert digit_of[bytes(image[0])] + 10 * digit_of[bytes(image[1])] == number


def test_scores_are_judged_by_the_known_share():
    truth = np.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    scores = np.array([0.9, 0.8, 0.1, 0.7, 0.2, 0.3, 0.05, 0.0, 0.15, 0.25])
    found = anomaly.score_detector(truth, scores, 0.2)
    assert found["precision"] == 0.5 and found["recall"] == 0.5 and found["f1"] == 0.5
    assert found["auroc"] == pytest.approx(15 / 16)  # one pair of 16 the wrong way round
    # precisions 1 and 2/3 at the two steps of the recall
    assert found["auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    best = anomaly.score_detector(truth, truth.astype(float), 0.2)
    assert best["f1"] == best["auprc"] == best["auroc"] == 1


def test_tied_scores_have_the_expectation_over_their_orders():
    """20 anomalies among the 30 rows that share the highest score: 20 of the 30 are drawn."""
    truth = np.r_[np.ones(20, int), np.zeros(80, int)]
    scores = np.r_[np.ones(30), np.zeros(70)]
    score = anomaly.score_detector(truth, scores, 0.2)
    assert score["precision"] == score["recall"] == score["f1"] == pytest.approx(2 / 3)
    assert score["auprc"] == pytest.approx(2 / 3)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(30), (4000, 1)), axis=1)
    hits = (orders[:, :20] < 20).sum(axis=1)
    assert score["f1"] == pytest.approx((2 * hits / 40).mean(), abs=0.01)
    # some above, some tied at the limit: 1 + 2 * 1/3 of 3
    score = anomaly.score_detector(
        np.array([1, 1, 0, 0, 0, 0]), np.array([3, 2, 2, 2, 1, 0.0]), 0.5
    )
    assert score["precision"] == pytest.approx((1 + 2 / 3) / 3)


@pytest.mark.parametrize(("positives", "size"), [(20, 100), (5, 500), (101, 1000)])
def test_a_constant_score_has_the_precision_of_chance(positives, size):
    truth = np.r_[np.ones(positives, int), np.zeros(size - positives, int)]
    prevalence = positives / size
    score = anomaly.score_detector(truth, np.zeros(size), prevalence)
    assert score["auroc"] == 0.5
    for name in ("precision", "recall", "f1", "auprc"):
        assert score[name] == pytest.approx(prevalence), name


def test_no_row_classified_as_anomalous_is_refused():
    with pytest.raises(ConfigError, match="contamination"):
        helpers.params(evaluation={"anomaly": {"contamination": 0}})


class Digits(torch.nn.Module):
    """A generator of grey squares."""

    latent_size, scale = 4, 1.0

    def forward(self, z):
        return self.scale * z.mean(dim=1).sigmoid()[:, None, None, None].expand(-1, 2, 8, 8)


def test_stacked_test_digits_are_counted_at_the_number_of_the_model_s_samples(tmp_path):
    whole = digits.load(digits.Config())
    test = whole.splits["test"]
    rows = np.random.default_rng(0).integers(len(test.x), size=(60, 2))
    stacked = Arrays(test.x[rows, 0], test.y[rows] @ np.array([1, 10]))
    data = whole._replace(splits={"test": stacked}, num_classes=100)
    index = shards.write(tmp_path / "stacked", "digits", data)
    features.train(
        features.Config(num_steps=200, num_threads=1),
        shards.write(tmp_path / "digits", "digits", whole),
        tmp_path,
    )
    energy = energies.build_energy(helpers.params(), index.shape, 0).requires_grad_(False)
    model = models.TrainedModel(
        energy, torch.zeros(0), torch.zeros(0), helpers.params(), {"bounds": None},
        other_players={"generator": Digits()},
    )  # fmt: skip
    subject = evaluation.Subject(model, index, {}, features.load(tmp_path))
    report = modes.evaluate(modes.Config(num_steps=1), subject)
    ceiling, floor = report.metrics["test_digits"], report.metrics["uniform"]
    assert report.metrics["num_samples"] == 2600
    # 60 stacks hold at most 60 of the hundred modes
    assert ceiling["modes"] >= 95 and ceiling["kl"] < floor["kl"] + 0.05
    assert report.metrics["modes"] < 10
    subject.model.generator.scale = torch.nan
    with pytest.raises(DivergedError, match="modes: samples of the generator: 332800 of 332800"):
        modes.evaluate(modes.Config(num_steps=1), subject)


def test_modes_are_counted_and_their_shares_compared_with_even_ones():
    assert modes.class_balance(np.array([0.5, 0.5, 0.0, 0.0])) == {
        "modes": 2.0,
        "kl": pytest.approx(np.log(2)),
    }
    assert modes.class_balance(np.full(8, 1 / 8)) == {"modes": 8.0, "kl": pytest.approx(0)}


@needs_data
@pytest.mark.parametrize(
    ("table", "rows", "columns", "outliers"),
    [("thyroid", 3772, 6, 93), ("arrhythmia", 452, 274, 66)],
)
def test_small_tables_are_whole_and_their_outliers_are_in_the_test_alone(
    table, rows, columns, outliers
):
    data = loaded(odds, table=table)
    train, test = data.splits["train"], data.splits["test"]
    assert train.x.shape[1] == columns and len(test.x) == rows - rows // 2
    assert not train.y.any() and 0 < test.y.sum() < outliers
    assert np.abs(train.x.mean(axis=0)).max() < 1e-5


@pytest.fixture(scope="module")
def labelled_nine(tmp_path_factory):
    """A subject: 8x8 digits of which the 9 is the anomaly and the others have labels, and an energy after a few steps."""
    folder = tmp_path_factory.mktemp("anomaly")
    whole = digits.load(digits.Config())
    train, test = whole.splits["train"], whole.splits["test"]
    known = Arrays(train.x[train.y < 9], train.y[train.y < 9])
    splits = {"train": Arrays(known.x, None), "labelled-0": known, "val": known, "test": test}
    shards.write(folder / "dataset", "digits", whole._replace(splits=splits, num_classes=9))
    meg = {"name": "meg", "generator": {"name": "mlp"}, "num_energy_steps": 1}
    sections = {
        "objective": {"name": "semi_supervised", "unsupervised": meg},
        "energy": {"name": "classifier", "hidden": [32]},
    }
    chosen = config.from_values(helpers.values(**sections), Path("test"))
    helpers.build(chosen, folder / "dataset").fit(folder / "run", helpers.Silent())
    helpers.export(folder / "run", folder / "model", chosen, folder / "dataset")
    return evaluation.Subject(
        models.load(folder / "model"), shards.read_index(folder / "dataset"), {}, None
    )


def test_detectors_that_know_the_classes_stand_beside_the_energy(labelled_nine):
    test, labels = shards.read_split(labelled_nine.data, "test")
    found = anomaly.evaluate(anomaly.Config(supervised_steps=200), labelled_nine)
    assert found.metrics["prevalence"] == pytest.approx((labels == 9).float().mean().item())
    scores = found.metrics["scores"]
    labels_alone = (
        "energy (labels alone)",
        "least probability (labels alone)",
        "energy and doubt (labels alone)",
    )
    for name in (*labels_alone, "Mahalanobis by class (labels)"):
        assert scores[name]["auroc"] > 0.75, name  # chance .5: a 9 is of no class
    x, y = (part.double().numpy() for part in shards.read_labelled(labelled_nine.data, 0))
    x, rows = x.reshape(len(x), -1), test.flatten(1).double().numpy()
    means = [x[y == k].mean(axis=0) for k in range(9)]
    within = np.cov(
        np.concatenate([x[y == k] - means[k] for k in range(9)]), rowvar=False
    ) + 1e-6 * np.eye(64)
    apart = [
        min((row - mean) @ np.linalg.solve(within, row - mean) for mean in means) for row in rows
    ]
    by_hand = anomaly.score_detector(
        (labels == 9).long().numpy(), np.array(apart), found.metrics["prevalence"]
    )
    assert scores["Mahalanobis by class (labels)"]["auroc"] == pytest.approx(
        by_hand["auroc"], abs=1e-3
    )
    trained = labelled_nine.model

    def rarities(images):
        p = trained.classify(images).double()
        return trained.energies(images), -(p * p.log()).sum(dim=1)

    train, _ = shards.read_labelled(labelled_nine.data, 0)
    above = [
        (theirs >= ours[:, None]).sum(dim=1)
        for ours, theirs in zip(rarities(test), rarities(train), strict=True)
    ]
    rare = -sum(((1 + count) / (1 + len(train))).log() for count in above)
    by_hand = anomaly.score_detector(
        (labels == 9).long().numpy(), rare.numpy(), found.metrics["prevalence"]
    )
    assert scores["E and doubt (model)"] == pytest.approx(by_hand, abs=1e-3)
    plain = [row["auprc"] for name, row in scores.items() if "(model)" not in name]
    assert any("(labels alone)" in name for name in scores)
    assert found.metrics["best_baseline"]["auprc"] == max(plain) and found.figures[
        "scores.png"
    ].startswith(b"\x89PNG")


def test_scores_that_are_not_finite_are_named(labelled_nine):
    class Broken(torch.nn.Module):
        def forward(self, x, y=None):
            return labelled_nine.model.energy(x, y) * torch.nan

    broken = labelled_nine._replace(model=labelled_nine.model._replace(energy=Broken()))
    with pytest.raises(DivergedError, match=r"anomaly: scores 'E \(model\)': \d+ of \d+ values"):
        anomaly.evaluate(anomaly.Config(supervised_steps=1), broken)


def test_a_split_without_anomalies_is_refused(labelled_nine):
    with pytest.raises(DataError, match="the val split needs anomalies and others"):
        anomaly.evaluate(anomaly.Config(split="val"), labelled_nine)
