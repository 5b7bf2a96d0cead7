"""DVC prepares own files again when their bytes change, wherever they are."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests.helpers import copy_project
from tests.integration.test_main_job import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PARAMS = """
recipe: own.yaml
dataset: {name: arrays, path: own.npz}
comparison_datasets:
  pictures: {name: arrays, path: pictures, test_fraction: 1.0, val_fraction: 0.0}
"""


def write(folder: Path, value: int) -> None:
    """Write images of ten times the value: bytes of 0 and 1 are taken for binary data."""
    np.savez(folder / "own.npz", images=np.full((40, 8, 8), 10 * value, np.uint8))


def draw(folder: Path, value: int) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    for i in range(4):
        Image.new("L", (8, 8), 10 * value).save(folder / f"pictures/{i}.png")


def repro(folder: Path, *targets: str, **environment: str) -> set[str]:
    """Run DVC and return the stages that ran."""
    code, output = finish(folder, "dvc", "repro", *targets, **environment)
    assert code == 0, output
    return {name.rpartition(":")[2] for name in re.findall(r"Running stage '(.*)'", output)}


def mean_of(folder: Path, name: str) -> float:
    index = json.loads((folder / "data/main" / name / "index.json").read_text())
    return round(next(iter(index["statistics"].values()))["mean"] * 25.5)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone whose job prepares an own file, found by EBM_DATA_DIR, and a folder of images."""
    folder = copy_project(tmp_path_factory.mktemp("clone"))
    (folder / "params.yaml").write_text(PARAMS.replace("own.yaml", "params.yaml"))
    return folder


def test_a_replaced_file_is_prepared_again(project, tmp_path):
    write(tmp_path, 1)
    draw(project, 2)
    environment = {"EBM_DATA_DIR": str(tmp_path)}
    assert repro(project, "prepare", **environment) == {"sources", "prepare"}
    assert repro(project, "prepare", **environment) == {"sources"}
    assert str(tmp_path) not in (project / "dvc.lock").read_text()
    write(tmp_path, 3)
    assert repro(project, "prepare", **environment) == {"sources", "prepare"}
    assert (mean_of(project, "dataset"), mean_of(project, "pictures")) == (3, 2)
    draw(project, 4)
    assert repro(project, "prepare", **environment) == {"sources", "prepare"}
    assert (mean_of(project, "dataset"), mean_of(project, "pictures")) == (3, 4)
    # another user with another file under the same name, and the run cache of both
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", 5)
    assert repro(project, "prepare", EBM_DATA_DIR=str(tmp_path / "other")) == {"sources", "prepare"}
    assert mean_of(project, "dataset") == 5
    assert repro(project, "prepare", **environment) == {"sources"}  # the cached run of these bytes
    assert mean_of(project, "dataset") == 3


def test_a_recipe_on_own_files_too(project):
    (project / "pipelines/recipes/own.yaml").write_text(
        "base: digits.yaml\ndataset: {name: arrays, path: own.npz}\ncomparison_datasets: {}\n"
        "evaluation: {chains: {}}\nregister: {model: own, gates: []}\n"
    )
    write(project, 1)
    assert finish(project, sys.executable, "-m", "pipelines.digests")[0] == 0
    target = "pipelines/recipes/dvc.yaml:prepare@own"
    assert repro(project, target) == {"sources@own", "prepare@own"}
    assert repro(project, target) == {"sources@own"}
    write(project, 2)
    assert repro(project, target) == {"sources@own", "prepare@own"}


def test_overrides_as_documented(tmp_path):
    """The forms in docs/howto/run.md, and the one that DVC refuses."""
    folder = copy_project(tmp_path)
    (folder / "dvc.lock").unlink()  # it has outputs that this clone has not
    write(folder, 1)
    shown = (folder / "docs/howto/run.md").read_text()
    forms = [
        shlex.split(line)[4:]
        for line in shown.splitlines()
        if line.startswith("dvc exp run dvc.yaml") and "arrays" in line
    ]
    assert len(forms) == 2
    for form in forms:
        words = [word.replace("my.npz", "own.npz") for word in form]
        code, output = finish(folder, "dvc", "exp", "run", *words, "prepare")
        assert code == 0, output
        values = YAML(typ="safe", pure=True).load(folder / "params.yaml")
        assert values["dataset"] == {"name": "arrays", "path": "own.npz"}
        assert mean_of(folder, "dataset") == 1
        assert finish(folder, "git", "checkout", "params.yaml")[0] == 0
    form = ["-S", "dataset={name: arrays, path: own.npz}"]
    code, output = finish(folder, "dvc", "exp", "run", *form, "prepare")
    assert code and "Could not override 'dataset'" in output
