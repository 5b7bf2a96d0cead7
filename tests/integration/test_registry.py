"""Versions in a real MLflow registry: what is registered last is what MLflow and registry.json say."""

import json
import os
import shutil
import subprocess
import sys

import mlflow as mlflow_module
import numpy as np
import pytest
from PIL import Image

import ebm_dist
from ebm_dist import config, models
from ebm_dist.data import shards
from ebm_dist.errors import RegistryError
from ebm_dist.registry import promotion, versions
from ebm_dist.runs import tracking
from tests import helpers
from tests.helpers import ROOT, Silent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
AUROC = {"metric": "ood.uniform.auroc", "at_least": 0.9}
FID = {"metric": "samples.fid_clf", "at_most": 5.0}


class Project:
    """A trained model with reports, and the registry."""

    def __init__(self, folder, digits_data):
        self.folder, self.reports = folder, folder / "reports"
        params = helpers.params()
        helpers.build(params, digits_data).fit(folder / "run", Silent())
        helpers.export(folder / "run", folder / "model", params, digits_data)
        self.client = tracking.client()

    def params(self, gates, **sections):
        values = helpers.values(**sections) | {"evaluation": {"samples": {}, "ood": {}}}
        values["register"] = {"gates": list(gates)} | sections.get("register", {})
        return config.from_values(values, self.folder / "params.yaml")

    def report(self, **suites):
        shutil.rmtree(self.reports, ignore_errors=True)
        for suite, metrics in suites.items():
            plots = self.reports / suite / "plots"
            plots.mkdir(parents=True)
            (plots.parent / "metrics.json").write_text(json.dumps(metrics))
            Image.new("L", (8, 8)).save(plots / "grid.png")

    def register(self, gates=(), fid=None, auroc=0.95, **register):
        self.report(ood={"uniform": {"auroc": auroc}}, samples={"fid_clf": fid, "num_samples": 9})
        params = self.params(gates, register=register)
        folders = (self.folder / "model", self.reports, self.folder / "run")
        result = versions.register(params, *folders, "name")
        aliases = self.client.get_registered_model(result["model"]).aliases
        assert result["aliases"] == sorted(aliases)  # of the only version
        return result

    def run(self, model):
        version = self.client.get_model_version(model, "1")
        return self.client.get_run(version.run_id)


@pytest.fixture(scope="module")
def project(tmp_path_factory, digits_data):
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        yield Project(folder, digits_data)


def test_the_latest_evaluation_is_what_mlflow_shows(project):
    for fid in (30.0, 4.0, 30.0):
        project.register([FID], fid=fid, model="latest")
        run = project.run("latest")
        assert run.data.metrics["eval/samples/fid_clf"] == fid
    history = project.client.get_metric_history(run.info.run_id, "eval/samples/fid_clf")
    assert [metric.value for metric in sorted(history, key=lambda m: m.timestamp)] == [30, 4, 30]
    assert {metric.step for metric in history} == {12} and history[0].timestamp > 1.7e12
    assert run.data.tags["ebm.outdated_metrics"] == ""
    project.report(samples={"fid_clf": 3.0})
    folders = (project.folder / "model", project.reports, project.folder / "run")
    versions.register(project.params([FID], register={"model": "latest"}), *folders, "name")
    tags = project.run("latest").data.tags
    assert tags["ebm.outdated_metrics"] == "eval/ood/uniform.auroc, eval/samples/num_samples"
    # a name of version 0.1, and metrics that the training has logged by step
    project.client.log_metric(run.info.run_id, "eval.samples.fid_clf", 30.0)
    project.report(samples={"fid_clf": 3.0}, train={"energy_gap": 0.1})
    versions.register(project.params([FID], register={"model": "latest"}), *folders, "name")
    data = project.run("latest").data
    assert data.tags["ebm.outdated_metrics"].startswith("eval.samples.fid_clf, eval/ood/")
    assert "eval/train/energy_gap" not in data.metrics


def test_gates_that_left_the_file_leave_the_version(project):
    failing = project.register([AUROC, FID], fid=30.0, model="gates")
    assert failing["aliases"] == ["candidate"]
    assert project.register([AUROC], fid=30.0, model="gates")["aliases"] == [
        "candidate",
        "champion",
    ]
    version = project.client.get_model_version("gates", "1")
    for tags in (version.tags, project.run("gates").data.tags):
        assert {key for key in tags if key.startswith("gate.")} == {"gate.ood.uniform.auroc"}


def test_a_champion_whose_gates_fail_loses_the_alias_and_the_log_says_so(project):
    project.register([FID], fid=4.0, model="demoted")
    result = project.register([FID], fid=50.0, model="demoted")
    assert result["aliases"] == ["candidate"] and not result["gates"][0]["passes"]
    assert promotion.champion(project.client, "demoted") is None
    first, second = promotion.log(project.client, "demoted")
    assert (first.before, first.version, first.why) == (None, "1", "gates")
    assert (second.before, second.version, second.why) == ("1", None, "gates failed")
    assert second.gates == {"samples.fid_clf": "50 <= 5 FAIL"}
    with pytest.raises(RegistryError, match="no previous champion"):
        promotion.roll_back(project.client, "demoted")
    project.register([FID], fid=50.0, model="demoted")  # nothing new
    assert len(promotion.log(project.client, "demoted")) == 2
    project.register([FID], fid=4.0, model="demoted")
    assert promotion.champion(project.client, "demoted") == "1"
    assert project.register([], fid=4.0, model="demoted")["aliases"] == ["candidate"]


