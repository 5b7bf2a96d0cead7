"""Shipped models: what the lock says is there, loads by name, and gives the committed figures."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ebm_dist as ebm
from ebm_dist import models
from ebm_dist.cli import check, commands
from ebm_dist.errors import ConfigError, DataError, ResultsError
from ebm_dist.files import sha256
from ebm_dist.registry import shipped, versions
from ebm_dist.runs import lineage
from pipelines import ship
from tests.helpers import ROOT

LOCK = shipped.lock()
ROWS = {row: name for name, entry in LOCK["models"].items() for row in entry["rows"]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the folder with one model."""
    folder = tmp_path / "weights"
    shutil.copytree(shipped.FOLDER / "nce-2d", folder / "nce-2d")
    ship.write_lock(folder, {"nce-2d": LOCK["models"]["nce-2d"]})
    return folder


def test_the_lock_has_every_file_and_the_limit_holds():
    there = {
        str(path.relative_to(shipped.FOLDER)): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in shipped.FOLDER.rglob("*")
        if path.is_file() and path.name != shipped.LOCK
    }
    assert there == LOCK["files"]
    assert sum(entry["bytes"] for entry in there.values()) <= shipped.MAX_BYTES == 10 * 2**20


def test_figures_in_the_lock_are_the_committed_ones():
    results = {row["id"]: row for row in json.loads((ROOT / "docs/results.json").read_text())}
    for name, entry in LOCK["models"].items():
        for row, content in entry["rows"].items():
            result, seed = results[row], str(entry["seed"])
            assert result["recipes"] == [entry["recipe"]], name
            assert content["committed"] == result["seeds"].get(seed, result["reached"]), row
            assert [content[key] for key in ("metric", "what", "mean")] == [
                result[key] for key in ("metric", "what", "reached")
            ], row


@pytest.mark.parametrize("name", LOCK["models"])
def test_a_shipped_model_loads_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # no model
    model = ebm.load(name)
    assert model.card["sha256"] and len(model.chains) == LOCK["models"][name]["num_chains"]
    sample = model.sample(2, num_steps=2)
    assert sample.shape == (2, *model.card["shape"]) and np.isfinite(sample).all()


def test_a_folder_with_a_model_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert versions.load("nce-2d").params.seed == 0
    shutil.copytree(shipped.FOLDER / "nce-2d", tmp_path / "nce-2d")
    card = json.loads((tmp_path / "nce-2d/model.json").read_text())
    card["params"]["seed"] = 7
    (tmp_path / "nce-2d/model.json").write_text(json.dumps(card))
    assert versions.load("nce-2d").params.seed == 7


def test_an_unknown_name_is_one_message_with_the_names_nearest_first():
    with pytest.raises(DataError, match=r"nce-3d: is not an exported model.*did you mean 'nce-2d'"):
        ebm.load("nce-3d")
    with pytest.raises(DataError, match=r"no shipped model has this name; use one of .*nce-2d"):
        ebm.load("zzzz")


def test_altered_and_missing_files_are_refused(weights):
    path = weights / "nce-2d/energy.safetensors"
    shipped.verified("nce-2d", weights)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"energy.safetensors: differs .*install"):
        shipped.verified("nce-2d", weights)
    path.unlink()
    with pytest.raises(DataError, match=r"energy.safetensors: missing"):
        shipped.verified("nce-2d", weights)
    (weights / shipped.LOCK).write_text("{")
    with pytest.raises(DataError, match=r"weights.lock: not readable"):
        shipped.lock(weights)


def test_a_copy_has_the_first_chains_and_the_bits_of_all_else(tmp_path, monkeypatch):
    source = shipped.FOLDER / "nce-2d"
    monkeypatch.setattr(ship, "_MAX_CHAINS", 8 * 100 + 7)
    assert ship.copy_model(source, tmp_path / "copy") == 100
    whole, copy = models.load(source), models.load(tmp_path / "copy")
    assert torch.equal(copy.chains, whole.chains[:100]) and len(copy.labels) == 100
    for path in (path for path in source.glob("*.safetensors") if path.name != ship._CHAINS):
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


def test_models_beyond_the_limit_are_refused(weights, monkeypatch):
    monkeypatch.setattr(shipped, "MAX_BYTES", 2**16)
    with pytest.raises(DataError, match=r"0.2 MiB together, and the limit is 0 MiB"):
        ship.write_lock(weights, {"nce-2d": LOCK["models"]["nce-2d"]})


def evaluated(metrics):
    """What stands for the evaluation of suites."""
    return lambda name, suites, folder=None: (
        (suite, check.Evaluated(metrics, True, 0.5)) for suite in suites
    )


