"""Whether two commits compute the same bits, in a clone with a change committed: which recipe differs, and what is recorded."""

import json
import os
import re
import subprocess
import sys

import pytest

from ebm_dist.runs import code, provenance
from tests.helpers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TINY = {
    "dataset": {"name": "digits"},
    "comparison_datasets": {},
    "energy": {"name": "mlp", "hidden": [12, 8], "spectral_norm": True},
    "sampler": {"name": "langevin", "step_size": 0.02, "noise_scale": 0.1, "num_steps": 2},
    "objective": {"name": "contrastive_divergence", "energy_penalty": 0.01},
    "replay": {"capacity": 64, "reinit_prob": 0.1},
    "optimizer": {"lr": 1e-3},
    "train": {
        "num_steps": 20,
        "batch_size": 8,
        "num_shards": 2,
        "log_every": 5,
        "checkpoint_every": 10,
    },
    "evaluation": {"histogram": {}},
}
CHANGES = {  # (file, pattern of its first occurrence, replacement, what of the results differs)
    "learning rate": ("training/optim.py", r"config\.lr \* min\(", r"2 * config.lr * min(", "weights"),
    "batch order": ("data/loader.py", r"(\.permutation\([^\n]*\))\n", r"\1[::-1].copy()\n", "weights"),
    "exported power iterations": ("models/trained.py", r"iterate_power\((\w+), _POWER_ITERATIONS\)", r"iterate_power(\1, 3)", "exported energy.safetensors"),
}  # fmt: skip


@pytest.fixture
def clone(tmp_path):
    """A clone of this repository's HEAD, a parameter file outside it, and functions to commit an edit and to verify it."""
    folder, recipe = tmp_path / "clone", tmp_path / "tiny.yaml"
    recipe.write_text(json.dumps(TINY))  # JSON is YAML
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
    head = git(ROOT, "rev-parse", "HEAD")
    git(folder, "checkout", "--quiet", "--detach", head)

    def commit(file, pattern, replacement):
        path = folder / "ebm_dist" / file
        text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
        assert count, f"{file}: nothing like {pattern}"
        path.write_text(text)
        git(
            folder,
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "commit",
            "--quiet",
            "--all",
            "--message",
            "Edit",
        )

    def verify(*options):
        command = [
            sys.executable,
            "-m",
            "pipelines.verify",
            "HEAD~1",
            "HEAD",
            "--recipes",
            str(recipe),
            "--steps",
            "20",
            *options,
        ]
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return folder, commit, verify


def git(folder, *arguments):
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_bits_is_found(what, clone):
    folder, commit, verify = clone
    *change, differing = CHANGES[what]
    commit(*change)
    exit_code, output = verify("--record")
    line = next(line for line in output.splitlines() if "DIFFERS" in line)
    assert (
        exit_code == 1
        and "DIFFERS  tiny:" in line
        and differing in line
        and "error: tiny: other bits" in output
    ), output
    assert ("chains" in line) == (differing == "weights")
    assert not (folder / provenance.VERIFIED).exists()


def test_equal_bits_are_recorded_with_what_they_vouch_for(clone, monkeypatch):
    folder, commit, verify = clone
    commit("models/trained.py", r'"""', '"""Changed. ')
    exit_code, output = verify()
    assert exit_code == 0 and "equal    tiny" in output and "1 recipes are equal" in output, output
    assert not (folder / provenance.VERIFIED).exists()
    commit(
        "training/optim.py", r"config\.lr \* min\(", r"min(1.0, 2.0) * config.lr * min("
    )  # other code, the same bits
    exit_code, output = verify("--record")
    assert exit_code == 0, output
    (row,) = [json.loads(line) for line in (folder / provenance.VERIFIED).read_text().splitlines()]
    assert (row["from"], row["to"]) == tuple(
        git(folder, "rev-parse", commit) for commit in ("HEAD~1", "HEAD")
    )
    assert (
        row["recipes"] == ["tiny"]
        and row["steps"] == 20
        and row["versions"]["torch"]
        and row["hardware"]["cpu"]
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and len(row["sha256"]) == 64
    assert row["digests"].keys() == {"train tiny"}  # no suite reaches the learning rate
    old, new = row["digests"]["train tiny"]
    monkeypatch.setattr(code, "ROOT", folder)
    assert old != new and provenance.is_verified(old, new) and not provenance.is_verified(new, old)


def test_a_tree_of_another_layout_is_not_recorded(clone):
    folder, commit, verify = clone
    git(folder, "mv", "ebm_dist/training/reduce.py", "ebm_dist/training/comm.py")
    commit("training/trainer.py", r"ebm_dist\.training\.reduce", "ebm_dist.training.comm")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "revert", "--no-edit", "HEAD")
    exit_code, output = verify("--record")
    assert exit_code == 2 and "Traceback" not in output, output
    assert (
        "error: --record: the code at" in output
        and "another layout" in output
        and "training.reduce" in output
    )
