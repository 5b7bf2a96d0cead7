"""ebm_dist.train: the bits of the pipeline, from Python, without Ray."""

import numpy as np
import pytest
import torch

import ebm_dist as ebm
from ebm_dist import config
from ebm_dist.api import training
from ebm_dist.datasets import arrays, digits
from ebm_dist.errors import CheckpointError, ConfigError, DataError, DivergedError
from tests import helpers
from tests.helpers import ROOT, Silent

SETTINGS = {name: section for name, section in helpers.values().items() if name != "dataset"}
SETTINGS |= {"train": {"num_steps": 4, "batch_size": 16, "num_shards": 1, "log_every": 1}}
RNG = np.random.default_rng(0)


def weights(folder):
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("energy", "chains")]


@pytest.fixture(scope="module")
def by_pipeline(digits_data, tmp_path_factory):
    """Weights and chains of the trainer and export that the stages call."""
    folder = tmp_path_factory.mktemp("pipeline")
    params = helpers.params()
    helpers.build(params, digits_data).fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", params, digits_data)
    return weights(folder / "model")


def test_the_bits_are_those_of_the_pipeline(digits_data, tmp_path, by_pipeline):
    model = ebm.train(helpers.values(), digits_data, folder=tmp_path / "shards")
    assert weights(tmp_path / "shards") == by_pipeline
    loaded = ebm.load(tmp_path / "shards")
    assert torch.equal(loaded.energies(model.chains), model.energies(model.chains))
    ebm.train(helpers.params(), digits.load(digits.Config()), folder=tmp_path / "arrays")
    assert weights(tmp_path / "arrays") == by_pipeline


