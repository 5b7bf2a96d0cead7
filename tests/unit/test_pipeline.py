"""The pipeline's files against the code: what a stage imports is what it depends on."""

import ast
import functools
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from ebm_dist import cluster, config, lineage, reporting
from tests.helpers import ROOT, params

STAGES = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
# found by name at run time, for every stage alike: the settings file's own checks, which change no result
CHECKS = {"ebm_dist/__init__.py", "ebm_dist/config.py", "ebm_dist/errors.py", "pipelines/__init__.py"}

FOLDERS = {"energies": "energy", "samplers": "sampler", "objectives": "objective"}


def deps(stage: str, suite: str = "samples") -> list[str]:
    return [dep.replace("${item.suite}", suite) for dep in STAGES[stage]["deps"]]


def covered(path: Path, listed: list[str]) -> bool:
    return str(path) in CHECKS or any(str(path) == dep or str(path).startswith(dep + "/") for dep in listed)


@pytest.mark.parametrize("stage", list(STAGES))
def test_deps_cover_what_a_stage_imports(stage):
    name = stage.split("@")[0]
    for suite in STAGES[stage]["matrix"]["suite"] if name == "evaluate" else [""]:
        roots = [f"pipelines.{name}", *([f"ebm_dist.evaluation.{suite}"] if suite else [])]
        missing = {str(p) for p in lineage.import_closure(*roots) if not covered(p, deps(stage, suite))}
        assert not missing, f"dvc.yaml: stage {stage} does not depend on {sorted(missing)}"


def test_editing_an_evaluation_retrains_nothing():
    for stage in ("prepare", "classifier", "train"):
        assert not any("evaluation" in dep or dep == "ebm_dist" for dep in deps(stage))
    assert not any("histogram" in dep for dep in deps("evaluate", "samples"))


def test_every_suite_of_the_parameter_file_is_a_stage():
    assert STAGES["evaluate"]["matrix"]["suite"] == list(config.load(ROOT / "params.yaml").evaluation)


def test_recipes_depend_on_their_own_plugins():
    stages = YAML(typ="safe", pure=True).load((ROOT / "pipelines/recipes/dvc.yaml").read_text())["stages"]
    closure = functools.cache(lineage.import_closure)
    data = {str(p) for p in closure("ebm_dist.shards")} | {"ebm_dist/checkpoint.py", "ebm_dist/reporting.py"}
    for item in stages["train"]["foreach"].values():
        chosen = config.load(ROOT / f"pipelines/recipes/{item['recipe']}.yaml")
        for section in ("energy", "sampler", "objective"):
            assert config.module_of(getattr(chosen, section)).__name__.rpartition(".")[2] == item[section], item
        listed = [dep.replace("${item.", "{").format(**item) for dep in stages["train"]["do"]["deps"]]
        modules = [module.__name__ for section in FOLDERS.values() for module in config.modules_of(getattr(chosen, section))]
        files = {str(p) for p in closure("ebm_dist.trainer", *modules)}
        assert not files - CHECKS - data - set(listed), "pipelines/recipes/dvc.yaml: stage train"


def test_train_depends_on_the_sections_that_make_the_digest():
    (entry,) = STAGES["train"]["params"]
    assert entry == {"${recipe}": list(config.TRAINING)}


def test_every_file_that_deps_name_exists():
    for stage in STAGES:
        assert all((ROOT / dep).exists() for dep in deps(stage) if dep.startswith(("ebm_dist", "pipelines")))


def test_the_run_digest_changes_with_settings_data_and_code_only(digits_data, monkeypatch):
    from ebm_dist import shards

    index = shards.read_index(digits_data)
    base = lineage.run_digest(params(), index.digest)
    assert lineage.run_digest(params(cluster={"workers": 1}), index.digest) == base
    assert lineage.run_digest(params(optimizer={"lr": 2e-3}), index.digest) != base
    assert lineage.run_digest(params(), "other") != base
    monkeypatch.setattr(lineage, "sha256", lambda path: "other")
    assert lineage.run_digest(params(), index.digest) != base


def test_the_code_digest_covers_the_mathematics_and_not_the_platforms():
    files = {str(p) for p in lineage.import_closure("ebm_dist.trainer")}
    assert {
        "ebm_dist/trainer.py",
        "ebm_dist/comm.py",
        "ebm_dist/replay.py",
        "ebm_dist/shards.py",
        "ebm_dist/energies/__init__.py",
    } <= files
    assert not {"ebm_dist/cluster.py", "ebm_dist/tracking.py", "ebm_dist/figures.py"} & files


def test_nothing_that_is_read_can_run_code():
    banned_calls = {"eval", "exec", "compile", "__import__"}
    for path in [*(ROOT / "ebm_dist").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not names & {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in banned_calls | {"torch.load", "torch.save", "yaml.load", "os.system"}, f"{path}: {called}"
                for keyword in node.keywords:
                    text = f"{keyword.arg}={ast.unparse(keyword.value)}"
                    assert text not in ("shell=True", "allow_pickle=True"), f"{path}: {text}"


def test_nothing_happens_at_import(tmp_path):
    import os
    import subprocess
    import sys

    code = "import ebm_dist, ebm_dist.cluster, ebm_dist.tracking, ebm_dist.registry, ebm_dist.search.tuning, pipelines.train, pipelines.register, pipelines.tune, sys; print('ray' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"] and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_what_ray_leaves_running_is_ended(monkeypatch):
    left = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(cluster, "_workers", lambda: [psutil.Process(left.pid)])
    monkeypatch.setattr(cluster, "_PATIENCE_S", 0.1)
    cluster.disconnect()
    assert left.wait(timeout=10) == -signal.SIGKILL


def test_the_record_has_the_watts_of_a_gpu_that_tells_them(tmp_path, monkeypatch):
    reporter = cluster.RayReporter(tmp_path, 0)
    reporter.metrics({"step": 1.0}, 2.0)
    monkeypatch.setattr("torch.cuda.power_draw", lambda: 512_000)
    reporter.metrics({"step": 2.0}, 4.0)
    assert [row.get("watts") for row in reporting.read_lines(tmp_path / reporting.METRICS)] == [None, 512.0]
