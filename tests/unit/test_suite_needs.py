"""Each suite on each kind of data: finite metrics, or one message before a training."""

import importlib
import json
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ebm_dist import config, evaluation, models
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import chains, ood
from ebm_dist.metrics import features, ood_images
from tests.helpers import Silent, build, export, params

NUM_CLASSES, SIZES = 3, {"train": 96, "val": 48, "test": 48}
TINY = {
    "annealed_likelihood": {"num_betas": 30, "num_chains": 20, "burn_in": 2},
    "anomaly": {"supervised_steps": 2},
    "chains": {"num_chains": 8, "num_draws": 8, "thin": 1},
    "classification": {"supervised_steps": 2},
    "completion": {"num_images": 8, "num_completions": 2, "num_steps": 2},
    "composition": {"samples_per_pair": 2, "num_steps": 2},
    "continual": {},
    "cross_class": {"num_samples": 9, "num_rounds": 2, "steps_per_round": 2},
    "density": {"num_samples": 20, "num_steps": 2, "grid": 10},
    "generated": {"num_samples": 16},
    "histogram": {},
    "likelihood": {"num_betas": 100, "num_chains": 100, "burn_in": 2, "max_exact_hidden": 8},
    "long_run": {"num_steps": 10, "num_chains": 8},
    "modes": {"samples_per_mode": 2},
    "ood": {"num_bootstrap": 40},
    "samples": {"num_samples": 16, "num_steps": 4, "num_frames": 2},
}
CONDITIONAL = {"composition", "cross_class", "continual"}


class Kind(NamedTuple):
    shape: tuple[int, ...] = (1, 8, 8)
    dtype: type = np.uint8
    low: float = 0
    high: float = 256
    scale: float = 255.0
    bounds: tuple[float, float] | None = (0.0, 1.0)
    has_labels: bool = True
    splits: tuple[str, ...] = ("train", "val", "test")


def floats(**changes):
    return Kind(dtype=np.float32, scale=1.0, bounds=None)._replace(**changes)


KINDS = {
    "plane": floats(shape=(2,), low=-2, high=2),
    "one column": floats(shape=(1,), low=-2, high=2),
    "wide table": floats(shape=(120,), low=-2, high=2),
    "byte images": Kind(),
    "binary images": Kind(high=2, scale=1.0),
    "images of six channels": Kind(shape=(6, 8, 8)),
    "floats in [0, 1]": floats(low=0.05, high=0.45, bounds=(0.0, 1.0)),
    "floats without bounds": floats(low=-900, high=70000),
    "without labels": Kind(has_labels=False),
    "no val": Kind(splits=("train", "test")),
    "no test": Kind(splits=("train", "val")),
    "only train": Kind(splits=("train",)),
    "table without val": floats(shape=(2,), low=-2, high=2, splits=("train", "test")),
}


def dataset(kind, sizes=SIZES):
    rng = np.random.default_rng(0)

    def arrays(count):
        x = rng.uniform(kind.low, kind.high, (count, *kind.shape)).astype(kind.dtype)
        return Arrays(x, np.arange(count) % NUM_CLASSES if kind.has_labels else None)

    splits = {split: arrays(sizes[split]) for split in kind.splits}
    classes = NUM_CLASSES if kind.has_labels else 0
    return Dataset(splits, kind.scale, kind.bounds, classes, "test", is_official=False)


def settings(suite, kind):
    """Return parameters for a suite, of an energy that it may be meant for."""
    sections = {"evaluation": {suite: TINY[suite]}, "energy": {"name": "mlp", "hidden": [8]}}
    sections["train"] = {"num_steps": 3, "batch_size": 8, "log_every": 1, "checkpoint_every": 3}
    sections["replay"] = {"capacity": 100}
    if suite in CONDITIONAL:
        sections["objective"] = {"conditional": True}
    if suite == "generated":
        sections["objective"] = {
            "name": "meg",
            "generator": {"name": "mlp", "hidden": [8]},
            "num_energy_steps": 1,
        }
    if suite == "continual":
        sections["train"] |= {"num_tasks": NUM_CLASSES}
    if suite == "annealed_likelihood":
        sections["sampler"] = {"name": "dmala", "num_steps": 2}
    if suite == "likelihood":
        sections["energy"] = {"name": "rbm", "num_hidden": 4}
        sections["sampler"] = {"name": "gibbs"}
        sections["objective"] = {"name": "contrastive_divergence"}
    return params(**sections)


