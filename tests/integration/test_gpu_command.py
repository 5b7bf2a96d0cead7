"""The rehearsal of the command for a GPU: every part at toy size on the CPU, kills and limits."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks import report
from benchmarks.gpu import parts
from benchmarks.gpu.job import Job, read_record
from ebm_dist import config
from ebm_dist.runs import cluster
from ebm_dist.training.reporter import Request
from tests.helpers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def command(out, *options):
    return [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(out), *options]


def call(out, *options, **environment):
    return subprocess.run(
        command(out, *options),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def records(out):
    return {name: read_record(out, name) for name in parts.PARTS}


def test_every_part_runs_and_a_killed_training_goes_on(tmp_path):
    killed = call(tmp_path, EBM_FAULT="checkpoint.begin:3:kill")
    before = records(tmp_path)
    assert killed.returncode == 1, killed.stderr
    assert {name: record["status"] for name, record in before.items()} == {
        "tests": "complete",
        "igebm-cifar10": "failed",
        "precision": "skipped",
        "langevin": "complete",
        "stackedmnist-1000": "failed",
        "stackedmnist-10000": "failed",
    }
    assert before["igebm-cifar10"]["error"] == "killed by signal 9"
    assert "needs the model of part igebm-cifar10" in before["precision"]["error"]

    resumed = call(tmp_path)
    after = records(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert {record["status"] for record in after.values()} == {"complete"}
    assert not [name for name, record in after.items() if "error" in record]
    assert after["tests"] == before["tests"] and after["langevin"] == before["langevin"]
    # of checkpoints at 0 (for rollbacks), 4, 8, 12 and at 4, 8, 12: the one before the kill
    last_saved = {"igebm-cifar10": 4, "stackedmnist-1000": 8, "stackedmnist-10000": 8}
    for name, step in last_saved.items():
        first, second = after[name]["calls"]
        assert (first["from_step"], second["from_step"]) == (0, step), name
        assert after[name]["num_steps"] == after[name]["num_steps_wanted"] == 12
    suites = after["igebm-cifar10"]["suites"]
    assert set(suites) == set(config.load(parts.RECIPES / "igebm-cifar10.yaml").evaluation)
    assert suites["samples"]["metrics"]["fid_clf"] > 0
    assert 0 <= suites["ood"]["metrics"]["mean_auroc"] <= 1
    assert after["stackedmnist-1000"]["suites"]["modes"]["metrics"]["modes"] >= 1
    assert [row["precision"] for row in after["precision"]["rows"]] == ["float32", "bfloat16"]
    assert {row["work"] for row in after["langevin"]["rows"]} == {"sampling", "training step"}
    table = list(report.langevin(after["langevin"]))  # it can be reports/benchmarks/gpu.json
    assert sum("MNIST CNN" in line for line in table) == 2
    assert set(after["tests"]["tests"].values()) == {"PASSED"}
    assert (tmp_path / "igebm-cifar10-samples.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_is_out_of_time_is_evaluated_and_goes_on(tmp_path, monkeypatch):
    run = parts.PARTS["igebm-cifar10"].run

    def job():
        return Job("igebm-cifar10", tmp_path, tmp_path / "work", time.time() + 300, is_toy=True)

    class Impatient(parts.Until):
        def requested(self):
            self.count = getattr(self, "count", 0) + 1
            return Request.STOP if self.count > 5 else Request.NOTHING

    with monkeypatch.context() as patch:
        patch.setattr(parts, "Until", Impatient)
        assert not run(job())
    first = read_record(tmp_path, "igebm-cifar10")
    assert (first["num_steps"], first["num_steps_wanted"]) == (5, 12)
    assert {suite["num_steps"] for suite in first["suites"].values()} == {5}
    card = json.loads((tmp_path / "work/igebm-cifar10/model/model.json").read_bytes())
    assert card["num_steps"] == 5

    assert run(job())
    second = read_record(tmp_path, "igebm-cifar10")
    assert second["calls"][1]["from_step"] == 5 and second["num_steps"] == 12
    assert {suite["num_steps"] for suite in second["suites"].values()} == {12}
    (folder,) = (tmp_path / "work/igebm-cifar10/runs").iterdir()
    params = parts.params_of(job(), "igebm-cifar10", {})  # stage train would only export it
    assert cluster.is_finished(folder, second["run_digest"], params.train)


def test_a_part_ends_at_its_limit_and_with_the_command(tmp_path):
    limited = call(tmp_path, "--only", "langevin", "--minutes", "0.1")  # 6 s: imports take most
    assert limited.returncode == 0, limited.stderr
    assert read_record(tmp_path, "langevin")["status"] in ("partial", "complete")

    parent = subprocess.Popen(command(tmp_path / "killed", "--only", "igebm-cifar10"), cwd=ROOT)
    deadline = time.time() + 60
    while not (tmp_path / "killed/igebm-cifar10.json").exists() and time.time() < deadline:
        time.sleep(0.1)
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child.wait(30)
    assert not child.is_running()
