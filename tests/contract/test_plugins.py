"""What every plugin must be and do, over the folders: a new file is tested by being there."""

import dataclasses
import importlib
import inspect

import numpy as np
import pytest
import torch

from ebm_dist.config import help_texts, plugins
from ebm_dist.energies import averages_of, frozen, score
from ebm_dist.errors import ConfigError, DataError
from ebm_dist.objectives import Objective, ObjectiveConfig, Turn, Wrapped
from ebm_dist.rng import stream
from ebm_dist.samplers import noise, run_chain
from tests import helpers

FOLDERS = ("energies", "generators", "samplers", "objectives", "datasets", "evaluation")
ALL = [(folder, name) for folder in FOLDERS for name in plugins(f"ebm_dist.{folder}")]
ENERGIES = plugins("ebm_dist.energies")
WITHOUT_LABELS = ("conditionals", "density", "vae")
SAMPLERS = plugins("ebm_dist.samplers")
SHAPE = (1, 8, 8)


def module(folder, name):
    return importlib.import_module(f"ebm_dist.{folder}.{name}")


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_a_plugin_has_a_documented_config_and_an_entry(folder, name):
    plugin = module(folder, name)
    assert plugin.__doc__ and len(plugin.__doc__.splitlines()[0]) > 30
    assert dataclasses.is_dataclass(plugin.Config)
    texts = help_texts(plugin.Config)
    for field in plugin.Config.__pydantic_fields__:
        assert texts.get(field), f"{folder}/{name}.py: no docstring under {field}"
    entry = {"datasets": "load", "evaluation": "evaluate"}.get(folder, "build")
    assert next(iter(inspect.signature(getattr(plugin, entry)).parameters)) in ("config", "params")


