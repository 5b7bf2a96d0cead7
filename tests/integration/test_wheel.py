"""A wheel in an environment without the checkout: init and run in an empty folder."""

import csv
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from tests.helpers import copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def call(folder: Path, *command: str | Path, code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The commands of an environment with the wheel; other packages are those of the tests."""
    base = tmp_path_factory.mktemp("wheel")
    source = copy_project(base / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    call(source, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", base, ".")
    (wheel,) = base.glob("ebm_dist-*.whl")
    call(base, sys.executable, "-m", "venv", "--without-pip", "venv")
    environment = base / "venv"
    call(base, *pip, "--python", environment / "bin/python", "install", "--no-deps", wheel)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after the wheel
    place = "import ebm_dist, pipelines; print(ebm_dist.__file__, pipelines.__file__)"
    for path in call(base, environment / "bin/python", "-c", place).split():
        assert Path(path).is_relative_to(site)
    return environment / "bin"


def shorten(path: Path, **sections: dict) -> None:
    yaml = YAML()
    values = yaml.load(path)
    for name, section in sections.items():
        values[name].update(section)
    yaml.dump(values, path)


def stages_of(output: str) -> set[str]:
    return set(re.findall(r"Running stage '(.*)'", output))


def test_init_and_run_in_an_empty_folder(installed, tmp_path):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(200, 5)), rng.normal(size=(20, 5)) * 5])
    y = np.repeat(["in", "out"], [200, 20])
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["a", "b", "c", "d", "e", "y"])
        writer.writerows([*row, label] for row, label in zip(x.tolist(), y, strict=True))
    folder = tmp_path / "project"
    (folder / "pipelines").mkdir(parents=True)
    (folder / "pipelines/__init__.py").write_text("raise SystemExit('not the stages')")
    ebm = installed / "ebm-dist"
    output = call(folder, ebm, "init", "--data", tmp_path / "rows.csv", "--task", "anomaly")
    assert "out: test samples only" in output and "next        ebm-dist run" in output
    shorten(
        folder / "rows.yaml",
        train={"num_steps": 60, "checkpoint_every": 30},
        evaluation={"chains": {"num_chains": 8, "num_draws": 8}},
    )
    output = call(folder, ebm, "run")
    assert "models:/rows/1" in output and "report.html" in output
    assert "figure    AUROC of anomalies" in output
    assert (folder / "report.html").stat().st_size > 10_000
    metrics = json.loads((folder / "reports/rows/anomaly/metrics.json").read_text())
    assert metrics["auroc"] > 0.8
    metrics = json.loads((folder / "reports/rows/histogram/metrics.json").read_text())
    assert {"train", "test", "anomalies", "normal noise"} == set(metrics["mean_energy"])
    assert json.loads((folder / "reports/rows/train/run.json").read_text())["commit"] == ""

    # again: only what always runs
    assert stages_of(call(folder, ebm, "run")) == {"code", "sources"}

    # scores of new rows, from the folder and from the registry, in their order
    for number, model in enumerate(("models/rows/energy", "models:/rows/1")):
        out = folder / f"{number}.csv"
        call(folder, ebm, "score", model, tmp_path / "rows.csv", "--out", out)
        scores = [float(row["score"]) for row in csv.DictReader(out.open())]
        assert len(scores) == 220 and np.mean(scores[200:]) > np.mean(scores[:200]) + 3

    # an upgrade with other code of one suite: its stage is stale, and no other
    (site,) = installed.parent.glob("lib/python*/site-packages")
    suite = site / "ebm_dist/evaluation/histogram.py"
    suite.write_text(suite.read_text().replace("[0.05, 0.5, 0.95]", "[0.04, 0.5, 0.96]"))
    output = call(folder, ebm, "run")
    assert stages_of(output) == {"code", "sources", "evaluate@histogram", "register"}

    # a replaced file
    np.savetxt(tmp_path / "rows.csv", x[:200], delimiter=",", header="a,b,c,d,e", comments="")
    output = call(folder, ebm, "run", code=255)
    assert "dataset.anomalies names out" in output and "run again: ebm-dist run" in output


def test_shipped_models_in_an_empty_folder(installed, tmp_path):
    ebm = installed / "ebm-dist"
    assert "nce-2d-kl" in call(tmp_path, ebm, "check")
    assert "reproduced" in call(tmp_path, ebm, "check", "nce-2d-kl")
    sample = "import ebm_dist; print(ebm_dist.load('mnist-conditional').sample(16).shape)"
    assert "(16, 1, 28, 28)" in call(tmp_path, installed / "python", "-c", sample)
    call(tmp_path, ebm, "sample", "mnist-conditional", "--count", "10", "--steps", "5")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    output = call(tmp_path, ebm, "report", "nce-2d", code=2)
    assert "an installed package has no reports of recipes" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.png"]
