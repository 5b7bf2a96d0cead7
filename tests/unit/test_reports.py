"""Models, pictures, the live line, gates: what people look at."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ebm_dist import evaluation, files, models
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.errors import DataError
from ebm_dist.metrics import features
from ebm_dist.registry import versions
from ebm_dist.report import figures
from ebm_dist.runs import progress
from ebm_dist.runs.record import EVENTS, METRICS
from tests import helpers
from tests.helpers import Silent


@pytest.fixture(scope="module")
def exported(digits_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    chosen = helpers.params()
    helpers.build(chosen, digits_data).fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", chosen, digits_data)
    return folder / "model"


def test_an_exported_model_is_the_average_with_every_chain(exported, digits_data):
    trained = models.load(exported)
    trainer = helpers.build(helpers.params(), digits_data)
    trainer.restore(exported.parent / "run")
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(trained.energy(x), trainer.averages["energy"](x))
        assert not torch.equal(trained.energy(x), trainer.objective.players["energy"](x))
    assert torch.equal(
        trained.chains, torch.cat([chains.position for chains in trainer.replay.values()])
    )
    assert trained.params == helpers.params(
        cluster={"workers": 1}
    )  # how it was trained is not part of a model
    assert (
        trained.card["shape"] == [1, 8, 8]
        and trained.card["data_digest"] == shards.read_index(digits_data).digest
    )


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_the_energy_of_a_conditional_model_is_in_deviations_of_the_likeliest_class(
    digits_data, tmp_path, temperature
):
    objective = {"name": "contrastive_divergence", "conditional": True}
    objective |= {"label_temperature": temperature} if temperature else {}
    chosen = helpers.params(objective=objective, train={"num_steps": 2})
    helpers.build(chosen, digits_data).fit(tmp_path / "run", Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, digits_data)
    trained = models.load(tmp_path / "model")
    x = torch.rand(1100, 1, 8, 8)
    with torch.no_grad():
        data, y = shards.read_split(shards.read_index(digits_data), "train")
        own = [trained.energy(data[y == k], y[y == k]) for k in range(10)]
        means, deviations = (
            torch.stack([f(e) for e in own]) for f in (torch.mean, lambda e: e.std(correction=0))
        )
        each = torch.stack([trained.energy(x, torch.full((1100,), k)) for k in range(10)], dim=1)
    scaled = (each - means) / deviations
    likeliest = (
        scaled.amin(dim=1)
        if temperature is None
        else scaled[torch.arange(1100), each.argmin(dim=1)]
    )
    torch.testing.assert_close(trained.energies(x), likeliest, rtol=1e-4, atol=1e-4)
    assert (
        not torch.equal(scaled.argmin(dim=1), each.argmin(dim=1)) and means.std() > 0.01
    )  # or else nothing is tested


def test_export_is_a_function_of_the_checkpoint(exported, digits_data, tmp_path):
    helpers.export(exported.parent / "run", tmp_path, helpers.params(), digits_data)
    assert all((tmp_path / p.name).read_bytes() == p.read_bytes() for p in exported.iterdir())


def test_an_unfinished_run_is_not_exported(digits_data, tmp_path):
    helpers.build(helpers.params(), digits_data).fit(tmp_path, Silent(3))
    with pytest.raises(DataError, match="training has not ended"):
        helpers.export(tmp_path, tmp_path / "out", helpers.params(), digits_data)


@pytest.mark.parametrize("harm", ["energy.safetensors", "chains.safetensors", "model.json"])
def test_an_altered_model_is_refused(exported, tmp_path, harm):
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / harm).write_bytes((tmp_path / harm).read_bytes()[:-5] + b"xxxxx")
    with pytest.raises(DataError, match=r"altered|is not an exported model"):
        models.load(tmp_path)


@pytest.mark.parametrize("suite", ["samples", "histogram", "ood", "chains"])
def test_suites_report_numbers_tables_and_readable_pictures(
    suite, exported, digits_data, photos_data
):
    index = shards.read_index(digits_data)
    chosen = helpers.params(
        evaluation={
            "samples": {"num_samples": 100, "num_steps": 20},
            "histogram": {},
            "ood": {"num_bootstrap": 40},
            "chains": {"num_draws": 8, "num_components": 2},
        }
    )
    torch.manual_seed(0)
    judge = features.Classifier(index.shape, 10, 16)
    subject = evaluation.Subject(
        models.load(exported), index, {"photos": shards.read_index(photos_data)}, judge
    )
    config = chosen.evaluation[suite]
    report = module_of(config).evaluate(config, subject)
    again = module_of(config).evaluate(config, subject)
    assert report.metrics and json.dumps(report.metrics) == json.dumps(again.metrics)
    assert all(isinstance(v, int | float | dict) for v in report.metrics.values())
    assert np.isfinite(list(files.flat(report.metrics).values())).all()
    for rows in report.tables.values():
        assert rows and all(row.keys() == rows[0].keys() for row in rows)
    for name, content in report.figures.items():
        picture = Image.open(io.BytesIO(content))
        assert picture.width >= 300 and len(np.unique(np.asarray(picture.convert("L")))) > 5, name
        assert content == again.figures[name], f"{name} is not reproducible"
        assert len(figures.description(content)) > 20, f"{name} has no words"


def test_a_sheet_has_the_images_in_their_places():
    x = np.zeros((3, 1, 2, 2))
    x[2] = 1.0
    sheet = figures.tile(x, 2)
    assert sheet.shape == (7, 7, 3)
    assert (
        (sheet[4:6, 1:3] == 255).all() and (sheet[1:3, 1:3] == 0).all() and (sheet[0] == 128).all()
    )


def test_the_live_line_says_what_matters(tmp_path):
    assert progress.line(tmp_path, 100, "starting") == "starting"
    (tmp_path / EVENTS).write_text('{"event": "start", "step": 0, "world_size": 2}\n')
    assert progress.line(tmp_path, 100, "") == "step 0/100  2 workers  0 restarts"
    with (tmp_path / METRICS).open("w") as out:
        out.writelines(
            json.dumps({"step": s, "seconds": s / 10, "energy_gap": -0.5}) + "\n"
            for s in (10, 20, 40)
        )
        out.write('{"step": 60, "sec')  # being written
    with (tmp_path / EVENTS).open("a") as out:
        out.write('{"event": "resumed", "step": 20, "world_size": 1}\n')
    line = progress.line(tmp_path, 100, "")
    assert line == "step 40/100  E+ - E- -0.500  10.0 steps/s  0:06 left  1 worker  1 restarts"
    assert len(line) <= 100


def test_gates():
    gates = (versions.Gate(metric="a.x", at_most=2.0), versions.Gate(metric="a.y", at_least=0.5))
    verdicts = versions.check_gates(gates, {"a.x": 2.0, "a.y": 0.4})
    assert [v.passes for v in verdicts] == [True, False]
    assert not versions.check_gates(gates, {"a.x": float("nan"), "a.y": 1})[0].passes
    assert "no metric a.y" in versions.check_gates(gates, {"a.x": 1.0})[1].skipped
