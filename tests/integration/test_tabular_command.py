"""The command for tables with anomalies, on a real Ray cluster."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ebm_dist.errors import DataError
from pipelines import tabular
from tests.helpers import ROOT


@pytest.fixture
def tables(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "tables").mkdir()
    for name, shift in (("1_near", 1.0), ("2_far", 8.0)):
        y = (np.arange(120) < 20).astype(int)
        x = rng.normal(size=(120, 3)) + shift * y[:, None]
        np.savez(tmp_path / f"tables/{name}.npz", X=x, y=y)
    return tmp_path


def command(folder, *names, protocol="leak_free"):
    call = [sys.executable, "-m", "pipelines.tabular", "--sets", "tables", "--seeds", "2"]
    call += ["--out", "out", "--detectors", *names]
    call += ["--protocol", protocol]
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        call, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_table_and_seed_is_a_task_and_a_second_call_goes_on(tables):
    done = command(tables, "1 neighbour", "Mahalanobis")
    assert done.returncode == 0, done.stderr
    assert "4 of 4" in done.stdout and "leak_free: 2 tables" in done.stdout
    content = json.loads((tables / "out/metrics.json").read_text())
    assert [(t["table"], t["seed"]) for t in content["tasks"]] == [
        ("1_near", 0), ("1_near", 1), ("2_far", 0), ("2_far", 1),
    ]  # fmt: skip
    far = content["tasks"][2]["scores"]
    assert far["1 neighbour"]["auroc"] > 0.99 and far["Mahalanobis"]["auprc"] > 0.99
    means = [t["scores"]["Mahalanobis"]["auroc"] for t in content["tasks"]]
    assert content["detectors"]["Mahalanobis"]["auroc"] == pytest.approx(np.mean(means))
    assert (tables / "out/ranks.png").read_bytes().startswith(b"\x89PNG")
    assert "reported" not in content and len(content["tasks"][0]["code"]) == 64
    again = command(tables, "1 neighbour", "Mahalanobis")
    assert again.returncode == 0 and " of 4" not in again.stdout
    more = command(tables, "Mahalanobis", "ECOD")
    assert more.returncode == 0 and "4 of 4" in more.stdout
    after = json.loads((tables / "out/metrics.json").read_text())
    assert set(after["detectors"]) == {"1 neighbour", "Mahalanobis", "ECOD"}
    assert after["detectors"]["Mahalanobis"] == content["detectors"]["Mahalanobis"] | {
        "rank": after["detectors"]["Mahalanobis"]["rank"]
    }
    other = command(tables, "Mahalanobis", protocol="contaminated")
    assert other.returncode == 4 and "has protocol leak_free" in other.stderr
    rng = np.random.default_rng(1)
    np.savez(tables / "tables/2_far.npz", X=rng.normal(size=(90, 3)), y=(np.arange(90) < 9) + 0)
    changed = command(tables, "Mahalanobis")
    assert changed.returncode == 0 and "2 of 2" in changed.stdout
    (tables / "tables/1_near.npz").unlink()
    fewer = command(tables, "Mahalanobis")
    assert "leak_free: 1 tables" in fewer.stdout
    (tables / "tables/3_broken.npz").write_bytes(b"no archive")
    broken = command(tables, "Mahalanobis")
    assert broken.returncode == 4 and "3_broken.npz: is no .npz" in broken.stderr
    assert len(json.loads((tables / "out/metrics.json").read_text())["tasks"]) == 4


def task(table, seed, **scores):
    rows = {name: {"auroc": v, "auprc": v / 2, "seconds": 1.0} for name, v in scores.items()}
    return {"table": table, "seed": seed, "scores": rows}


def test_a_summary_has_means_ranks_and_paired_intervals():
    tasks = [
        task("a", 0, EnergyDetector=0.9, other=0.8),
        task("a", 1, EnergyDetector=0.7, other=0.8),
        task("b", 0, EnergyDetector=0.9, other=0.5),
        {"table": "c", "seed": 0, "scores": {}},
    ]
    found = tabular.summary(tasks)
    ours, other = found["detectors"]["EnergyDetector"], found["detectors"]["other"]
    assert found["num_tables"] == 2
    assert ours["auroc"] == pytest.approx(0.85) and other["auprc"] == pytest.approx(0.325)
    assert ours["rank"] == 1.25 and other["rank"] == 1.75  # the first table is a tie
    assert other["behind"]["mean"] == pytest.approx(0.2)
    assert other["behind"]["interval"][0] < 0 < other["behind"]["interval"][1]
    tasks[0]["scores"]["new"] = tasks[0]["scores"]["other"]  # of a call that was interrupted
    assert set(tabular.summary(tasks)["detectors"]) == {"EnergyDetector", "other"}
    with pytest.raises(DataError, match="no table has normal rows and anomalies"):
        tabular.summary(tasks[3:])
    assert "+20.00" in "\n".join(tabular.lines("leak_free", found))
