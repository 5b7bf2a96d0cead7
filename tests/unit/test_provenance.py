"""Which edits of the code change which digest, and when a committed result is stale."""

import ast
import functools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.errors import DataError
from ebm_dist.files import write_json
from ebm_dist.runs import code, lineage, provenance
from tests import helpers
from tests.helpers import ROOT

SETTINGS = {
    "plain": {},
    "compiled": {"train": {"compile": True}},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "ddp": {"train": {"reduce": "ddp"}},
    "mala": {"sampler": {"name": "mala"}},
}
SUITES = ("histogram", "samples", "classification")

TRAIN = {f"train {name}" for name in SETTINGS}
EVALUATE = {f"evaluate {name} {suite}" for name in SETTINGS for suite in SUITES}
METRICS = {f"metrics {name} {suite}" for name in SETTINGS for suite in SUITES}
COMPILED = {
    name for name in TRAIN | EVALUATE | METRICS if " compiled" in name or " bfloat16" in name
}

# what is edited: (file, pattern of its first occurrence, replacement)
SAME = {
    "docstring of a module": ("models/trained.py", r'"""', r'"""Changed. '),
    "docstring of a function": ("data/loader.py", r'(def batch\(.*?""")', r"\1Changed. "),
    "comment": ("training/optim.py", r"\nclass Config:", r"\n# changed\nclass Config:"),
    "annotations of a function": ("training/optim.py", r"def average_of\(player: nn.Module\) -> nn.Module", r"def average_of(player: object)"),
    "annotation of a variable": ("training/optim.py", r"(def learning_rate\(.*?\n    \w+) = ", r"\1: float = "),
    "annotation of a constant": ("models/trained.py", r"\n_POWER_ITERATIONS = ", r"\n_POWER_ITERATIONS: int = "),
    "message of an error": ("models/trained.py", r'(raise DataError\(\s*f?")', r"\1Changed: "),
    "log line": ("training/checkpoint.py", r'(log\.warning\(\s*")', r"\1Changed: "),
    "definition that nothing reaches": ("training/optim.py", r"\ndef average_of\(", r"\ndef unused():\n    return 1\n\n\ndef average_of("),
}  # fmt: skip

# and the digests that change
CHANGES = {
    "batch order": ("data/loader.py", r"(\.permutation\([^\n]*\))\n", r"\1[::-1].copy()\n", TRAIN),
    "learning rate": ("training/optim.py", r"config\.lr \* min\(", r"2 * config.lr * min(", TRAIN),
    "exported power iterations": ("models/trained.py", r"iterate_power\((\w+), _POWER_ITERATIONS\)", r"iterate_power(\1, 3)", TRAIN),
    "suite": ("evaluation/histogram.py", r"\[0\.05, ", r"[0.06, ", {name for name in EVALUATE | METRICS if name.endswith("histogram")}),
    "colour of lines": ("report/figures.py", r"#0b6fb8", r"#0b6fb9", {name for name in EVALUATE if "samples" not in name}),
    "resolution of figures": ("report/figures.py", r"_DPI = \d+", r"_DPI = 90", EVALUATE),
    "compiled chains": ("chains/compiled.py", r"(class CompiledChains\(Chains\):\n)", r"\1    changed = True\n", COMPILED),
    "layers of compiled chains": ("chains/cpu_layers.py", r"_MOST_INPUTS = \d+", r"_MOST_INPUTS = 99", COMPILED),
    "DDP": ("training/reduce.py", r"broadcast_buffers=False", r"broadcast_buffers=True", {"train ddp"}),
    "plugin": ("samplers/mala.py", r"step_size: Positive = [\d.]+", r"step_size: Positive = 0.3", {name for name in TRAIN | EVALUATE | METRICS if " mala" in name}),
    "data set": ("datasets/digits.py", r"\nclass Config:\n", r"\nclass Config:\n    changed: int = 1\n", {"prepare"}),
}  # fmt: skip


