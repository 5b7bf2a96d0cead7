"""The search for real: Ray Tune over Ray Train, MLflow, DVC, Chromium, in a copy of the project with small settings; and F15."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.runs.record import FileReporter
from ebm_dist.search import scores, space, trials
from ebm_dist.search.trials import Trial
from ebm_dist.training import checkpoint
from ebm_dist.training.reduce import LocalComm
from tests import helpers, pages
from tests.helpers import copy_project
from tests.integration.test_main_job import command_of, descendants, finish, kill, start

pytestmark = pytest.mark.timeout(600)

TUNE = {
    "space": {"sampler.step_size": {"log": [1e-3, 1.0]}, "objective.energy_penalty": {"log": [1e-3, 1.0]}},
    "num_trials": 5, "num_steps": 90, "num_samples": 100, "final_seeds": 2, "final_steps": 60,
}  # fmt: skip
COMMAND = (
    sys.executable,
    "-m",
    "pipelines.tune",
    "--data",
    "data/main",
    "--classifier",
    "model/classifier",
    "--out",
    "reports/tune",
)


def change(folder: Path, **sections: dict) -> None:
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    for name, section in sections.items():
        values.setdefault(name, {}).update(section)
    yaml.dump(values, folder / "params.yaml")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A copy of the project with data and classifier."""
    folder = copy_project(tmp_path_factory.mktemp("prepared"))
    change(folder, energy={"hidden": [32, 16]}, tune=TUNE)
    code, output = finish(folder, "dvc", "repro", "classifier")
    assert code == 0, output
    return folder


def fresh(prepared: Path, folder: Path, **sections: dict) -> Path:
    made = {"runs", "mlruns", "mlflow.db"}  # at the top: the package has a folder runs too
    shutil.copytree(
        prepared,
        folder,
        dirs_exist_ok=True,
        ignore=lambda path, names: made & set(names) if Path(path) == prepared else set(),
    )
    change(folder, **sections)
    return folder


@pytest.fixture(scope="module")
def searched(prepared, tmp_path_factory):
    """A search in which two of five trials must diverge, and what it printed."""
    space = TUNE["space"] | {"optimizer.lr": {"choice": [1e-3, 1e-3, 1e30]}}
    folder = fresh(prepared, tmp_path_factory.mktemp("searched"), tune={"space": space})
    code, output = finish(folder, *COMMAND)
    assert code == 0, output
    return folder, output


def trials_of(folder: Path, phase: str = "search") -> list[Trial]:
    (path,) = (folder / "runs" / "tune").glob(f"*/{phase}*.json")
    return trials.read_trials(path.read_bytes())


@pytest.mark.slow
def test_a_search_ends_with_a_verdict_and_nothing_else(searched):
    folder, output = searched
    assert (
        "Traceback" not in output
        and "(pid=" not in output
        and "WARNING" not in output
        and "╭" not in output
    ), output
    assert (
        "FID-clf against the validation split, 60 steps, 2 seeds" in output
        and "dvc exp run dvc.yaml -S recipe=tuned.yaml" in output
    )
    metrics = json.loads((folder / "reports/tune/metrics.json").read_text())
    trials = trials_of(folder)
    assert {t.state for t in trials} <= {"finished", "stopped", "diverged"} and metrics[
        "num_trials"
    ] == 5
    wild = [t for t in trials if t.values["optimizer.lr"] > 1]
    assert wild and all(
        t.state == "diverged" and "not finite" in t.reason and t.step == 10 for t in wild
    )
    assert all(t.state != "diverged" for t in trials if t not in wild)
    scores = {t.index: t.rows[-1]["fid_clf"] for t in trials if t not in wild}
    assert metrics["best"]["trial"] == min(scores, key=scores.get) and metrics[
        "num_diverged"
    ] == len(wild)
    assert len((folder / "reports/tune/trials.csv").read_text().splitlines()) == 6
    for name in ("parallel.png", "surface.png", "best.png"):
        assert np.asarray(Image.open(folder / "reports/tune/plots" / name).convert("L")).std() > 15
    assert not list((folder / "runs").glob("*/step-*")), (
        "a search must not touch the runs of the pipeline"
    )


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_says_the_same(searched):
    folder, _ = searched
    before, began = (folder / "reports/tune/metrics.json").read_bytes(), time.monotonic()
    code, output = finish(folder, *COMMAND)
    assert code == 0 and time.monotonic() - began < 60, output
    assert (folder / "reports/tune/metrics.json").read_bytes() == before