def test_threads_random_state_and_gradient_mode_are_left_as_they_were(
    digits_data, tmp_path, by_pipeline
):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    try:
        with torch.no_grad():
            ebm.train(helpers.values(), digits_data.parent, folder=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights(tmp_path) == by_pipeline


def test_an_interrupted_training_resumes_in_its_folder(digits_data, tmp_path, by_pipeline):
    rows = []

    def interrupt(row):
        if row["step"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ebm.train(helpers.values(), digits_data, folder=tmp_path, progress=interrupt)
    ebm.train(helpers.values(), digits_data, folder=tmp_path, progress=rows.append)
    assert [row["step"] for row in rows] == [10, 12]  # after the checkpoint at step 8
    assert weights(tmp_path) == by_pipeline
    ebm.train(helpers.values(), digits_data, folder=tmp_path, progress=rows.append)
    assert len(rows) == 2 and weights(tmp_path) == by_pipeline
    with pytest.raises(CheckpointError, match="has a model of other settings"):
        ebm.train(helpers.values(), digits_data, folder=tmp_path, seed=4)
    (tmp_path / "model.json").unlink()
    with pytest.raises(CheckpointError, match="settings, data or code differ"):
        ebm.train(helpers.values(), digits_data, folder=tmp_path, seed=4)


def test_arrays_are_treated_as_a_file_of_them(tmp_path):
    x = RNG.normal(5, 3, (200, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=x)
    of_file = arrays.load(
        arrays.Config(path=str(tmp_path / "x.npz"), val_fraction=0.0, test_fraction=0.0)
    )
    for name, data in {"numpy": x, "torch": torch.from_numpy(x)}.items():
        model = ebm.train(SETTINGS, data, folder=tmp_path / name)
        assert model.card["source"] == model.params.dataset.path == "arrays in memory"
        np.testing.assert_array_equal(
            model.card["standardisation"]["mean"], of_file.standardisation.mean
        )
    assert weights(tmp_path / "numpy") == weights(tmp_path / "torch")
    params = config.from_values(helpers.values(), tmp_path)  # of digits
    assert ebm.train(params, x, seed=5).params.dataset.path == "arrays in memory"


def test_labels_make_a_conditional_model_with_names():
    x = RNG.integers(0, 255, (80, 8, 8), dtype=np.uint8)
    y = np.array(["cat", "dog"])[RNG.integers(0, 2, 80)]
    settings = SETTINGS | {"objective": {**SETTINGS["objective"], "conditional": True}}
    model = ebm.train(settings, (x, y))
    assert model.class_names == ("cat", "dog") and model.card["shape"] == [1, 8, 8]
    assert model.bounds == (0.0, 1.0)


def test_settings_come_from_a_file_a_recipe_or_a_dict(tmp_path):
    assert training._settings("mnist", 3) == config.load(
        ROOT / "pipelines/recipes/mnist.yaml", seed=3
    )
    assert training._settings(ROOT / "params.yaml", None) == config.load(ROOT / "params.yaml")
    params = helpers.params()
    assert training._settings(params, None) is params
    assert training._settings(params, 9).seed == 9
    assert training._settings(SETTINGS, 9).train.num_shards == 1  # the default is 2 workers


REFUSED = {
    "a recipe that is nearly there": (lambda: ebm.train("mnits", RNG.random((9, 2))), ConfigError, "did you mean 'mnist'"),
    "a misspelt key": (lambda: ebm.train(SETTINGS | {"sampler": {"name": "langevin", "stepsize": 1}}, RNG.random((9, 2))), ConfigError, "did you mean 'step_size'"),
    "no energy": (lambda: ebm.train({"sampler": {"name": "mala"}}, RNG.random((9, 2))), ConfigError, "energy: a name is needed"),
    "ddp": (lambda: ebm.train(SETTINGS | {"train": {**SETTINGS["train"], "reduce": "ddp"}}, RNG.random((64, 2))), ConfigError, "set train.reduce: ordered"),
    "no GPU": (lambda: ebm.train(SETTINGS | {"cluster": {"use_gpu": True}}, RNG.random((64, 2))), ConfigError, "torch sees no GPU"),
    "NaN": (lambda: ebm.train(SETTINGS, np.full((50, 2), np.nan)), DataError, "^arrays in memory: has NaN"),
    "integers": (lambda: ebm.train(SETTINGS, np.zeros((50, 2), np.int64)), DataError, "^arrays in memory: expected samples"),
    "words": (lambda: ebm.train(SETTINGS, [["a", None]]), DataError, "an array of numbers"),
    "a file": (lambda: ebm.train(SETTINGS, __file__), DataError, "is a file, not a folder of prepared data"),
    "masked": (lambda: ebm.train(SETTINGS, np.ma.masked_less(RNG.random((50, 2)), 0.5)), DataError, "masked values"),
    "ragged": (lambda: ebm.train(SETTINGS, [[1.0], [1.0, 2.0]]), DataError, "arrays in memory"),
    "bfloat16": (lambda: ebm.train(SETTINGS, torch.zeros(50, 2, dtype=torch.bfloat16)), DataError, "float32"),
    "other labels": (lambda: ebm.train(SETTINGS, (np.zeros((50, 2)), np.zeros(49))), DataError, "labels must be 50 integers"),
    "three arrays": (lambda: ebm.train(SETTINGS, (RNG.random((9, 2)),) * 3), DataError, "tuple of 3"),
    "a store": (lambda: ebm.train(SETTINGS, RNG.random((64, 2)), folder="http://host/model"), DataError, "not supported"),
    "no shards": (lambda: ebm.train(SETTINGS, "/nowhere"), DataError, "index.json"),
    "diverged": (lambda: ebm.train(SETTINGS | {"train": {**SETTINGS["train"], "max_energy": 1e-9}}, RNG.random((64, 2))), DivergedError, "no weight was changed"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_message(what, monkeypatch):
    call, error, text = REFUSED[what]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=text):
        call()


def test_numbers_of_numpy_are_numbers(tmp_path):
    x = RNG.normal(size=(40, 3))
    small = SETTINGS | {"energy": {"name": "mlp", "hidden": [8]}}
    of_numpy = SETTINGS | {"energy": {"name": "mlp", "hidden": np.array([8])}}
    ebm.train(small, x, folder=tmp_path / "a", seed=3)
    ebm.train(of_numpy, x, folder=tmp_path / "b", seed=np.int64(3))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"seed: expected an integer, found 1\.5"):
        ebm.train(small, x, seed=1.5)


def test_the_default_type_and_inference_mode_change_nothing(tmp_path):
    x = RNG.normal(size=(40, 3))
    ebm.train(SETTINGS, x, folder=tmp_path / "a")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            model = ebm.train(SETTINGS, x, folder=tmp_path / "b")
            drawn, scores = model.sample(2, num_steps=2), model.scores(torch.zeros(2, 3))
            energies = ebm.load(tmp_path / "b").energies(x)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    model = ebm.load(tmp_path / "a")
    np.testing.assert_array_equal(drawn, model.sample(2, num_steps=2))
    assert torch.equal(scores, model.scores(torch.zeros(2, 3)))
    np.testing.assert_array_equal(energies, model.energies(x))