def test_gates_that_cannot_apply_are_skipped_and_the_version_stays_candidate(project):
    missing = {"metric": "samples.fid_clf_over_flor", "at_most": 2.5}
    result = project.register([AUROC, FID, missing], fid=None, model="skipped")
    assert result["aliases"] == ["candidate"]
    applied, null, misspelt = result["gates"]
    assert applied["passes"] and not applied["skipped"]
    assert null["value"] is None and not null["passes"] and "no number" in null["skipped"]
    assert not misspelt["passes"] and "no metric samples.fid_clf_over_flor" in misspelt["skipped"]
    assert "did you mean 'samples.fid_clf'?" in misspelt["skipped"]
    card_text = project.client.get_model_version("skipped", "1").description
    assert "| samples.fid_clf | - | <= 5 | skipped: " in card_text
    with pytest.raises(RegistryError, match=r"cannot become champion: .*skipped"):
        promotion.promote(project.client, "skipped", "1")


def test_the_default_name_follows_the_data_set(project):
    assert project.register([], fid=1.0)["model"] == "ebm-digits"


def test_a_card_of_any_length_fits_the_database(project):
    project.register([FID], fid=1.0, model="long")
    many = {f"metric_{i:03d}": float(i) for i in range(300)}
    project.report(ood=many, samples={"fid_clf": 1.0})
    folders = (project.folder / "model", project.reports, project.folder / "run")
    versions.register(project.params([FID], register={"model": "long"}), *folders, "name")
    description = project.client.get_model_version("long", "1").description
    assert len(description) <= 5000 and "| samples.fid_clf | 1 |" in description
    assert "## Pictures" in description and "model-card.md" in description
    run_id = project.run("long").info.run_id
    assert "ood.metric_299" in mlflow_module.artifacts.load_text(f"runs:/{run_id}/model-card.md")


def test_predict_casts_samples_and_refuses_what_lies_outside_the_bounds(project):
    project.register([], fid=1.0, model="service")
    loaded = mlflow_module.pyfunc.load_model("models:/service/1")
    assert loaded.metadata.metadata["input"] == {
        "dtype": "float32",
        "shape": [-1, 1, 8, 8],
        "bounds": [0.0, 1.0],
    }
    x = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)
    energies = loaded.predict(x)
    assert np.array_equal(loaded.predict(x.astype(np.float64)), energies)
    np.testing.assert_allclose(loaded.predict(x.astype(np.float16)), energies, atol=0.05)
    assert loaded.predict(x, params={"task": "sample", "num_steps": 2}).shape == x.shape
    for wrong, text in (
        ((255 * x).astype(np.uint8), "bounds"),
        (255 * x, "bounds"),
        (x - 0.5, "bounds"),
        (x[:, :, :4], r"expected samples of shape \(n, 1, 8, 8\)"),
        (np.full_like(x, np.nan), "finite"),
    ):
        with pytest.raises(mlflow_module.exceptions.MlflowException, match=text) as refused:
            loaded.predict(wrong)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("uri", ["models:/named@candidate", "models:/named/1"])
def test_a_registered_version_is_accepted_wherever_a_model_is_named(project, uri, digits_data):
    project.register([], fid=1.0, model="named")
    expected = models.load(project.folder / "model")
    x = shards.read_split(shards.read_index(digits_data), "test")[0][:5]
    for trained in (ebm_dist.load(uri), ebm_dist.load(str(project.folder / "model"))):
        assert trained.card == expected.card
        assert np.array_equal(trained.energies(x).numpy(), expected.energies(x).numpy())
    assert models.load(str(project.folder / "model")).card == expected.card
    command = "from ebm_dist.cli.commands import main; main()"
    out = project.folder / "samples.npy"
    done = subprocess.run(
        [sys.executable, "-c", command, "sample", uri, "--count", "2", "--steps", "2", "--out", out],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and np.load(out).shape == (2, 1, 8, 8), done.stderr


def test_a_wrong_address_of_a_version_is_one_message(project):
    for uri, text in (
        ("models:/ebm-digits", "expected models:/name@alias or models:/name/version"),
        ("models:/ebm-digits/champion", "expected models:/name@alias"),
        ("models:/ebm-digits@nobody", "nobody"),
        ("models:/nothing/1", "nothing"),
    ):
        with pytest.raises(RegistryError, match=text):
            ebm_dist.load(uri)


LOADED = """
import sys, numpy as np, mlflow
x = np.full((2, 1, 8, 8), 0.5, np.float32)
for uri in sys.argv[1:]:
    if uri == "import":
        import ebm_dist.models
        continue
    print("energies", *mlflow.pyfunc.load_model(uri).predict(x))
"""


def python(script, *arguments, path=None):
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    if path is None:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_each_version_answers_by_its_own_code(project):
    project.register([], fid=1.0, model="present")
    downloaded = mlflow_module.artifacts.download_artifacts("models:/present/1")
    present, doubled, reworded = (project.folder / n for n in ("present", "doubled", "reworded"))
    energy = "energy = linear_energy(self.last, h)"
    for folder, before, after in (
        (present, energy, energy),
        (doubled, energy, f"{energy} * 2"),
        (reworded, '"""', '"""Reworded. '),
    ):
        shutil.copytree(downloaded, folder)
        code = folder / "code/ebm_dist/energies/mlp.py"
        assert before in code.read_text()
        code.write_text(code.read_text().replace(before, after, 1))
    # versions of other code in one process, in either order, and after an import of the package
    single, same, twice = python(LOADED, present, reworded, doubled)
    assert single == same and single.startswith("energies")
    energies, doubled_energies = (np.array(line.split()[1:], float) for line in (single, twice))
    np.testing.assert_allclose(doubled_energies, 2 * energies, rtol=1e-5)
    assert python(LOADED, doubled, present, doubled) == [twice, single, twice]
    assert python(LOADED, "import", doubled, present, path=ROOT) == [twice, single]
