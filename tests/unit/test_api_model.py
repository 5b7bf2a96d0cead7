"""Models from Python: the kind that comes in goes out, with the bits of evaluation and serving."""

import numpy as np
import pytest
import torch

import ebm_dist as ebm
from ebm_dist.errors import ConfigError, DataError, RequestError
from ebm_dist.models import TrainedModel, requests
from tests import helpers

SETTINGS = {name: section for name, section in helpers.values().items() if name != "dataset"}
RNG = np.random.default_rng(0)
TABLE = RNG.normal(50, 20, (96, 3)) * [1, 10, 100]
IMAGES = RNG.integers(0, 256, (96, 4, 4), dtype=np.uint8)
LABELS = np.arange(96) % 3


@pytest.fixture(scope="module")
def of_table():
    return ebm.train(SETTINGS, TABLE)


@pytest.fixture(scope="module")
def of_images():
    """A model of three classes that has learnt p(y | x)."""
    objective = {**SETTINGS["objective"], "conditional": True, "label_temperature": 1.0}
    return ebm.train(SETTINGS | {"objective": objective}, (IMAGES, LABELS))


def inputs(model):
    """Arrays in the units of the data, and the same samples as tensors."""
    x = TABLE[:9] if model.bounds is None else (IMAGES[:9, None] / 255)
    return x, model.to_model(x)


@pytest.fixture(params=["of_table", "of_images"])
def model(request):
    return request.getfixturevalue(request.param)


def test_arrays_get_what_serving_answers_and_tensors_what_evaluation_computes(model):
    array, tensor = inputs(model)
    assert np.array_equal(model.energies(array), requests.answer(model, array))
    assert torch.equal(model.energies(tensor), TrainedModel(*model).energies(tensor))
    assert np.array_equal(model.energies(array), model.energies(tensor).numpy())
    drawn = requests.answer(model, array, {"task": "sample", "num_steps": 5, "seed": 2})
    assert np.array_equal(model.sample(9, num_steps=5, seed=2), drawn)


def test_scores_are_derivatives_in_the_units_of_x(model):
    array, tensor = inputs(model)
    x = tensor.double().requires_grad_()
    energies = model.energies(x, keep_graph=True)
    (gradient,) = torch.autograd.grad(energies.sum(), x)
    torch.testing.assert_close(energies.detach(), model.energies(tensor))
    torch.testing.assert_close(model.scores(tensor), -gradient.float())
    h = 1e-3 * array.std(axis=0).mean() * (np.arange(array[0].size) == 2).reshape(array[0].shape)
    h *= -1 if model.bounds else 1  # inwards
    array = array * 0.9 + 0.05 if model.bounds else array
    slope = (model.energies(array + h) - model.energies(array - h)) / (2 * h.sum())
    index = (slice(None), *np.unravel_index(2, array[0].shape))
    assert np.allclose(-model.scores(array)[index], slope, atol=0.05 * abs(slope).max())
    assert not model.energies(x).requires_grad
    with pytest.raises(DataError, match="pass a tensor"):
        model.energies(array, keep_graph=True)


def test_images_are_classified_and_completed(of_images):
    array, tensor = inputs(of_images)
    for task, ours, options in (
        ("classify", of_images.classify, {}),
        ("complete", of_images.complete, {"num_steps": 3, "seed": 4, "hidden_rows": 1}),
        ("complete", of_images.complete, {"num_steps": 3, "label": 2}),
    ):
        expected = requests.answer(of_images, array, {"task": task, **options})
        assert np.array_equal(ours(array, **options), expected)
        assert torch.equal(ours(tensor, **options), torch.from_numpy(expected))
    assert len(of_images.sample(2, num_steps=1, label=1)) == 2
    assert torch.equal(of_images.complete(tensor, num_steps=1)[:, :, :2], tensor[:, :, :2])


def test_a_model_says_what_it_is_and_is_a_trained_model(of_table, of_images):
    assert repr(of_table) == "Model(dataset='arrays', shape=(3,), energy='mlp', num_steps=12)"
    assert isinstance(of_images, TrainedModel) and of_images.bounds == (0.0, 1.0)


def test_the_energy_of_a_model_can_be_sampled(of_table):
    draws = ebm.sample(of_table.energy, of_table.chains[:5], num_samples=3, num_warmup=4)
    assert of_table.from_model(draws.x[-1]).shape == (5, 3)


REFUSED = {
    "shape": (lambda t, i: t.energies(TABLE[0]), DataError, r"shape \(n, 3\), .* found \(3,\)"),
    "other shape": (lambda t, i: i.scores(torch.zeros(2, 3)), DataError, r"\(n, 1, 4, 4\)"),
    "none": (lambda t, i: t.energies(TABLE[:0]), DataError, "n at least 1"),
    "words": (lambda t, i: t.energies(np.array([["a", "b", "c"]])), DataError, "expected numbers"),
    "complex": (lambda t, i: t.energies(torch.zeros(1, 3) * 1j), DataError, "expected numbers"),
    "NaN": (lambda t, i: t.scores(TABLE * np.nan), DataError, "NaN"),
    "bytes": (lambda t, i: i.classify(IMAGES[:2, None]), DataError, "0 to 1; found .*x / 255"),
    "no p(y | x)": (lambda t, i: t.classify(TABLE), DataError, "learnt no p"),
    "no classes": (lambda t, i: t.sample(2, label=0), DataError, "leave it out"),
    "no such class": (lambda t, i: i.sample(2, label=3), RequestError, "label must be below 3"),
    "no samples": (lambda t, i: t.sample(0), ConfigError, "num_samples"),
    "no steps": (lambda t, i: t.sample(1, num_steps=0), ConfigError, "num_steps"),
    "no images": (lambda t, i: t.complete(TABLE), RequestError, "only images"),
    "all rows": (lambda t, i: i.complete(torch.zeros(1, 1, 4, 4), hidden_rows=4), RequestError, "from 1 to 3"),
    "overflow": (lambda t, i: t.energies(TABLE * 1e38), DataError, "float32|overflow"),
    "no folder": (lambda t, i: ebm.load("/nowhere"), DataError, "not an exported model"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_message(what, of_table, of_images):
    call, error, text = REFUSED[what]
    with pytest.raises(error, match=text):
        call(of_table, of_images)
