"""Models of own data: class names, units of the data, and what is refused before training."""

import json

import numpy as np
import pytest
import torch

from ebm_dist import models
from ebm_dist.cli import plan
from ebm_dist.config import module_of
from ebm_dist.data import prepare, shards
from ebm_dist.datasets import Arrays, Standardisation
from ebm_dist.errors import ConfigError, DataError, RequestError
from ebm_dist.models import requests
from ebm_dist.registry import card
from ebm_dist.report import figures
from tests import helpers
from tests.helpers import Silent

RNG = np.random.default_rng(0)
RBM = {
    "energy": {"name": "rbm", "num_hidden": 8},
    "sampler": {"name": "gibbs"},
    "objective": {
        "name": "contrastive_divergence",
        "energy_penalty": 0.0,
        "data_noise": 0.0,
    },
}


def prepared(folder, keys=None, **content):
    """Settings and folder of a data set of arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "x.npz", **content)
    dataset = {"name": "arrays", "path": str(folder / "x.npz"), **(keys or {})}
    params = helpers.params(dataset=dataset)
    shards.write(folder / "dataset", "arrays", module_of(params.dataset).load(params.dataset))
    return dataset


def trained(folder, dataset, **sections):
    params = helpers.params(dataset=dataset, **sections)
    helpers.build(params, folder / "dataset").fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", params, folder / "dataset")
    return models.load(folder / "model")


def strict_json(path):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def from_one(tmp_path_factory):
    """A conditional model of labels 1 to 4."""
    folder = tmp_path_factory.mktemp("from_one")
    y = RNG.integers(1, 5, 300)
    x = (RNG.integers(0, 60, (300, 8, 8)) + 40 * y[:, None, None]).astype(np.uint8)
    dataset = prepared(folder, images=x, labels=y)
    return folder, trained(folder, dataset, objective={"conditional": True, "label_temperature": 1})


def test_labels_from_1_give_finite_energies_and_names(from_one):
    folder, model = from_one
    card_of_model = strict_json(folder / "model/model.json")
    assert card_of_model["num_classes"] == 4 == len(card_of_model["class_energies"]["mean"])
    assert model.class_names == ("1", "2", "3", "4")
    x, _ = shards.read_split(shards.read_index(folder / "dataset"), "test")
    assert model.energies(x).isfinite().all() and set(model.likeliest(x).tolist()) <= {0, 1, 2, 3}
    assert np.isfinite(requests.answer(model, x.numpy())).all()


def test_answers_about_classes_have_their_names(from_one):
    _, model = from_one
    names = ("1", "2", "3", "4")
    x = np.zeros((6, 1, 8, 8))
    assert requests.class_names(model, 6, {"task": "classify"}) == names
    assert requests.answer(model, x, {"task": "classify"}).shape == (6, 4)
    assert requests.class_names(model, 6, {"task": "sample"}) == (*names, "1", "2")
    assert requests.class_names(model, 2, {"task": "complete", "label": 2}) == ("3", "3")
    assert requests.class_names(model, 6) == ()
    with pytest.raises(RequestError, match=r"label must be below 4.*classes 0: 1, 1: 2"):
        requests.answer(model, x, {"task": "sample", "label": 4})


def test_captions_name_the_classes(from_one, table):
    assert from_one[1].classes_caption == "; classes 1, 2, 3, 4 in turn"
    assert table[0].classes_caption == ""


def test_a_name_of_a_class_is_no_formula():
    names = ["$a_$", "b", r"$\x$"]
    cells, points = np.eye(3), RNG.random((4, 2))
    assert figures.image_grid(RNG.random((2, 1, 4, 4)), 2, f"classes {', '.join(names)}")
    assert figures.matrix(cells, names, ["1", "2", "3"], "classes", "accuracy")
    assert figures.regions({names[0]: cells}, {names[2]: points}, 1.0, "title")


def test_the_card_names_the_classes(from_one):
    _, model = from_one
    assert "4 classes. Classes: 1, 2, 3, 4." in card._data(model.card)


def test_values_outside_the_bounds_are_refused(from_one):
    _, model = from_one
    x = RNG.random((3, 1, 8, 8))
    for task in ("energy", "classify", "complete"):
        with pytest.raises(RequestError, match=r"bounds of the data, 0 to 1; found .* to 2\d"):
            requests.answer(model, 255 * x, {"task": task, "num_steps": 1})
        requests.answer(model, x, {"task": task, "num_steps": 1})
    assert requests.answer(model, 255 * x, {"task": "sample", "num_steps": 1}).max() <= 1
    assert np.array_equal(requests.answer(model, x), requests.answer(model, x.astype(np.float32)))
    for bad in ([["a"]], np.zeros((2, 1, 8, 8)).astype(str), np.full((2, 1, 8, 8), None)):
        with pytest.raises(RequestError, match="not an array of numbers"):
            requests.answer(model, bad)
    with pytest.raises(RequestError, match="beyond float32"):
        requests.answer(model, np.full((2, 1, 8, 8), 1e300))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A model of a table with columns in different units, and the table."""
    folder = tmp_path_factory.mktemp("table")
    x = np.c_[RNG.normal(13, 1, 400), RNG.normal(1e7, 3, 400), RNG.normal(1e5, 2e4, 400)]
    dataset = prepared(folder, images=x)
    return trained(folder, dataset), x


