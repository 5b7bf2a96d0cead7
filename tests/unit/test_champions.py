"""Who becomes champion, the log of it, and the card of each version; in a real MLflow registry on SQLite."""

import json
import shutil

import pytest

from ebm_dist import models
from ebm_dist.errors import DataError, RegistryError
from ebm_dist.registry import card, promotion, versions
from tests import helpers
from tests.helpers import Silent


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"


@pytest.fixture(scope="module")
def mlflow(database, tmp_path_factory):
    """A registry with four versions: the first two passed their gates, the others did not."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry")
    client = MlflowClient(database)
    for name in ("ebm", "bare"):
        client.create_registered_model(name)
    written = ["0.9 >= 0.8 pass"]  # registered before verdicts were JSON
    for value in (0.95, 0.5):
        verdict = versions.Verdict("ood.auroc", value, ">= 0.8", value >= 0.8)
        written += promotion.gate_tags([verdict]).values()
    for number, gate in enumerate((*written, "0.5 >= 0.8 FAIL"), 1):
        client.create_model_version("ebm", str(folder))
        client.set_model_version_tag("ebm", str(number), "gate.ood.auroc", gate)
    client.create_model_version("bare", str(folder))
    return client


def test_only_versions_whose_gates_passed_become_champion_and_the_log_has_each_change(mlflow):
    assert promotion.champion(mlflow, "ebm") is None and promotion.log(mlflow, "ebm") == []
    for refused in ("3", "4"):
        with pytest.raises(
            RegistryError,
            match=rf"ebm/{refused} cannot become champion: ood\.auroc 0\.5 >= 0\.8 FAIL",
        ):
            promotion.promote(mlflow, "ebm", refused)
    with pytest.raises(RegistryError, match="bare/1 cannot become champion: it has no gates"):
        promotion.promote(mlflow, "bare", "1")
    with pytest.raises(RegistryError, match=r"no previous champion .*now: none\)"):
        promotion.roll_back(mlflow, "ebm")
    assert promotion.promote(mlflow, "ebm", "1").before is None
    with pytest.raises(RegistryError, match=r"no previous champion .*now: 1\)"):
        promotion.roll_back(mlflow, "ebm")
    assert promotion.promote(mlflow, "ebm", "1") is None  # it is already
    event = promotion.promote(mlflow, "ebm", "2")
    assert (
        (event.before, event.gates) == ("1", {"ood.auroc": "0.95 >= 0.8 pass"})
        and event.who
        and event.at
    )
    assert promotion.roll_back(mlflow, "ebm").version == "1" == promotion.champion(mlflow, "ebm")
    with pytest.raises(RegistryError, match=r"no previous champion .*now: 1\)"):
        promotion.roll_back(mlflow, "ebm")  # what it was before the first is not known
    assert [(e.before, e.version, e.why) for e in promotion.log(mlflow, "ebm")] == [
        (None, "1", "gates"),
        ("1", "2", "gates"),
        ("2", "1", "roll-back"),
    ]


def test_a_verdict_is_json_and_no_text_passes_by_its_end():
    verdict = versions.Verdict("ood.auroc", 0.95, ">= 0.8", True)
    tags = promotion.gate_tags([verdict]) | {"git.commit": "0123"}
    assert json.loads(tags["gate.ood.auroc"]) == {"value": 0.95, "bound": ">= 0.8", "passes": True}
    assert (
        promotion.read_gates(tags) == {"ood.auroc": verdict} and str(verdict) == "0.95 >= 0.8 pass"
    )
    for text, expected in (
        ("0.9 >= 0.8 pass", True),  # of a version registered before
        ("0.5 >= 0.8 FAIL", False),
        ('{"value": 0.9, "bound": ">= 0.8", "passes": "pass"}', False),
        ('{"value": 0.9, "bound": ">= 0.8"}', False),
        ('{"value": 0.5, "bound": ">= 0.8 pass", "passes": false}', False),
    ):
        (gate,) = promotion.read_gates({"gate.x": text}).values()
        assert promotion.passes(gate) == expected, text


def test_what_the_registry_says_is_one_message(monkeypatch, database):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    with pytest.raises(
        RegistryError, match=r"MLflow at sqlite.*: .*nothing.* not found; see ebm-dist doctor"
    ):
        promotion.call(lambda client: promotion.log(client, "nothing"))


@pytest.fixture(scope="module")
def version(tmp_path_factory, digits_data):
    """A trained model, its reports, and what the card needs beside them."""
    folder = tmp_path_factory.mktemp("version")
    chosen = helpers.params()
    helpers.build(chosen, digits_data).fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", chosen, digits_data)
    (folder / "reports/ood/plots").mkdir(parents=True)
    (folder / "reports/ood/plots/roc.png").write_bytes(b"png")
    metrics = {
        "auroc": 0.9,
        "noise": {"auroc": 0.99},
        "seeds": {
            "0": {"auroc": 0.88, "noise": {"auroc": 0.98}},
            "1": {"auroc": 0.92, "noise": {"auroc": 1.0}},
        },
    }
    (folder / "reports/ood/metrics.json").write_text(json.dumps(metrics))
    (folder / "reports/train").mkdir()
    (folder / "reports/train/metrics.json").write_text(json.dumps({"energy_gap": 0.1}))
    return folder, chosen, models.load(folder / "model")


LINEAGE = {"config.digest": "abc", "hardware": "2 cores", "git.commit": "0123"}


def test_the_card_says_what_it_learnt_how_and_how_well(version):
    folder, chosen, trained = version
    verdicts = [
        versions.Verdict("ood.auroc", 0.9, ">= 0.8", True),
        versions.Verdict("ood.noise.auroc", 0.99, ">= 0.995", False),
    ]
    text = card.write(trained, chosen, folder / "reports", verdicts, LINEAGE)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        f"# {chosen.register.model}", "## Data", "## Method", "## Sampler", "## Gates", "## Metrics", "## Limits", "## Lineage", "## Pictures",
    ]  # fmt: skip
    assert (
        "`langevin`, num_steps 3, step_size 0.02, noise_scale 0.1" in text
        and "`contrastive_divergence`" in text
        and "Parameters: energy 1,9" in text
    )
    assert "| ood.noise.auroc | 0.99 | >= 0.995 | **fail** |" in text
    assert (
        "- It was judged by ood; nothing" in text
        and "| train.energy_gap | 0.1 | one seed |" in text
    )
    assert "| ood.auroc | 0.9 | 0.6459 to 1 |" in text  # t interval of .88 and .92
    assert (
        trained.card["data_digest"] in text
        and "`reports/ood/plots/roc.png`" in text
        and "digits" in text
    )
    assert "None are set, so it cannot become champion." in card.write(
        trained, chosen, folder / "reports", [], LINEAGE
    )


def test_a_card_with_gaps_is_refused(version, tmp_path):
    folder, chosen, trained = version
    shutil.copytree(folder / "reports", tmp_path / "reports")
    shutil.rmtree(tmp_path / "reports/train")
    for lost, expected in (
        (
            tmp_path / "reports/ood/plots/roc.png",
            "has gaps, so nothing is published: Pictures; run 'dvc repro'",
        ),
        (tmp_path / "reports/ood/metrics.json", "Metrics, Pictures"),
    ):
        lost.unlink()
        with pytest.raises(DataError, match=expected):
            card.write(trained, chosen, tmp_path / "reports", [], LINEAGE)
    with pytest.raises(DataError, match="Lineage: settings digest"):
        card.write(trained, chosen, folder / "reports", [], {"hardware": "2 cores"})
    with pytest.raises(DataError, match="published: Data;"):
        card.write(
            trained._replace(card=trained.card | {"source": ""}),
            chosen,
            folder / "reports",
            [],
            LINEAGE,
        )
