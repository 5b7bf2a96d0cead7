"""Own files are inputs of the pipeline: their SHA-256, and parameter files of data alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebm_dist import config
from ebm_dist.errors import ConfigError, DataError
from pipelines import digests, prepare, sources
from tests.helpers import ROOT

OTHERS = """
comparison_datasets:
  few: {name: few_labels, of: {name: arrays, path: %s}}
  photos: {name: photos}
"""


def written(folder: Path, value: int = 1) -> Path:
    np.savez(folder / "own.npz", images=np.full((40, 8, 8), value, np.uint8))
    return folder / "own.npz"


def params_of(folder: Path, text: str) -> config.Params:
    (folder / "own.yaml").write_text(text)
    return config.load(folder / "own.yaml", needed=config.DATA)


def test_the_digests_are_of_the_bytes_of_own_files_nested_ones_too(tmp_path):
    path = written(tmp_path)
    text = f"dataset: {{name: arrays, path: {path}}}\n" + OTHERS % path
    before = sources.digests(params_of(tmp_path, text))
    assert set(before) == {"dataset", "few"} and before["dataset"] == before["few"]
    assert sources.digests(params_of(tmp_path, text)) == before
    written(tmp_path, 2)
    assert sources.digests(params_of(tmp_path, text)) != before
    assert sources.digests(params_of(tmp_path, "dataset: {name: digits}\n")) == {}


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path):
    pictures = tmp_path / "pictures/a"
    pictures.mkdir(parents=True)
    for name in ("1.png", "2.png"):
        Image.new("L", (4, 4), 3).save(pictures / name)
    seen = {sources.digest(tmp_path / "pictures")}
    (pictures / "2.png").rename(pictures / "3.png")
    seen.add(sources.digest(tmp_path / "pictures"))
    Image.new("L", (4, 4), 4).save(pictures / "3.png")
    seen.add(sources.digest(tmp_path / "pictures"))
    assert len(seen) == 3


def test_a_file_is_looked_for_in_the_data_folder_and_its_place_is_not_in_the_digest(
    tmp_path, monkeypatch
):
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        written(folder)
        monkeypatch.setenv("EBM_DATA_DIR", str(folder))
        found.append(sources.digests(params_of(tmp_path, "dataset: {name: arrays, path: own.npz}")))
    assert found[0] == found[1]
    (tmp_path / "two/own.npz").unlink()
    with pytest.raises(DataError, match=r"own.npz: no such file or folder; set dataset.path"):
        sources.digests(params_of(tmp_path, "dataset: {name: arrays, path: own.npz}"))


def test_the_stages_of_a_recipe_on_own_files_depend_on_their_digest(tmp_path):
    folder = tmp_path / digests.RECIPES
    folder.mkdir(parents=True)
    whole = (ROOT / digests.RECIPES / "digits.yaml").read_text()
    (folder / "digits.yaml").write_text(whole)
    (folder / "own.yaml").write_text(
        "base: digits.yaml\ndataset: {name: arrays, path: own.npz}\n"
        "register: {model: own, gates: []}\n"
    )
    rows = digests.rows(tmp_path)
    place = {"digests": "data/own.sources.json", "digests_key": sources.KEY}
    assert rows["sources"] == {"own": {"recipe": "own", **place}}
    assert rows["prepare"]["own"].items() >= place.items()
    assert rows["prepare"]["digits"]["digests"] == str(digests.CODE)
    assert b"sources: {}\n" in digests.encode({"sources": {}})


def test_data_are_prepared_with_a_parameter_file_of_data_alone(tmp_path, monkeypatch):
    (tmp_path / "data.yaml").write_text("dataset: {name: photos}\n")
    monkeypatch.setattr(digests, "check", lambda *_: lambda: None)
    command = ["prepare", "--params", str(tmp_path / "data.yaml"), "--out", str(tmp_path / "data")]
    monkeypatch.setattr(sys, "argv", command)
    prepare.main()
    index = json.loads((tmp_path / "data/dataset/index.json").read_text())
    assert index["dataset"] == "photos"


def test_other_sections_are_checked_where_they_are_there(tmp_path):
    for text, key in (
        ("dataset: {name: digits}\nsampler: {name: langevan}\n", "sampler.name"),
        ("dataset: {name: arrays, path: x, val_fraction: 1.0}\n", "dataset.val_fraction"),
        ("energy: {name: mlp}\n", "dataset"),
    ):
        with pytest.raises(ConfigError, match=rf"own.yaml:\d: {key}: "):
            params_of(tmp_path, text)
    params_of(tmp_path, "dataset: {name: digits}\n")
    with pytest.raises(ConfigError, match="energy: a name is needed"):
        config.load(tmp_path / "own.yaml")


def test_data_that_no_suite_of_the_file_can_evaluate_are_refused(tmp_path, monkeypatch):
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("dataset: {name: digits}", "dataset: {name: toy2d}", 1)
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.setattr(digests, "check", lambda *_: lambda: None)
    command = ["prepare", "--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ConfigError, match=r"evaluation.histogram: .* drop comparison_datasets.pho"):
        prepare.main()