def energy_of(name, num_classes=0):
    plugin = module("energies", name)
    torch.manual_seed(0)
    parts = {
        field: module(*part).Config()
        for field, part in (("network", ("energies", "mlp")), ("generator", ("generators", "flow")))
        if field in plugin.Config.__pydantic_fields__
    }
    energy = plugin.build(plugin.Config(**parts), shape=SHAPE, num_classes=num_classes)
    energy.initialise(averages_of(torch.rand(20, *SHAPE)))
    return energy


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_energies_without_labels_refuse_them(name):
    with pytest.raises(ConfigError, match=f"energy: {name} has no labels"):
        energy_of(name, num_classes=3)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [(name, n) for name in ENERGIES for n in (0, 3) if not n or name not in WITHOUT_LABELS],
)
class TestEnergies:
    def labels(self, n, num_classes):
        return torch.arange(n) % num_classes if num_classes else None

    def test_shape_dtype_and_gradients_to_every_parameter(self, name, num_classes):
        model = energy_of(name, num_classes)
        energy = model(torch.rand(5, *SHAPE), self.labels(5, num_classes))
        assert energy.shape == (5,) and energy.dtype == torch.float32
        energy.sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_rows_do_not_see_each_other_and_nothing_changes(self, name, num_classes):
        model, x, y = (
            energy_of(name, num_classes),
            torch.rand(6, *SHAPE),
            self.labels(6, num_classes),
        )
        before = {k: v.clone() for k, v in model.state_dict().items()}
        whole = model(x, y)
        apart = torch.cat(
            [model(x[i : i + 1], None if y is None else y[i : i + 1]) for i in range(6)]
        )
        torch.testing.assert_close(whole, apart, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_score_is_minus_the_gradient(self, name, num_classes):
        model, y = energy_of(name, num_classes).double(), self.labels(2, num_classes)
        x = torch.rand(2, *SHAPE, dtype=torch.float64)
        energy, s = score(lambda v: model(v, y), x)
        direction = torch.randn_like(x)
        h = 1e-6
        slope = (model(x + h * direction, y) - model(x - h * direction, y)) / (2 * h)
        torch.testing.assert_close((-s * direction).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(energy, model(x, y))

    def test_frozen_leaves_no_trace(self, name, num_classes):
        model = energy_of(name, num_classes)
        with frozen(model):
            assert not any(p.requires_grad for p in model.parameters())
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", plugins("ebm_dist.generators"))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (5,)])
def test_generators_draw_samples_of_the_data_s_shape_row_by_row(name, shape):
    plugin = module("generators", name)
    torch.manual_seed(0)
    if name in ("dcgan", "glow", "pixelcnn") and len(shape) == 1:
        with pytest.raises(ConfigError, match=r"dcgan draws|glow halves|pixelcnn is for images"):
            plugin.build(plugin.Config(), shape=shape)
        return
    if name == "histogram":
        with pytest.raises(ConfigError, match=r"a histogram of \d+ dimensions .* is too large"):
            plugin.build(plugin.Config(), shape=shape)
        shape = (2,)
    if name == "pixelcnn":  # a pass of the network for each value
        shape = (shape[0], 4, 5)
    generator = plugin.build(plugin.Config(), shape=shape)
    z = torch.randn(4, generator.latent_size)
    x = generator(z)
    assert x.shape == (4, *shape) and x.dtype == torch.float32
    torch.testing.assert_close(
        x, torch.cat([generator(row[None]) for row in z]), rtol=1e-4, atol=1e-5
    )
    if list(generator.parameters()):
        x.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())


class StandardNormal:
    """A target that suits every sampler: E = |x|^2 / 2, with conditionals, which keep within bounds, and levels."""

    num_blocks = 1
    sigmas = torch.tensor([0.1, 1.0])

    def __init__(self, bounds):
        self.low, self.high = torch.special.ndtr(torch.tensor(bounds or (-10.0, 10.0)))

    def __call__(self, x, y=None):
        return (x**2).flatten(1).sum(1) / 2

    def resample(self, block, x, generator):
        return torch.special.ndtri(
            self.low
            + (self.high - self.low)
            * torch.rand(x.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        )


@pytest.mark.parametrize("name", SAMPLERS)
class TestSamplers:
    def chain(self, name, bounds, x, seed=0, num_steps=5):
        kernel = module("samplers", name).build(module("samplers", name).Config(), bounds=bounds)
        return run_chain(kernel, StandardNormal(bounds), x, num_steps, stream(seed, "chain"))

    def test_same_stream_same_chain_other_stream_other_chain(self, name):
        x = noise((7, 2, 3), None, stream(0, "start"))
        (a, stats), (b, _), (c, _) = (self.chain(name, None, x, seed) for seed in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert a.shape == x.shape and not a.requires_grad
        assert all(torch.isfinite(value) and value.shape == () for value in stats)

    def test_the_start_is_not_changed_and_bounds_are_kept(self, name):
        x = noise((50, 4), (0.0, 1.0), stream(0, "start"))
        before = x.clone()
        end, _ = self.chain(name, (0.0, 1.0), x)
        assert torch.equal(x, before)
        assert end.min() >= 0 and end.max() <= 1


@pytest.mark.parametrize("name", plugins("ebm_dist.objectives"))
def test_objectives_train_their_players_and_export_an_energy(name, digits_data, tmp_path):
    noise = {"name": "noise_contrastive", "generator": {"name": "gaussian"}, "pretraining": 1}
    own = {
        "meg": {"generator": {"name": "mlp"}, "num_energy_steps": 1},
        "noise_contrastive": noise,
        "level_classification": {
            "generator": {"name": "gaussian"},
            "pretraining": 1,
            "sigmas": [0.0, 0.3],
        },
        "semi_supervised": {"unsupervised": noise},
        "composite_likelihood": {"joint": {"name": "contrastive_divergence"}},
    }.get(name, {})
    energy = {"energy": helpers.ENERGY_FOR[name]} if name in helpers.ENERGY_FOR else {}
    if name == "recovery_likelihood":  # of temperature 1
        energy["sampler"] = {"name": "langevin", "step_size": 0.02, "noise_scale": 0.2}
    trainer = helpers.build(helpers.params(objective={**own, "name": name}, **energy), digits_data)
    if name == "semi_supervised":
        trainer.labelled = trainer.batch(0)
    before = {
        player: [p.clone() for p in net.parameters()]
        for player, net in trainer.objective.players.items()
    }
    row = {}
    for trainer.step in range(2):  # a player may wait for the others
        row |= trainer.mean_over_shards(trainer.advance())
    for player, net in trainer.objective.players.items():
        pairs = zip(before[player], net.parameters(), strict=True)
        assert all(
            not torch.equal(a, b) for a, b in pairs if a.numel() > 1
        )  # no loss of differences moves a constant
        assert f"loss_{player}" in row
    assert all(np.isfinite(value) for value in row.values())
    energy = trainer.objective.export(trainer.averages)
    labels = torch.arange(3) if trainer.params.objective.conditional else None
    assert energy(torch.rand(3, 1, 8, 8), labels).shape == (3,)

    objective, settings = trainer.objective, trainer.params.objective
    assert isinstance(objective, Objective) and isinstance(settings, ObjectiveConfig)
    assert set(objective.players) == {"energy", *settings.other_players}
    assert settings.conditional in (False, True) and (
        settings.label_temperature is None or settings.label_temperature > 0
    )
    observer = objective.inner if isinstance(objective, Wrapped) else objective
    assert objective.observes == (type(observer).observe is not Objective.observe)
    for turn in objective.turns(trainer.batch(0), trainer.context(0)):
        assert not any(
            metric.startswith("energy") for metric in turn.metrics
        )  # the guard of the trainer sees all energies
        assert ("energy_pos" in turn.energies) or turn.player != "energy"


class Players(Objective):
    """Two players, of which the energy has two turns."""

    def __init__(self, observes):
        self.players = {"energy": torch.nn.Linear(1, 1), "other": torch.nn.Linear(1, 1)}
        self.observes, self.observed = observes, []

    def turns(self, batch, context):
        for player in ("energy", "other", "energy"):
            yield Turn(
                player,
                torch.tensor(1.0),
                {"metric": torch.tensor(2.0)},
                {"energy_pos": torch.tensor(3.0)},
            )

    def export(self, players):
        return players["other"]

    def observe(self, step, means):
        self.observed.append((step, means))


class Doubled(Wrapped):
    def with_more(self, turn, batch, context):
        return turn._replace(loss=turn.loss * 2)


@pytest.mark.parametrize("observes", [False, True])
def test_a_wrapped_objective_adds_to_the_turns_of_the_energy_and_leaves_the_rest_to_the_inner_one(
    observes,
):
    inner = Players(observes)
    objective = Doubled(inner)
    assert objective.players is inner.players and objective.observes == observes
    turns = list(objective.turns(None, None))
    assert [(turn.player, turn.loss.item()) for turn in turns] == [
        ("energy", 2.0),
        ("other", 1.0),
        ("energy", 2.0),
    ]
    assert all(turn.energies["energy_pos"] == 3.0 for turn in turns)
    assert objective.export(inner.players) is inner.players["other"]
    objective.observe(4, {"metric": 2.0})
    assert inner.observed == [(4, {"metric": 2.0})]


@pytest.mark.parametrize("name", plugins("ebm_dist.datasets"))
def test_datasets_are_well_formed_or_say_what_is_missing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "own.npz", images=np.zeros((20, 5, 5), np.uint8), labels=np.arange(20) % 2)
    plugin = module("datasets", name)
    (tmp_path / "parts").mkdir()
    np.save(tmp_path / "parts/a.npy", np.zeros((20, 1, 5, 5), np.uint8))
    needed = {
        "arrays": {"path": str(tmp_path / "own.npz")},
        "parts": {"path": str(tmp_path / "parts")},
        "few_labels": {"of": module("datasets", "digits").Config()},
    }
    chosen = plugin.Config(**needed.get(name, {}))
    try:
        data = plugin.load(chosen)
    except DataError as missing:
        pytest.skip(f"not at hand: {missing}")
    shape = next(iter(data.splits.values())).x.shape[1:]
    data = data._replace(splits={s: part._replace(x=part.x[:]) for s, part in data.splits.items()})
    for split, arrays in data.splits.items():
        assert split in ("train", "val", "test") or (name == "few_labels" and split == "labelled-0")
        assert arrays.x.shape[1:] == shape and arrays.x.dtype in (np.uint8, np.float32)
        assert (arrays.y is None) == (
            data.num_classes == 0 or (name, split) == ("few_labels", "train")
        )
        if arrays.y is not None:
            assert (
                arrays.y.dtype == np.int64
                and arrays.y.min() >= 0
                and arrays.y.max() < data.num_classes
            )
        if data.bounds:
            assert (
                data.bounds[0] <= arrays.x.min() / data.scale
                and arrays.x.max() / data.scale <= data.bounds[1]
            )
    rows = [set(map(bytes, arrays.x)) for arrays in data.splits.values()]
    if name in ("digits", "mnist", "fashion_mnist"):
        assert not set.intersection(*rows), "a sample is in two splits"
    again = plugin.load(chosen)
    assert all(np.array_equal(data.splits[s].x, again.splits[s].x[:]) for s in data.splits)