def test_requests_are_in_the_units_of_the_data(table):
    model, x = table
    energies = requests.answer(model, x)
    standardised = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    assert np.allclose(energies, model.energies(torch.from_numpy(standardised)).numpy(), atol=0.2)
    assert energies.std() > 0
    samples = requests.answer(model, x[:200], {"task": "sample", "num_steps": 5})
    means = samples.mean(axis=0, dtype=np.float64)
    assert np.abs((means - x.mean(0)) / x.std(0)).max() < 0.5
    assert np.allclose(requests.answer(model, samples), model.energies(model.to_model(samples)))
    assert abs(float(model.chains.mean())) < 3  # the folder has standardised chains
    assert "in the units of the data" in card._data(model.card)


def test_comparison_sets_are_in_the_units_of_the_data(tmp_path):
    """The stage applies the standardisation of the data, not that of each set."""
    raw = RNG.normal(50, 4, (80, 3))
    np.savez(tmp_path / "data.npz", images=raw)
    np.savez(tmp_path / "far.npz", images=raw + 400)
    keys = {"name": "arrays", "path": str(tmp_path / "data.npz")}
    far = {"name": "arrays", "path": str(tmp_path / "far.npz")}
    params = helpers.params(dataset=keys, comparison_datasets={"far": far})
    data, other = dict(prepare.load_all(params)).values()
    assert isinstance(data.standardisation, Standardisation)
    assert other.standardisation is data.standardisation
    index = shards.write(tmp_path / "far", "arrays", other)
    assert float(shards.read_split(index, "train")[0].mean()) == pytest.approx(100, rel=0.2)
    with pytest.raises(DataError, match=r"far.npz: samples of shape \(2,\).*\(3,\)"):
        shards.write(
            tmp_path / "far", "arrays", other._replace(splits={"test": Arrays(raw[:, :2], None)})
        )


@pytest.mark.parametrize("keys", [{}, {"bounds": [0.0, 2.0]}, {"standardise": False}])
def test_a_binary_model_refuses_other_data(tmp_path, keys):
    dataset = prepared(tmp_path, keys, images=RNG.random((60, 12)))
    with pytest.raises(ConfigError, match=r"binary variables needs .*set dataset.bounds: \[0, 1\]"):
        helpers.build(helpers.params(dataset=dataset, **RBM), tmp_path / "dataset")
    binarised = helpers.params(
        dataset=dataset, objective={"binarise": True, "data_noise": 0.0, "energy_penalty": 0.0}
    )
    with pytest.raises(ConfigError, match="binary variables"):
        helpers.build(binarised, tmp_path / "dataset")