@functools.cache
def digests(root):
    out = {
        "prepare": code.prepare_digest(helpers.params(), root),
        "classifier": code.classifier_digest(root),
    }
    for name, sections in SETTINGS.items():
        chosen = helpers.params(**sections)
        out[f"train {name}"] = code.train_digest(chosen, root)
        for suite in SUITES:
            out[f"evaluate {name} {suite}"] = code.evaluate_digest(chosen, suite, root=root)
            out[f"metrics {name} {suite}"] = code.evaluate_digest(
                chosen, suite, figures=False, root=root
            )
    return out


@pytest.fixture
def tree(tmp_path):
    shutil.copytree(
        ROOT / "ebm_dist", tmp_path / "ebm_dist", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def edit(tree, file, pattern, replacement):
    path = tree / "ebm_dist" / file
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert count, f"{file}: nothing like {pattern}"
    ast.parse(text)
    path.write_text(text)


@pytest.mark.parametrize("what", SAME)
def test_an_edit_that_changes_no_result_changes_no_digest(what, tree):
    edit(tree, *SAME[what])
    assert digests(tree) == digests(ROOT)


@pytest.mark.parametrize("what", CHANGES)
def test_an_edit_changes_the_digests_of_what_reaches_it_and_no_other(what, tree):
    *change, expected = CHANGES[what]
    edit(tree, *change)
    before, after = digests(ROOT), digests(tree)
    assert {name for name in before if before[name] != after[name]} == expected


def test_a_function_that_moves_to_another_module_changes_no_digest(tree):
    optim, trainer = tree / "ebm_dist/training/optim.py", tree / "ebm_dist/training/trainer.py"
    source = optim.read_text()
    (function,) = (
        node for node in ast.parse(source).body if getattr(node, "name", "") == "average_of"
    )
    text = ast.get_source_segment(source, function)
    optim.write_text(source.replace(text, ""))
    moved = f"import copy\n\nfrom torch import nn\n\n\n{text}\n"
    (tree / "ebm_dist/training/averages.py").write_text(moved)
    assert trainer.read_text().count("optim.average_of(") == 1
    edit(tree, "training/trainer.py", r"optim\.average_of\(", r"averages.average_of(")
    edit(
        tree,
        "training/trainer.py",
        r"\nimport torch\n",
        r"\nimport torch\nfrom ebm_dist.training import averages\n",
    )
    assert digests(tree) == digests(ROOT)
    averages = tree / "ebm_dist/training/averages.py"
    averages.write_text(moved.replace("(False)", "(True)"))
    changed = tree / "changed"
    shutil.copytree(tree / "ebm_dist", changed / "ebm_dist")  # digests are cached by folder
    before, after = digests(ROOT), digests(changed)
    assert {name for name in before if before[name] != after[name]} == TRAIN


def test_a_root_that_does_not_exist_is_no_empty_digest(tree):
    (tree / "ebm_dist/samplers/mala.py").rename(tree / "ebm_dist/samplers/other.py")
    code.train_digest(helpers.params(), tree)
    with pytest.raises(KeyError, match=r"ebm_dist\.samplers\.mala"):
        code.train_digest(helpers.params(sampler={"name": "mala"}), tree)


@pytest.fixture
def verified(tmp_path, monkeypatch):
    """Writes ``verified.jsonl`` with one row of changes."""
    monkeypatch.setattr(code, "ROOT", tmp_path)
    path = tmp_path / provenance.VERIFIED
    path.parent.mkdir()

    def write(*pairs):
        with path.open("a") as out:
            out.write(
                json.dumps({"digests": {str(i): pair for i, pair in enumerate(pairs)}}) + "\n"
            )

    return write


def test_verified_changes_lead_from_one_digest_to_another(verified):
    assert provenance.is_verified("a1", "a1") and not provenance.is_verified("a1", "b2")
    verified(["a1", "b2"], ["x1", "x2"])
    verified(["b2", "c3"], ["c3", "a1"])
    assert provenance.is_verified("a1", "c3") and provenance.is_verified("b2", "a1")
    assert not provenance.is_verified("c3", "x2") and not provenance.is_verified("x2", "x1")
    assert provenance.is_verified("a1", "c") and not provenance.is_verified(
        "", "c"
    )  # as code.yaml shortens them


@pytest.fixture
def results(tmp_path):
    """A recipe of two seeds and one suite with reports of this code: the recipe, its reports, and an edit of a record."""
    recipe, reports = tmp_path / "tiny.yaml", tmp_path / "reports"
    recipe.write_text(
        json.dumps(helpers.values() | {"num_seeds": 2, "evaluation": {"histogram": {}}})
    )  # JSON is YAML
    weights = {}
    for seed in range(2):
        file = tmp_path / f"{seed}.safetensors"
        file.write_bytes(bytes([seed]))
        record = provenance.of_training(config.load(recipe, seed=seed), "data")
        record |= provenance.of_record(tmp_path / "no-run", file)
        weights[seed] = record["weights"]
        write_json(reports / f"tiny/train/{seed}" / provenance.RUN, record)
    write_json(
        reports / "tiny/histogram" / provenance.RUN,
        provenance.of_suite(config.load(recipe), "histogram", "data", weights),
    )

    def change(folder, **values):
        path = reports / "tiny" / folder / provenance.RUN
        write_json(path, json.loads(path.read_text()) | values)

    return recipe, reports, change


def test_a_result_of_this_code_is_current(results):
    recipe, reports, change = results
    status = provenance.status(recipe, "histogram", reports)
    assert (
        status.reasons == ()
        and status.commit == json.loads((reports / "tiny/histogram/run.json").read_text())["commit"]
    )
    row = {"recipes": ["tiny"], "metric": "histogram.train_test_gap"}
    assert provenance.of_row(row, recipe.parent, reports) == status
    change("histogram", code="of another figure")  # no metric depends on it
    assert provenance.status(recipe, "histogram", reports).reasons == ()


@pytest.mark.parametrize(
    ("folder", "values", "reason"),
    [
        ("histogram", {"metrics_code": "0"}, "suite histogram: the code has changed"),
        ("histogram", {"params": "0"}, "suite histogram: the settings have changed"),
        ("train/1", {"code": "0"}, "training of seed 1: the code has changed"),
        ("train/1", {"params": "0"}, "training of seed 1: the settings have changed"),
        ("train/1", {"prepare": "0"}, "seed 1: the code that prepares the data has changed"),
        ("train/1", {"weights": "0"}, "seed 1: the suite saw other weights"),
    ],
)
def test_a_result_is_stale_for_a_reason(folder, values, reason, results):
    recipe, reports, change = results
    change(folder, **values)
    assert provenance.status(recipe, "histogram", reports).reasons == (reason,)
    row = {"recipes": ["tiny", "tiny"], "metric": "histogram.train_test_gap"}
    assert provenance.of_row(row, recipe.parent, reports).reasons == (f"tiny: {reason}",) * 2


def test_a_verified_change_makes_a_result_current(results, verified):
    recipe, reports, change = results
    change("train/0", code="0" * 64)
    assert provenance.status(recipe, "histogram", reports).reasons
    verified(["0" * 64, code.train_digest(config.load(recipe))])
    assert provenance.status(recipe, "histogram", reports).reasons == ()


def test_results_from_before_provenance_are_stale(results):
    recipe, reports, _ = results
    (reports / "tiny/train/1/run.json").write_text(json.dumps({"seconds": 3.0, "run_digest": "0"}))
    assert provenance.status(recipe, "histogram", reports).reasons == (
        "seed 1: trained before provenance was recorded",
    )
    (reports / "tiny/train/1/run.json").unlink()
    assert provenance.status(recipe, "histogram", reports).reasons == (
        "seed 1: trained before provenance was recorded",
    )
    (reports / "tiny/histogram/run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json"):
        provenance.status(recipe, "histogram", reports)
    (reports / "tiny/histogram/run.json").unlink()
    status = provenance.status(recipe, "histogram", reports)
    assert status == ("", ("made before provenance was recorded",))


def test_a_suite_from_before_provenance_is_stale(results):
    recipe, reports, _ = results
    (reports / "tiny/histogram/run.json").write_text(json.dumps({"seconds": 3.0}))
    assert provenance.status(recipe, "histogram", reports).reasons == (
        "made before provenance was recorded",
    )


@pytest.mark.parametrize(
    ("folder", "values"),
    [
        ("histogram", {"code": None}),
        ("histogram", {"weights": "0"}),
        ("histogram", {"params": ["x"]}),
        ("histogram", {"metrics_code": {}}),
        ("train/1", {"prepare": None}),
        ("train/1", {"weights": {}}),
    ],
)
def test_a_malformed_record_is_one_message(results, folder, values):
    recipe, reports, change = results
    change(folder, **values)
    with pytest.raises(DataError, match=r"run\.json: expected a record with commit, code, params"):
        provenance.status(recipe, "histogram", reports)
    (reports / "tiny" / folder / provenance.RUN).write_text("3")
    with pytest.raises(DataError, match=r"run\.json: expected a record"):
        provenance.status(recipe, "histogram", reports)


def test_a_lock_that_claims_a_code_without_a_run_is_a_fault(results, verified):
    _, reports, change = results
    root, lock = reports.parent, reports.parent / "dvc.lock"
    train, suite = (
        json.loads((reports / "tiny" / name / "run.json").read_text())["code"]
        for name in ("train/0", "histogram")
    )

    def stage(folder, key, digest, *more):
        return {
            "cmd": "python",
            "params": {"pipelines/code.yaml": {key: digest[:16]}},
            "outs": [
                *({"path": path} for path in more),
                {"path": f"reports/tiny/{folder}/metrics.json", "md5": "0"},
            ],
        }

    def faults(**stages):
        content = {
            "prepare@tiny": {
                "cmd": "python",
                "params": {"pipelines/code.yaml": {"prepare.tiny": "0"}},
                "outs": [{"path": "data"}],
            },
            "train@tiny-0": stage(
                "train/0", "train.tiny", train, "reports/tiny/train/0/curves.csv"
            ),
            "evaluate@tiny-histogram": stage("histogram", "evaluate.tiny.histogram", suite),
        } | {name.replace("_", "@"): value for name, value in stages.items()}
        YAML().dump({"schema": "2.0", "stages": content}, lock)
        return list(provenance.lock_faults(lock, root))

    assert faults() == []
    claimed = "c" * 64
    (fault,) = faults(train_other=stage("train/1", "train.tiny", claimed))
    assert (
        fault
        == f"{lock}: other claims code {'c' * 16}, of which reports/tiny/train/1/run.json is no run"
    )
    (fault,) = faults(train_other=stage("train/2", "train.tiny", claimed))
    assert "reports/tiny/train/2/run.json is no run" in fault
    (fault,) = faults(evaluate_other=stage("histogram", "evaluate.tiny.histogram", claimed))
    assert "other claims code" in fault
    verified([train, claimed])
    assert faults(train_other=stage("train/1", "train.tiny", claimed)) == []
    change("train/1", code="0" * 64)
    assert len(faults(train_other=stage("train/1", "train.tiny", claimed))) == 1


def test_the_record_names_the_kind_of_cpu_that_decides_the_last_bits():
    kind = lineage.hardware()["cpu"]
    assert kind.endswith(f"{torch.backends.cpu.get_cpu_capability()})")
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "cpu family" in cpuinfo.read_text():
        assert re.search(r"\(cpu family \d+, model \d+, ", kind)
