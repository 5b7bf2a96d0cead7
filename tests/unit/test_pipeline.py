"""The pipeline's files against the code: what a stage imports is what it depends on."""

import ast
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.errors import CodeChangedError, ConfigError
from ebm_dist.runs import cluster, code, lineage, record
from pipelines import digests
from tests.helpers import ROOT, params

STAGES = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
RECIPE_STAGES = YAML(typ="safe", pure=True).load((ROOT / "pipelines/recipes/dvc.yaml").read_text())[
    "stages"
]


def test_the_generated_files_are_of_this_code_and_these_recipes():
    for path, content in ((digests.CODE, digests.digests()), (digests.ROWS, digests.rows())):
        assert (ROOT / path).read_bytes() == digests.encode(content), (
            f"{path}: run python -m pipelines.digests"
        )


@pytest.mark.parametrize("stages", [STAGES, RECIPE_STAGES], ids=["main job", "recipes"])
def test_each_stage_depends_on_the_digest_of_its_code(stages):
    known = YAML(typ="safe", pure=True).load((ROOT / digests.CODE).read_text())
    for name, stage in stages.items():
        if stage.get("do", stage).get("always_changed"):
            continue
        params = stage.get("do", stage)["params"]
        (key,) = next(
            entry["pipelines/code.yaml"] for entry in params if "pipelines/code.yaml" in entry
        )
        comparisons = dict.fromkeys(("benchmark", "accept_reject"), "train")  # train in a process
        kind = ({"results": "register"} | comparisons).get(name, name)
        assert key.startswith((f"any.{kind}", f"{kind}.${{item.recipe}}")), name
        assert kind in known["any"]


def test_every_suite_of_the_parameter_file_is_a_stage():
    assert STAGES["evaluate"]["matrix"]["suite"] == list(
        config.load(ROOT / "params.yaml").evaluation
    )


def test_rows_name_the_sections_of_a_recipe_and_of_its_base(tmp_path):
    folder = tmp_path / digests.RECIPES
    folder.mkdir(parents=True)
    shutil.copy(ROOT / digests.RECIPES / "meg-8gaussians.yaml", folder)
    (folder / "mine.yaml").write_text(
        "base: meg-8gaussians.yaml\nnum_seeds: 2\noptimizer: {lr: 1.0e-4}\nevaluation: {density: {}}\nregister: {model: mine}\n"
    )
    rows = digests.rows(tmp_path)
    assert [row for row in rows["train"] if row.startswith("mine")] == ["mine-0", "mine-1"]
    row = rows["train"]["mine-0"]
    assert (
        row["file"].endswith("mine.yaml")
        and set(row["keys"]) == {"optimizer"}
        and len(row["keys"]) == 7
    )
    assert row["base"].endswith("meg-8gaussians.yaml") and set(row["base_keys"]) == set(
        config.TRAINING[1:]
    )
    assert rows["evaluate"]["mine-density"]["file"].endswith("mine.yaml")
    assert (
        rows["prepare"]["mine"]["file"] == rows["prepare"]["mine"]["base"]
    )  # it says nothing of data: the base does


@pytest.fixture
def checkout(tmp_path):
    """What a stage checks: the package, the digests of its code, the parameter file."""
    shutil.copytree(
        ROOT / "ebm_dist", tmp_path / "ebm_dist", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "params.yaml", tmp_path)
    content = {
        "train": code.train_digest(None, tmp_path)[:16],
        "evaluate": {"samples": code.evaluate_digest(None, "samples", root=tmp_path)[:16]},
    }
    (tmp_path / digests.CODE).parent.mkdir()
    (tmp_path / digests.CODE).write_bytes(
        digests.encode({"any": content, "train": {}, "evaluate": {}})
    )
    yield tmp_path
    code.forget()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_stage_refuses_digests_that_are_not_of_its_code(checkout):
    digests.check("train", checkout / "params.yaml", root=checkout)
    edit(checkout / "ebm_dist/data/loader.py", "divmod(step *", "divmod(2 * step *")
    code.forget()
    with pytest.raises(
        ConfigError, match=r"is not of this code \(stage train\); run python -m pipelines.digests"
    ):
        digests.check("train", checkout / "params.yaml", root=checkout)