def metrics_of(name: str, factor: float) -> dict:
    """The committed figures of a model, times a factor."""
    metrics: dict = {}
    for entry in LOCK["models"][name]["rows"].values():
        *groups, key = entry["metric"].split(".")[1:]
        inner = metrics
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[key] = entry["committed"] * factor
    return metrics


def test_only_rows_that_are_reproduced_are_shipped(tmp_path, monkeypatch, capsys):
    metrics = metrics_of("nce-2d", 1.0)
    metrics["log_z"]["error"] *= 1.001
    monkeypatch.setattr(check, "evaluate", evaluated(metrics))
    trained = tmp_path / "models/nce-2d/0"
    shutil.copytree(shipped.FOLDER / "nce-2d", trained)
    (trained.parent / "classifier").mkdir()
    (trained.parent / "classifier/classifier.json").write_text("null")
    record = tmp_path / "reports/nce-2d/train/0/run.json"
    record.parent.mkdir(parents=True)
    origin = {
        "commit": "abc",
        "dataset": "toy2d",
        "versions": {"torch": "2"},
        "hardware": {"cpu": "x"},
    }
    args = argparse.Namespace(
        recipe="nce-2d",
        name="small",
        seed=0,
        models=tmp_path / "models",
        reports=tmp_path / "reports",
        results=ROOT / "docs/results.json",
        no_classifier=False,
    )
    record.write_text(json.dumps(origin | {"weights": "other"}))
    with pytest.raises(DataError, match="is not of"):
        ship.ship(args, tmp_path / "weights")
    record.write_text(json.dumps(origin | {"weights": sha256(trained / "energy.safetensors")}))
    ship.ship(args, tmp_path / "weights")
    entry = shipped.lock(tmp_path / "weights")["models"]["small"]
    assert list(entry["rows"]) == ["nce-2d-kl"] and entry["commit"] == "abc"
    assert "NOT reproduced" in capsys.readouterr().out
    shipped.verified("small", tmp_path / "weights")


def test_raw_files_of_the_data_are_named():
    recipes = ROOT / "pipelines/recipes"
    load = ship.config.load
    assert ship.raw_files(load(recipes / "nce-2d.yaml")) == []
    assert "svhn.npz" in ship.raw_files(load(recipes / "igebm-cifar10-ood-bands.yaml"))
    digits = ship.raw_files(load(recipes / "digits.yaml"))
    assert "t10k-images-idx3-ubyte.gz" in digits and len(digits) == 4


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.0, "reproduced, the same bits"),
        (1.00002, "reproduced, other last digits"),
        (1.001, "NOT"),
    ],
)
def test_check_compares_four_digits(factor, verdict, monkeypatch, capsys):
    monkeypatch.setattr(check, "evaluate", evaluated(metrics_of("nce-2d", factor)))
    args = commands.parser().parse_args(["check", "nce-2d-kl", "nce-logz-error"])
    if verdict == "NOT":
        with pytest.raises(
            ResultsError, match=r"not reproduced: nce-2d-kl, nce-logz-error; .*torch"
        ):
            commands.check_rows(args)
    else:
        commands.check_rows(args)
    assert capsys.readouterr().out.count(f"verdict     {verdict}") == 2


def test_check_lists_rows_and_refuses_others(capsys):
    commands.check_rows(commands.parser().parse_args(["check"]))
    lines = capsys.readouterr().out
    assert all(word in lines for word in (*ROWS, *LOCK["models"]))
    with pytest.raises(ConfigError, match="mean 'nce-2d-kl'"):
        check.rows_by_model(["nce-2d-kk"])


def test_reports_of_a_shipped_model_are_those_of_its_recipe(tmp_path, monkeypatch, capsys):
    for name, entry in LOCK["models"].items():
        assert commands._recipe_reports(name) == ROOT / "reports" / entry["recipe"]
    monkeypatch.chdir(tmp_path)
    commands.report(commands.parser().parse_args(["report", "nce-2d", "--out", "page.html"]))
    assert (tmp_path / "page.html").exists()
    commands.recipes(commands.parser().parse_args(["recipes"]))
    assert "shipped as" in capsys.readouterr().out
    monkeypatch.setattr(lineage, "IS_CHECKOUT", False)
    with pytest.raises(ConfigError, match="nce-2d: an installed package has no reports"):
        commands.compare(commands.parser().parse_args(["compare", "nce-2d", "digits"]))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_reproduced_from_the_shipped_weights(row):
    """Every row of every model."""
    name = ROWS[row]
    try:
        (result,) = check.results(name, {row: LOCK["models"][name]["rows"][row]})
    except DataError as missing:
        pytest.skip(f"EBM_DATA_DIR: {missing}")
    assert result.is_reproduced, result