@pytest.mark.slow
def test_mlflow_has_a_parent_and_a_child_for_each_trial(searched):
    folder, _ = searched
    script = f"""
import json, mlflow
mlflow.set_tracking_uri("sqlite:///{folder}/mlflow.db")
client = mlflow.MlflowClient()
(experiment,) = client.search_experiments(filter_string="name = 'ebm-dist'")
(parent,) = client.search_runs([experiment.experiment_id], "tags.`ebm.kind` = 'search'")
children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{{parent.info.run_id}}'")
wild = client.search_runs([experiment.experiment_id], "params.`optimizer.lr` = '1e+30' and tags.`ebm.diverged` = 'true'")
good = client.search_runs([experiment.experiment_id], "metrics.`search/fid_clf` > 0 and tags.`ebm.phase` = 'search'")
files = [f.path for d in ("", "plots") for f in client.list_artifacts(parent.info.run_id, d)]
steps = {{run.info.run_name: [m.step for m in client.get_metric_history(run.info.run_id, "search/fid_clf")] for run in good}}
print(json.dumps(dict(children=[[c.info.run_name, c.info.status, c.data.tags, c.data.params, c.data.metrics] for c in children],
    wild=[w.info.status for w in wild], files=files, parent=[parent.info.status, parent.data.params, parent.data.metrics], steps=steps)))
"""
    code, output = finish(folder, sys.executable, "-c", script)
    assert code == 0, output
    found = json.loads(output.splitlines()[-1])
    trials, finals = trials_of(folder), trials_of(folder, "final")
    assert len(found["children"]) == len(trials) + len(finals) == 9
    assert found["wild"] == ["FAILED"] * sum(t.state == "diverged" for t in trials)
    assert {
        "metrics.json",
        "trials.csv",
        "plots/parallel.png",
        "plots/surface.png",
        "plots/best.png",
    } <= set(found["files"])
    assert (
        found["parent"][0] == "FINISHED"
        and found["parent"][2]["search/best"] > 0
        and found["parent"][1]["tune.scheduler"] == "asha"
    )
    for trial in trials:
        rungs = [row["step"] for row in trial.rows if "fid_clf" in Trial.scores(row)]
        assert not rungs or sorted(found["steps"][f"search-{trial.index:04d}"]) == rungs
    for _, _, tags, params, _ in found["children"]:
        assert tags["ebm.state"] and "seed" in params and "num_steps" in params


@pytest.mark.slow
def test_one_command_adopts_what_was_found_and_retrains(searched, tmp_path):
    """The printed command, here up to the trained model; and a plain ``dvc repro`` starts no search."""
    folder = tmp_path / "adopted"
    shutil.copytree(searched[0], folder, ignore=shutil.ignore_patterns("runs"))
    (folder / "dvc.lock").unlink()  # it knows of outputs that only the whole pipeline makes
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "searched"],
        cwd=folder,
        check=True,
    )
    code, output = finish(folder, "dvc", "exp", "run", "-S", "recipe=tuned.yaml", "train")
    assert code == 0, output
    trained = json.loads((folder / "model/energy/model.json").read_text())
    compared = json.loads((folder / "reports/tune/metrics.json").read_text())["comparison"]
    own = config.load(folder / "params.yaml").sampler.step_size
    expected = compared["values"]["sampler.step_size"] if compared["is_better"] else own
    assert (
        trained["params"]["sampler"]["step_size"] == expected
        and trained["num_steps"] == helpers.SMALL_PIPELINE["train"]["num_steps"]
    )
    assert "pipelines.tune" not in output


def pids(process: subprocess.Popen, name: str) -> list[int]:
    return [pid for pid in descendants(process.pid) if name in command_of(pid)]