def test_a_binary_model_of_bytes_of_0_and_1(tmp_path):
    x = (RNG.random((200, 4, 4)) < 0.3).astype(np.uint8)
    dataset = prepared(tmp_path, images=x)
    model = trained(tmp_path, dataset, **RBM)
    assert model.energy.visible_offset.mean() == pytest.approx(0.3, abs=0.05)
    floats = prepared(tmp_path / "f", {"bounds": [0.0, 1.0]}, images=x.astype(float))
    helpers.build(helpers.params(dataset=floats, **RBM), tmp_path / "f/dataset")


@pytest.mark.parametrize("is_absent", [False, True], ids=["none", "absent"])
def test_a_conditional_model_needs_samples_of_each_class(tmp_path, is_absent, digits_data):
    dataset = prepared(tmp_path, images=RNG.integers(0, 256, (60, 4, 4), np.uint8))
    folder = tmp_path / "dataset"
    if is_absent:  # as in the published tables of anomalies: a class that only the test split has
        index = json.loads((digits_data / "index.json").read_text())
        index["statistics"]["train"]["class_counts"][9] = 0
        folder = tmp_path / "absent"
        folder.mkdir()
        for file in digits_data.glob("*.tar"):
            (folder / file.name).symlink_to(file)
        (folder / "index.json").write_text(json.dumps(index))
    params = helpers.params(dataset=dataset, objective={"conditional": True})
    with pytest.raises(ConfigError, match=r"training samples of each class, but .* (none of 9|no labels)"):  # fmt: skip
        helpers.build(params, folder)


def test_a_conditional_model_refuses_classes_that_only_the_test_part_has(tmp_path):
    x, y = RNG.integers(0, 256, (60, 4, 4), np.uint8), np.arange(60) % 2
    parts = {"train_images": x, "train_labels": y, "test_images": x[:4], "test_labels": y[:4] + 1}
    dataset = prepared(tmp_path, **parts)
    helpers.build(helpers.params(dataset=dataset), tmp_path / "dataset")
    with pytest.raises(ConfigError, match="arrays has none of 2"):
        helpers.build(
            helpers.params(dataset=dataset, objective={"conditional": True}), tmp_path / "dataset"
        )


@pytest.mark.parametrize(
    "energy",
    [
        {"name": "convnet"},
        {"name": "resnet"},
        {"name": "classifier", "channels": [8]},
        {"name": "band_power", "network": {"name": "mlp"}},
    ],
    ids=lambda energy: energy["name"],
)
def test_networks_for_images_refuse_tables(tmp_path, energy):
    dataset = prepared(tmp_path, images=RNG.normal(size=(60, 5)))
    params = helpers.params(dataset=dataset, energy=energy)
    with pytest.raises(ConfigError, match=r"needs images, found samples of shape \(5,\); set energy.name: mlp"):  # fmt: skip
        list(plan.lines(params, tmp_path))


def test_resnet_says_the_smallest_image_that_it_takes(tmp_path):
    params = helpers.params(energy={"name": "resnet"})
    build = module_of(params.energy).build
    for shape in ((1, 7, 8), (3, 1, 1), (1, 8, 5)):
        with pytest.raises(ConfigError, match="at least 8x8 pixels"):
            build(params.energy, shape=shape, num_classes=0)
    assert build(params.energy, shape=(1, 8, 9), num_classes=0)(torch.zeros(2, 1, 8, 9)).shape == (2,)  # fmt: skip


@pytest.mark.parametrize("shape", [(60, 8, 8, 3), (60, 8, 8), (60, 3, 8, 8)])
def test_networks_for_images_take_images_of_floats(tmp_path, shape):
    dataset = prepared(tmp_path, images=RNG.random(shape))
    channels = 3 if 3 in shape else 1
    params = helpers.params(dataset=dataset, energy={"name": "convnet"})
    convolution = helpers.build(params, tmp_path / "dataset").objective.players["energy"]
    assert next(iter(convolution.convolutions)).in_channels == channels
