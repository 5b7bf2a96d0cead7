"""Checkpoints are scored on a spare CPU while training goes on, by real Ray Train."""

import os
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.config import Mismatch
from ebm_dist.errors import ConfigError
from ebm_dist.metrics import features
from ebm_dist.runs import record
from tests import helpers
from tests.helpers import ROOT, state_of

STEPS, EVERY = 40, 20


def stage(folder, *command):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("EBM", "RAY", "MLFLOW"))
    }
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def train(folder, name, validate_every, cpus=1.0, **more):
    sections = {
        "train": {"num_steps": STEPS, "checkpoint_every": 10, "validate_every": validate_every},
        "cluster": {"workers": 1, "cpus_per_worker": cpus},
        "features": {"num_steps": 30},
        **more,
    }
    path = folder / f"{name}.yaml"
    with path.open("w") as stream:
        YAML(typ="safe", pure=True).dump(helpers.params(**sections).as_dict(), stream)
    if not (folder / "data").exists():
        done = stage(folder, "pipelines.prepare", "--params", path, "--out", "data")
        assert done.returncode == 0, done.stderr
    places = ["--out", f"model-{name}", "--report", f"report-{name}", "--runs", f"runs-{name}"]
    done = stage(folder, "pipelines.train", "--params", path, "--data", "data", *places)
    runs = [run for run in (folder / f"runs-{name}").glob("*") if run.name != "ray"]
    return done, runs[0] if runs else None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_checkpoints_are_scored_while_training_goes_on_and_no_bit_changes(tmp_path):
    plain, run = train(tmp_path, "plain", 0)
    assert plain.returncode == 0 and "validation" not in plain.stdout, plain.stderr
    validated, other = train(tmp_path, "validated", EVERY)
    assert validated.returncode == 0, validated.stderr
    assert run.name == other.name and state_of(run) == state_of(other)
    rows = record.validations(other)
    assert [row["step"] for row in rows] == [20, 40]
    assert all(row["fid_clf"] > 0 for row in rows)
    assert f"after {min(rows, key=lambda row: row['fid_clf'])['step']} steps" in validated.stdout
    card = other / record.VALIDATION / "classifier" / features.CARD
    assert card.exists() and not record.validations(run)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_data_without_labels_are_scored_by_energies_alone(tmp_path):
    toy = {"name": "toy2d", "density": "8gaussians", "num_train": 512, "num_test": 200}
    done, run = train(tmp_path, "toy", EVERY, dataset=toy)
    assert done.returncode == 0 and "least FID-clf" not in done.stdout, done.stderr
    rows = record.validations(run)
    assert [row["step"] for row in rows] == [20, 40]
    assert all("fid_clf" not in row and row["abs_energy"] > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_without_a_spare_cpu_it_says_so_and_trains_nothing(tmp_path):
    done, run = train(tmp_path, "full", EVERY, cpus=len(os.sched_getaffinity(0)))
    assert done.returncode != 0 and "train.validate_every" in done.stderr, done.stderr
    assert run is None or not (run / record.METRICS).exists()


def test_validations_are_of_checkpoints():
    with pytest.raises((ConfigError, Mismatch), match=r"multiple of train\.checkpoint_every"):
        config.from_values(
            helpers.values(train={"checkpoint_every": 10, "validate_every": 15}), ROOT / "x"
        )