def started_at(pid: int) -> int:
    """When a process started, in clock ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.slow
def test_trials_that_crash_hang_and_are_killed_and_a_driver_that_is_killed(prepared, tmp_path):
    """F15: the rest finish, nothing deadlocks, the best is right, and what was resumed has the scores of an undisturbed training."""
    folder = fresh(
        prepared, tmp_path / "faults", cluster={"max_failures": 0, "timeout_s": 30},
        tune={"scheduler": "none", "num_trials": 9, "num_steps": 300, "num_rungs": 2, "final_seeds": 1},
        train={"checkpoint_every": 20}, energy={"hidden": [128, 128]},
    )  # fmt: skip

    def states() -> list[str]:
        with contextlib.suppress(AssertionError, ValueError):
            return [t.state for t in trials_of(folder)]
        return []

    process = start(folder, *COMMAND)
    try:
        crashed = pages.wait_for(lambda: pids(process, "RayTrainWorker"))[0]
        pages.wait_for(lambda: list(folder.glob("runs/tune/*/search/*/*/step-*")))
        os.kill(crashed, signal.SIGKILL)  # a trial crashes
        hung = pages.wait_for(
            lambda: [pid for pid in pids(process, "RayTrainWorker") if pid != crashed]
        )[0]
        os.kill(hung, signal.SIGSTOP)  # another hangs
        pages.wait_for(
            lambda: [pid for pid in pids(process, "RayTrainWorker") if pid not in (crashed, hung)]
        )
        os.kill(
            max(pids(process, "ImplicitFunc"), key=started_at), signal.SIGKILL
        )  # a third, as the kernel does when memory is short
        pages.wait_for(lambda: states().count("failed") == 3)
        pages.wait_for(lambda: "finished" in states() and "running" in states())
    finally:
        kill(process)  # and the driver, with all its processes
    before = trials_of(folder)
    code, output = finish(folder, *COMMAND)
    assert code == 0 and "Traceback" not in output, output
    after = trials_of(folder)
    assert [t.state for t in after].count("failed") == 3 and [t.state for t in after].count(
        "finished"
    ) == 6
    for old, new in zip(before, after, strict=True):
        assert not old.is_over or (old.state, old.rows, old.reason) == (
            new.state,
            new.rows,
            new.reason,
        )
    reasons = " ".join(t.reason for t in after)
    assert reasons.count("worker 0 failed") == 2 and "its process ended" in reasons
    scores = {t.index: t.rows[-1]["fid_clf"] for t in after if t.state == "finished"}
    assert json.loads((folder / "reports/tune/metrics.json").read_text())["best"]["trial"] == min(
        scores, key=scores.get
    )
    (resumed, *_) = [
        n
        for o, n in zip(before, after, strict=True)
        if o.state == "running" and n.state == "finished"
    ]
    assert undisturbed(folder, resumed, tmp_path / "alone") == resumed.rows[-1]["fid_clf"]


@pytest.mark.slow
def test_a_search_whose_code_changes_ends_and_goes_on_when_the_code_is_restored(prepared, tmp_path):
    """Trials run in processes that start later than the search: none may run the new code."""
    folder = fresh(prepared, tmp_path / "changed", tune={"scheduler": "none", "num_trials": 4, "max_concurrent": 1})  # fmt: skip
    sampler = folder / "ebm_dist/samplers/langevin.py"
    original = sampler.read_text()
    process = start(folder, *COMMAND)
    try:
        pages.wait_for(lambda: list(folder.glob("runs/tune/*/search/*/*/step-*")))
        sampler.write_text(original.replace("alpha=config.noise_scale", "alpha=2.0"))
        output, _ = process.communicate(timeout=300)
    finally:
        kill(process)
    assert process.returncode == 6 and "the code changed while this training went on" in output
    assert "Traceback" not in output, output
    states = [trial.state for trial in trials_of(folder)]
    assert "failed" not in states and set(states) != {"finished"}, states
    sampler.write_text(original)
    code, output = finish(folder, *COMMAND)
    assert code == 0, output
    assert {trial.state for trial in trials_of(folder)} == {"finished"}


def undisturbed(folder: Path, trial: Trial, run: Path) -> float:
    """The last score of a trial that trains in this process, from the beginning."""
    params = config.load(folder / "params.yaml")
    chosen = space.trial_params(
        params, trial.values, trial.seed, trial.num_steps, params.tune.rungs[0]
    )
    torch.set_num_threads(1)
    helpers.build(chosen, folder / "data/main/dataset", LocalComm(), "alone").fit(
        run, FileReporter(run)
    )
    own = scores.Scorer(
        chosen.as_dict(), str(folder / "data/main/dataset"), str(folder / "model/classifier"), "alone", (trial.num_steps,),
        params.tune.num_samples,
    )  # fmt: skip
    return own.score(checkpoint.latest(run, "alone"))["fid_clf"]


@pytest.mark.drill
def test_pbt_hands_on_weights_and_chains_to_the_bit(prepared, tmp_path):
    folder = fresh(
        prepared,
        tmp_path / "pbt",
        tune={
            "scheduler": "pbt",
            "num_trials": 4,
            "num_steps": 30,
            "num_rungs": 2,
            "final_seeds": 1,
        },
    )
    code, output = finish(folder, *COMMAND)
    assert code == 0 and "Traceback" not in output, output
    trials = trials_of(folder)
    assert all(t.state == "finished" and t.step == 30 for t in trials)
    heirs = [
        note
        for path in folder.glob("runs/tune/*/search/*/trial.json")
        if "from" in (note := json.loads(path.read_text()))
    ]
    assert heirs, "no trial went on from another"
    given = [
        json.loads(path.read_text())
        for path in folder.glob("runs/tune/*/ray/search/*/checkpoint_*/manifest.json")
    ]
    for note in heirs:
        (run,) = folder.glob(f"runs/tune/*/search/*/{note['digest'][:16]}")
        own = json.loads((run / f"step-{note['inherited']:08d}" / checkpoint.MANIFEST).read_text())
        # a trial that PBT paused hands the same checkpoint to Tune again when it goes on
        donors = [
            m
            for m in given
            if (m["digest"], m["step"]) == (note["from"]["digest"], note["from"]["step"])
        ]
        assert (
            donors
            and all(own["files"] == donor["files"] for donor in donors)
            and own["digest"] != note["from"]["digest"]
        )
        assert sum(name.startswith("chains-") for name in own["files"]) == 4


@pytest.mark.drill
def test_optuna_proposes_and_a_search_with_it_resumes(prepared, tmp_path):
    pytest.importorskip("optuna")
    folder = fresh(prepared, tmp_path / "optuna", tune={"search": "optuna", "final_seeds": 1})
    process = start(folder, *COMMAND)
    try:
        pages.wait_for(
            lambda: (
                list(folder.glob("runs/tune/*/search.json"))
                and any(t.is_over for t in trials_of(folder))
            )
        )
    finally:
        kill(process)
    before = trials_of(folder)
    code, output = finish(folder, *COMMAND)
    assert code == 0 and "Traceback" not in output, output
    after = trials_of(folder)
    assert all(t.state in ("finished", "stopped") and t.values for t in after)
    assert all(
        old.values == new.values for old, new in zip(before, after, strict=True) if old.values
    )
    assert len({t.values["sampler.step_size"] for t in after}) == 5


@pytest.mark.slow
def test_the_mlflow_page_shows_parent_children_and_pictures(searched, tmp_path):
    """In a headless Chromium; the screenshots stay in EBM_ARTIFACTS, if that is set."""
    browser = pages.browser()
    folder, _ = searched
    port = pages.free_port()
    address = f"http://127.0.0.1:{port}"
    server = start(folder, *pages.mlflow_server(folder, port))
    try:
        pages.wait_for(lambda: pages.answers(address))
        experiment = pages.post(
            address, "experiments/search", {"max_results": 10, "filter": "name = 'ebm-dist'"}
        )["experiments"][0]["experiment_id"]
        runs = pages.post(
            address,
            "runs/search",
            {"experiment_ids": [experiment], "filter": "tags.`ebm.kind` = 'search'"},
        )["runs"]
        parent = runs[0]["info"]
        page = f"{address}/#/experiments/{experiment}/runs"
        addresses = {"runs": page, "parent": f"{page}/{parent['run_id']}"}
        addresses |= {
            name: f"{addresses['parent']}/artifacts/plots/{name}.png"
            for name in ("surface", "parallel")
        }
        kept = Path(os.environ.get("EBM_ARTIFACTS", tmp_path))
        kept.mkdir(parents=True, exist_ok=True)
        texts = {
            name: pages.look(browser, page, kept / f"mlflow-{name}.png", tmp_path / name)
            for name, page in addresses.items()
        }
    finally:
        kill(server)
    assert parent["run_name"] in texts["runs"]
    assert (
        all(f"search-{t.index:04d}" in texts["parent"] for t in trials_of(folder))
        and "final-0000" in texts["parent"]
    )
    assert "tuned values are better" in texts["parent"] or "nothing better" in texts["parent"]
    assert "plots/surface.png" in texts["surface"] and "plots/parallel.png" in texts["parallel"]
    for name in addresses:
        picture = np.asarray(Image.open(kept / f"mlflow-{name}.png").convert("L"))
        assert picture.shape == (900, 1400) and picture.std() > 10