def report_of(suite, kind, folder):
    """Check a suite on prepared data, train for three steps, evaluate, and return the metrics."""
    index = shards.write(folder / "dataset", "test", dataset(kind))
    settled = settings(suite, kind)
    evaluation.check(settled, index, {})
    build(settled, folder / "dataset").fit(folder / "run", Silent())
    export(folder / "run", folder / "model", settled, folder / "dataset")
    classifier = None
    if features.is_measurable(index):
        features.train(features.Config(num_steps=2), index, folder / "classifier")
        classifier = features.load(folder / "classifier")
    subject = evaluation.Subject(models.load(folder / "model"), index, {}, classifier)
    plugin = settled.evaluation[suite]
    return module_of(plugin).evaluate(plugin, subject)


IMAGES = [kind for kind in KINDS if len(KINDS[kind].shape) == 3]
TESTED = [kind for kind in KINDS if "test" in KINDS[kind].splits]
LABELLED = [kind for kind in TESTED if KINDS[kind].has_labels]
FITS = {
    *(("chains", kind) for kind in KINDS),
    *((suite, kind) for suite in ("samples", "histogram", "ood", "long_run") for kind in TESTED),
    *(("anomaly", kind) for kind in LABELLED),
    *(("continual", kind) for kind in LABELLED),
    *(("completion", kind) for kind in IMAGES if kind in TESTED),
    *(
        (s, kind)
        for s in ("composition", "cross_class", "generated")
        for kind in IMAGES
        if kind in LABELLED
    ),
    *(
        (suite, kind)
        for suite in ("likelihood", "annealed_likelihood")
        for kind in TESTED
        if KINDS[kind].bounds
    ),
}
QUICK = ("plane", "floats without bounds", "only train")


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
@pytest.mark.parametrize("suite", config.plugins("ebm_dist.evaluation"))
def test_a_suite_evaluates_the_data_or_is_refused_before_training(suite, kind, tmp_path):
    if (suite, kind) in FITS:
        report = report_of(suite, KINDS[kind], tmp_path)
        assert json.dumps(report.metrics, allow_nan=False) != "{}"
        return
    with pytest.raises(ConfigError, match=rf"evaluation\.{suite}: .*; "):
        report_of(suite, KINDS[kind], tmp_path)
    assert not (tmp_path / "run").exists(), "refused after the training"


def prepared(kind, folder, sizes=SIZES, x=None):
    whole = dataset(kind, sizes)
    if x is not None:
        whole = whole._replace(splits={"train": Arrays(x, None), "test": Arrays(x, None)})
    return shards.write(folder, "test", whole)


@pytest.mark.parametrize(
    ("suite", "kind", "comparison", "message"),
    [
        ("samples", Kind(splits=("train", "val")), None, "needs the test split"),
        ("ood", Kind(splits=("train", "val")), None, "needs the test split"),
        ("ood", floats(shape=(2,)), Kind(), r"\(2,\) with those of other, \(1, 8, 8\)"),
        ("histogram", floats(shape=(2,)), floats(shape=(3,)), "drop comparison_datasets.other"),
        ("histogram", Kind(), Kind(splits=("train",)), "test split of comparison set other"),
        ("completion", floats(shape=(2,)), None, "needs images"),
        ("composition", floats(shape=(2,)), None, "no labelled images"),
        ("cross_class", Kind(has_labels=False), None, "no labelled images"),
        ("continual", Kind(has_labels=False), None, "needs labels in the train split"),
        ("likelihood", floats(shape=(2,)), None, r"needs values in \[0, 1\]"),
        ("anomaly", Kind(has_labels=False), None, "needs labels in the test split"),
    ],
)
def test_the_message_says_what_is_missing(suite, kind, comparison, message, tmp_path):
    index = prepared(kind, tmp_path / "dataset")
    others = {"other": prepared(comparison, tmp_path / "other")} if comparison else {}
    with pytest.raises(ConfigError, match=f"evaluation.{suite}: .*{message}"):
        evaluation.check(settings(suite, kind), index, others)


