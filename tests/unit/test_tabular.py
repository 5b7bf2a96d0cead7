"""Tables with anomalies: the protocols, and the detectors that energies are compared with."""

import numpy as np
import pytest
from scipy import stats

from ebm_dist.datasets import adbench
from ebm_dist.errors import DataError
from ebm_dist.metrics import detectors


def table(n, columns=3, share=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, columns)) * 5 + 2, (np.arange(n) < share * n).astype(int)


@pytest.mark.parametrize(
    ("n", "protocol", "num_rows"),
    [
        (400, "leak_free", 400),
        (400, "published", 1000),
        (400, "contaminated", 400),
        (12_000, "leak_free", 10_000),
        (12_000, "published", 10_000),
    ],
)
def test_a_protocol_draws_its_rows(n, protocol, num_rows):
    x, y = table(n)
    found = adbench.split(x, y, protocol, 0)
    if protocol == "contaminated":
        assert len(found.train) == len(found.test) == num_rows
        assert found.truth.sum() == y.sum()
        return
    assert len(found.train) + len(found.test) == num_rows
    normal = num_rows - found.truth.sum()
    assert len(found.train) == normal // 2
    assert found.truth.mean() == pytest.approx(0.1 * num_rows / len(found.test), rel=0.15)
    np.testing.assert_allclose(found.train.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(found.train.std(axis=0), 1)
    other = adbench.split(x, y, protocol, 1)
    assert not np.array_equal(found.train, other.train)
    assert np.array_equal(found.train, adbench.split(x, y, protocol, 0).train)


def test_the_published_protocol_leaks_and_the_other_does_not():
    x, y = table(200)
    x[150:190] = x[110:150]  # normal rows that are there twice
    leaks, fair = (adbench.split(x, y, protocol, 0) for protocol in ("published", "leak_free"))

    def share(found):
        known = {row.tobytes() for row in found.train}
        return np.mean([row.tobytes() in known for row in found.test])

    assert share(leaks) > 0.4 and leaks.num_copies == round(share(leaks) * len(leaks.test))
    assert share(fair) == 0 and 0 < fair.num_copies < 40
    assert len(fair.train) + len(fair.test) + fair.num_copies == 200


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "1_x.npz"
    for content, message in (
        ({"X": np.zeros((3, 2)), "y": np.zeros(3)}, "with 1 values"),
        ({"X": np.zeros((3, 2)), "y": np.arange(2)}, r"y of shape \(2,\)"),
        ({"x": np.zeros((3, 2))}, "not a table with X and y"),
        ({"X": np.full((3, 2), np.nan), "y": np.array([0, 1, 0])}, "not finite"),
    ):
        np.savez(path, **content)
        with pytest.raises(DataError, match=message):
            adbench.read(path)
    with pytest.raises(DataError, match="no 'nothing'"):
        adbench.load(adbench.Config(table="nothing"))


@pytest.mark.parametrize("name", detectors.DETECTORS)
def test_a_detector_finds_what_is_far_and_scores_row_by_row(name):
    rng = np.random.default_rng(0)
    train, near = rng.normal(size=(300, 4)), rng.normal(size=(50, 4))
    for x in (train, near):
        x[:, 2] = x[:, 0] + 0.3 * x[:, 2]
        x[:, 3] = 0  # constant
    far = near + np.array([6.0, -6.0, -6.0, 0.0])
    score = detectors.DETECTORS[name](train, 0)
    of_near, of_far = score(near), score(far)
    assert of_near.shape == (50,)
    assert np.median(of_far) > np.quantile(of_near, 0.98)
    if name != "local outlier factor":  # neighbours of equal distance may be others
        np.testing.assert_allclose(score(np.concatenate([far, near])), [*of_far, *of_near])


@pytest.mark.parametrize("name", detectors.OF_TRAINING)
def test_a_training_row_does_not_find_itself(name):
    train = np.random.default_rng(0).normal(size=(60, 3))
    scores = detectors.OF_TRAINING[name](train)
    assert scores.shape == (60,)
    if name == "local outlier factor":  # the densities of the neighbours know the row
        return
    for i in (0, 7, 59):
        others = detectors.DETECTORS[name](np.delete(train, i, axis=0), 0)
        np.testing.assert_allclose(scores[i], others(train[i : i + 1])[0])


def test_distances_densities_and_tails_are_those_of_their_definition():
    rng = np.random.default_rng(0)
    train, x = rng.exponential(size=(60, 2)) * [1, -1], rng.normal(size=(9, 2)) * [3, -3]
    distance = np.linalg.norm(x[:, None] - train, axis=2)
    for k in (1, 5):
        found = detectors.neighbours(k)(train, 0)(x)
        np.testing.assert_allclose(found, np.sort(distance, axis=1)[:, k - 1])
    kernel = -np.log(np.exp(-(distance**2) / (2 * 0.2**2)).sum(axis=1))
    np.testing.assert_allclose(detectors.kernel_density(train, 0)(x), kernel, rtol=1e-6)
    left = np.array([[(train[:, j] <= v).sum() for j, v in enumerate(row)] for row in x])
    right = np.array([[(train[:, j] >= v).sum() for j, v in enumerate(row)] for row in x])
    tails = [-np.log(np.maximum(count, 1) / 61) for count in (left, right)]
    tails.append(np.where(stats.skew(train) < 0, *tails))
    assert (tails[2].sum(axis=1) > np.maximum(*(t.sum(axis=1) for t in tails[:2]))).any()
    expected = np.max([tail.sum(axis=1) for tail in tails], axis=0)
    np.testing.assert_allclose(detectors.ecod(train, 0)(x), expected)
    inverse = np.linalg.inv(np.cov(train.T))
    d = x - train.mean(axis=0)
    np.testing.assert_allclose(
        detectors.mahalanobis(train, 0)(x), ((d @ inverse) * d).sum(axis=1), rtol=1e-4
    )
