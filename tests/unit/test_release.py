"""What a release runs: all that is stale, the shortest first, whatever fails."""

import json
import subprocess
import sys

import pytest

from ebm_dist.errors import ResultsError
from ebm_dist.registry import shipped
from pipelines import ROOT, digests, release


@pytest.fixture
def called(monkeypatch):
    """The stages that are run, of three targets, of which one fails."""
    stages = []
    targets = [
        release.Target("results@long", "never run", None),
        release.Target("results@broken", "the code has changed", 10.0),
        release.Target("results@short", "the code has changed", 5.0),
    ]
    monkeypatch.setattr(release, "stale", lambda: targets)

    def repro(target):
        stages.append(target.removeprefix("pipelines/recipes/dvc.yaml:"))
        return "broken" not in target

    monkeypatch.setattr(release, "_repro", repro)

    def call(command, **_):
        stages.append(" ".join(command[2:]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(release, "outdated", lambda: [["nce-2d", "--seed", "0"]])
    monkeypatch.setattr(subprocess, "run", call)
    return stages


def test_the_shortest_first_and_a_failure_keeps_nobody_waiting(called, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["release"])
    with pytest.raises(ResultsError, match="results@broken: failed"):
        release.main()
    assert called[:4] == ["dvc.yaml", "results@short", "results@broken", "results@long"]
    assert called[4:] == [
        "benchmark",
        "accept_reject",
        "pipelines.results",
        "pipelines.pictures",
        "pipelines.ship nce-2d --seed 0",
    ]
    assert "3 targets, 0.0 hours and 1 of unknown length" in capsys.readouterr().out


def test_a_list_and_a_limit_of_time(called, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["release", "--list"])
    release.main()
    assert not called
    monkeypatch.setattr(sys, "argv", ["release", "--minutes", "0"])
    release.main()
    assert called == [
        "dvc.yaml",
        "pipelines.results",
        "pipelines.pictures",
        "pipelines.ship nce-2d --seed 0",
    ]


def test_results_without_a_run_are_stale(tmp_path, monkeypatch):
    recipes = {
        name: ROOT / f"pipelines/recipes/{name}.yaml" for name in ("digits", "igebm-cifar10")
    }
    monkeypatch.setattr(digests, "recipes", lambda root: recipes)
    monkeypatch.setattr(release, "_has_gpu", lambda: False)
    (tmp_path / "ebm_dist").symlink_to(ROOT / "ebm_dist")
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    found = list(release.stale(tmp_path))
    assert [target.stage for target in found] == [
        "results@digits",  # the other one waits for a GPU
        "tabular@leak_free",
        "tabular@published",
        "tabular@contaminated",
    ]
    assert all(target.seconds is None and target.reason == "never run" for target in found)


def test_models_that_were_trained_again_are_shipped_again(tmp_path):
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    assert not list(release.outdated(tmp_path))
    record = tmp_path / "reports/nce-2d/train/0/run.json"
    record.parent.mkdir(parents=True)
    models = shipped.lock(ROOT / "pipelines/weights")["models"]
    record.write_text(json.dumps({"commit": models["nce-2d"]["commit"]}))
    assert not list(release.outdated(tmp_path))
    record.write_text(json.dumps({"commit": "another"}))
    assert not list(release.outdated(tmp_path))  # trained on another machine
    (tmp_path / "models/nce-2d/0").mkdir(parents=True)
    assert list(release.outdated(tmp_path)) == [
        ["nce-2d", "--name", "nce-2d", "--seed", "0", "--no-classifier"]
    ]