def test_too_few_samples_and_settings_without_a_variance_are_refused(tmp_path):
    few = prepared(Kind(), tmp_path / "few", SIZES | {"test": 1})
    with pytest.raises(ConfigError, match="needs 2 samples in the test split of test, which has 1"):
        evaluation.check(settings("histogram", Kind()), few, {})
    whole = prepared(Kind(), tmp_path / "whole")
    with pytest.raises(ConfigError, match="num_completions: needs at least 2, for a variance"):
        params(evaluation={"completion": {"num_completions": 1}})
    unknown = params(evaluation={"ood": {"mean_of": ["uniform", "constnat"]}})
    with pytest.raises(ConfigError, match="no set constnat for mean_of; choose of uniform, const"):
        evaluation.check(unknown, whole, {})


def test_a_suite_of_generated_samples_needs_a_generator(tmp_path):
    plane = prepared(floats(shape=(2,)), tmp_path)
    chosen = params(dataset={"name": "toy2d"}, evaluation={"density": {}})
    with pytest.raises(ConfigError, match="needs a generator, and contrastive_divergence trains"):
        evaluation.check(chosen, plane, {})


def test_each_suite_states_its_needs():
    for suite in config.plugins("ebm_dist.evaluation"):
        assert callable(importlib.import_module(f"ebm_dist.evaluation.{suite}").check)


def test_synthetic_sets_keep_the_values_of_floats(tmp_path):
    """Rounding to multiples of 1 / scale made all of them zero."""
    kind = KINDS["floats in [0, 1]"]._replace(bounds=None)
    index = prepared(kind, tmp_path / "floats")
    real = shards.read_split(index, "test")[0]
    sets = ood_images.synthetic(real, index)
    assert tuple(sets) == ood_images.synthetic_names(index.shape)
    for x in sets.values():
        assert x.unique().numel() > 20
        assert real.min() <= x.min() and x.max() <= real.max()
    assert torch.equal(sets["shuffled"].flatten(1).sort().values, real.flatten(1).sort().values)
    others = {"other": prepared(kind._replace(low=0.5, high=0.9), tmp_path / "other")}
    (other,) = ood_images.others_like(index, others, 10).values()
    assert torch.equal(other, shards.read_split(others["other"], "test")[0][:10])


@pytest.mark.parametrize(("kind", "levels"), [(Kind(), 255), (KINDS["binary images"], 1)])
def test_synthetic_sets_have_the_grey_levels_of_integers(kind, levels, tmp_path):
    index = prepared(kind, tmp_path)
    for x in ood_images.synthetic(shards.read_split(index, "test")[0], index).values():
        assert torch.equal((x * levels).round() / levels, x)


def test_sizes_of_png_files_do_not_depend_on_the_unit_of_floats():
    x = torch.rand(4, 1, 8, 8)
    assert (ood._png_bytes(x * 1000 - 7, -7, 993) == ood._png_bytes(x, 0, 1)).all()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_chains_are_followed_in_the_directions_in_which_the_data_vary(rank, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((96, rank)) @ rng.standard_normal((rank, 6)) + 3).astype(np.float32)
    components = chains._principal_components(torch.from_numpy(x), 5)
    assert components.directions.shape == (6, rank)
    along = components.of(torch.from_numpy(x))
    assert torch.allclose((along**2).mean(dim=0), torch.ones(rank), atol=1e-3)
