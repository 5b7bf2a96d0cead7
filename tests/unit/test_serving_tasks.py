"""What a served model answers, and what it refuses."""

import numpy as np
import pytest
import torch

from ebm_dist import models
from ebm_dist.errors import RequestError
from ebm_dist.models import requests
from tests import helpers
from tests.helpers import Silent


def exported(folder, data, **objective):
    chosen = helpers.params(objective=objective)
    helpers.build(chosen, data).fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", chosen, data)
    return models.load(folder / "model")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, digits_data):
    return exported(tmp_path_factory.mktemp("plain"), digits_data)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory, digits_data):
    return exported(
        tmp_path_factory.mktemp("conditional"), digits_data, conditional=True, label_temperature=0.5
    )


X = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)


def test_energies_are_those_of_the_model(plain):
    assert np.array_equal(requests.answer(plain, X), plain.energies(torch.from_numpy(X)).numpy())
    assert np.array_equal(
        requests.answer(plain, X.tolist(), {"task": "energy"}), requests.answer(plain, X)
    )


def test_samples_are_chains_that_a_seed_names_and_lower_the_energy(plain):
    a, b, c = (
        requests.answer(plain, X, {"task": "sample", "num_steps": 30, "seed": seed})
        for seed in (0, 0, 1)
    )
    assert a.shape == X.shape and np.array_equal(a, b) and not np.array_equal(a, c)
    start = requests.answer(plain, X, {"task": "sample", "num_steps": 1})
    assert requests.answer(plain, a).mean() < requests.answer(plain, start).mean()
    assert a.min() >= 0 and a.max() <= 1


def test_completions_keep_what_is_known(plain):
    for rows, known in ((0, 4), (3, 5)):
        found = requests.answer(plain, X, {"task": "complete", "num_steps": 5, "hidden_rows": rows})
        assert (
            np.array_equal(found[:, :, :known], X[:, :, :known])
            and not np.isclose(found[:, :, known:], X[:, :, known:]).all()
        )
    given = X.copy()
    given[:, :, 4:] = 0  # what is hidden does not matter
    options = {"task": "complete", "num_steps": 5}
    assert np.array_equal(
        requests.answer(plain, given, options), requests.answer(plain, X, options)
    )


def test_a_class_can_be_asked_for_and_is_recognised(conditional):
    options = {"task": "sample", "num_steps": 5}
    each, sevens, other = (
        requests.answer(conditional, X, options | {"label": label}) for label in (-1, 7, 3)
    )
    assert not np.array_equal(sevens, other) and not np.array_equal(each, sevens)
    p = requests.answer(conditional, X, {"task": "classify"})
    assert p.shape == (4, 10) and np.allclose(p.sum(axis=1), 1)
    with pytest.raises(
        RequestError, match="label must be below 10, or -1 for each in turn; found 10"
    ):
        requests.answer(conditional, X, options | {"label": 10})


@pytest.mark.parametrize(
    ("samples", "options", "expected"),
    [
        (X, {"task": "sampel"}, "unknown task 'sampel'; use energy, classify, sample, complete"),
        (X, {"steps": 3}, "unknown parameter 'steps'; use task, num_steps"),
        (X, {"task": "sample", "num_steps": 0}, "num_steps must be from 1 to 10000, found 0"),
        (X, {"task": "sample", "num_steps": "3"}, "num_steps must be of type int, found '3'"),
        (X, {"task": 3}, "task must be of type str, found 3"),
        (X, {"task": "complete", "hidden_rows": 8}, "hidden_rows must be from 1 to 7, found 8"),
        (X, {"task": "classify"}, r"has learnt no p\(y \| x\)"),
        (X[:, :, :4], {}, r"expected samples of shape \(n, 1, 8, 8\), n at least 1, found \(4, 1, 4, 8\)"),
        (np.full_like(X, np.nan), {}, "must be finite"),
        ([["a"]], {}, "not an array of numbers"),
        (np.zeros((requests.MAX_SAMPLES + 1, 1, 8, 8), np.float32), {"task": "sample"}, "at most 1000 samples per request, found 1001"),
    ],
)  # fmt: skip
def test_what_is_refused(plain, samples, options, expected):
    with pytest.raises(RequestError, match=expected):
        requests.answer(plain, samples, options)


def test_only_images_are_completed(plain):
    flat = plain._replace(card=plain.card | {"shape": [64]})
    with pytest.raises(RequestError, match="only images can be completed"):
        requests.answer(flat, np.zeros((2, 64)), {"task": "complete"})