def test_a_stage_fails_at_its_end_if_code_or_settings_changed_meanwhile(checkout):
    """DVC would record what is on the disk at the end for results of what was there before."""
    path = checkout / "params.yaml"
    checks = {
        "evaluate": digests.check("evaluate", path, "samples", checkout),
        "train": digests.check("train", path, None, checkout),
    }
    for file, old, new, stages in (
        ("ebm_dist/data/loader.py", "divmod(step *", "divmod(2 * step *", ["train"]),
        ("ebm_dist/data/loader.py", "\n\n\nclass", "\n\n\n# a comment\nclass", []),
        ("params.yaml", "batch_size: 128", "batch_size: 256", ["train"]),
        ("params.yaml", "num_samples: 1000", "num_samples: 500", ["evaluate"]),
        ("params.yaml", "seed: 0", "sede: 0", ["evaluate", "train"]),
    ):
        before = (checkout / file).read_bytes()
        edit(checkout / file, old, new)
        failed = []
        for stage, check_unchanged in checks.items():
            try:
                check_unchanged()
            except CodeChangedError:
                failed.append(stage)
        assert failed == stages, (file, new)
        (checkout / file).write_bytes(before)
    for check_unchanged in checks.values():
        check_unchanged()


def test_data_alone_pass_the_check_of_stage_prepare(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("dataset: {name: digits}\n")
    digests.check("prepare", path)()
    with pytest.raises(ConfigError, match="energy: a name is needed"):
        digests.check("train", path)


def test_train_depends_on_the_sections_that_make_the_digest():
    (entry,) = (entry for entry in STAGES["train"]["params"] if "${recipe}" in entry)
    assert entry == {"${recipe}": list(config.TRAINING)}


def test_the_run_digest_changes_with_settings_data_and_code_only(digits_data, monkeypatch):
    index = shards.read_index(digits_data)
    base = lineage.run_digest(params(), index.digest)
    assert lineage.run_digest(params(cluster={"workers": 1}), index.digest) == base
    assert lineage.run_digest(params(optimizer={"lr": 2e-3}), index.digest) != base
    assert lineage.run_digest(params(), "other") != base
    monkeypatch.setattr(code, "train_digest", lambda params: "other")
    assert lineage.run_digest(params(), index.digest) != base


def test_nothing_that_is_read_can_run_code():
    banned_calls = {"eval", "exec", "compile", "__import__"}
    for path in [*(ROOT / "ebm_dist").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not names & {
                    "pickle",
                    "cloudpickle",
                    "joblib",
                    "dill",
                    "shelve",
                    "marshal",
                }, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in banned_calls | {
                    "torch.load",
                    "torch.save",
                    "yaml.load",
                    "os.system",
                }, f"{path}: {called}"
                for keyword in node.keywords:
                    text = f"{keyword.arg}={ast.unparse(keyword.value)}"
                    assert text not in ("shell=True", "allow_pickle=True"), f"{path}: {text}"


def test_nothing_happens_at_import(tmp_path):
    code = "import ebm_dist, ebm_dist.runs.cluster, ebm_dist.runs.tracking, ebm_dist.registry.versions, ebm_dist.search.driver, pipelines.train, pipelines.register, pipelines.tune, sys; print('ray' in sys.modules, 'mlflow' in sys.modules)"
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


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("sources", ("torch", "matplotlib", "ray", "mlflow")),
        ("train", ("torch._dynamo", "matplotlib", "ray", "mlflow")),
    ],
)
def test_a_stage_imports_what_it_needs(tmp_path, module, absent):
    code = f"""import sys, pathlib
import pipelines.{module}, ebm_dist.config
needed = {{"needed": ebm_dist.config.DATA, "skips_others": True}} if {module == "sources"} else {{}}
ebm_dist.config.load({str(ROOT / "params.yaml")!r}, **needed)
print(*[name for name in {absent} if name in sys.modules])"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_what_ray_leaves_running_is_ended(monkeypatch):
    left = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(cluster, "_workers", lambda: [psutil.Process(left.pid)])
    cluster.disconnect()
    assert left.wait(timeout=10) == -signal.SIGKILL


def test_the_record_has_the_watts_of_a_gpu_that_tells_them(tmp_path, monkeypatch):
    reporter = cluster.RayReporter(tmp_path, 0)
    reporter.metrics({"step": 1}, 2.0)
    monkeypatch.setattr("torch.cuda.power_draw", lambda: 512_000)
    reporter.metrics({"step": 2}, 4.0)
    assert [row.get("watts") for row in record.read_lines(tmp_path / record.METRICS)] == [
        None,
        512.0,
    ]
