"""Lineage of a result: digests of settings, data and code, the git commit, the hashes of DVC."""

import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebm_dist.config import TRAINING, Params
from ebm_dist.runs import code

ROOT = code.ROOT
IS_CHECKOUT = (ROOT / "pyproject.toml").exists()
"""An installed package may lie inside another project's repository, whose commit is not its own."""


CADENCE = (
    "log_every",
    "checkpoint_every",
    "validate_every",
    "max_energy",
    "max_rollbacks",
    "cache",
)
"""Keys of ``train`` that decide when a run reports, saves or gives up, not what a step computes.
They may be changed while it is interrupted."""


def run_digest(params: Params, data_digest: str) -> str:
    """Return the digest that names a training run.

    Two trainings with the same settings, data and code have the same digest and share one run. The
    keys :data:`CADENCE` are not part of it.
    """
    return _digest(params, data_digest, CADENCE)


def open_ended_digest(params: Params, data_digest: str) -> str | None:
    """Return the digest shared by runs that differ only in the number of steps.

    Return None if the number of steps decides what a step computes: a learning rate or a weight
    that changes with the share of the training, or tasks in sequence.
    """
    follows_length = (
        params.optimizer.warmup
        or params.optimizer.decay
        or params.train.num_tasks > 1
        or params.objective.follows_length
    )
    return None if follows_length else _digest(params, data_digest, (*CADENCE, "num_steps"))


def _digest(params: Params, data_digest: str, left_out: tuple[str, ...]) -> str:
    values = params.as_dict(*TRAINING)
    values["train"] = {k: v for k, v in values["train"].items() if k not in left_out}
    return _sha256([values, data_digest, code.train_digest(params)])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def git_state() -> dict[str, str]:
    """Return the commit, and whether files differ from it.

    A job on a cluster has no repository; there it is the commit that the submitter names in
    ``EBM_GIT_COMMIT``.
    """

    def git(*arguments: str) -> str | None:
        if not IS_CHECKOUT:
            return None
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        named = os.environ.get("EBM_GIT_COMMIT")
        return {"git.commit": named} if named else {}
    return {
        "git.commit": commit,
        "git.dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower(),
    }


def code_commit() -> str:
    """Return the commit of the code, with a ``+`` if the code differs from it, "" if unknown."""
    state = git_state()
    commit = state.get("git.commit", "")
    dirty = subprocess.run(
        [
            "git",
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "ebm_dist",
            "pipelines/*.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return commit + ("+" if dirty and "git.dirty" in state else "")


def recorded_in(path: Path) -> str:
    """Return the commit that last changed a file, "" if unknown."""
    done = subprocess.run(
        ["git", "log", "-1", "--format=%H", "--", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def recorded_on(folder: Path) -> dict[str, str]:
    """Return day and commit that last changed metrics in each sub-folder, ``YYYY-MM-DD commit``.

    Sub-folders that are not in git are absent.
    """
    command = ["git", "log", "--format=%x00%cs %h", "--name-only", "--relative", "--"]
    try:
        done = subprocess.run(
            [*command, "*/metrics.json"], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:  # no such folder, or no git
        return {}
    changes = dict[str, str]()
    for entry in done.stdout.split("\0")[1:]:  # the latest first
        change, *paths = entry.splitlines()
        for path in filter(None, paths):
            changes.setdefault(Path(path).parts[0], change)
    return changes


def dvc_hashes(lock: Path) -> dict[str, str]:
    """Return the hash of each output in a ``dvc.lock``; empty if the file is missing."""
    if not lock.exists():
        return {}
    stages = (YAML(typ="safe", pure=True).load(lock.read_text()) or {}).get("stages", {})
    return {
        f"dvc.{out['path']}": out.get("md5", "")
        for stage in stages.values()
        for out in stage.get("outs", [])
    }


def device_name(kind: str) -> str:
    """Return the name of the GPU for ``cuda``, of the processor for ``cpu``."""
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else _processor()


def hardware() -> dict[str, Any]:
    """Return the processor, available cores, memory in GiB, and the name of the GPU if any."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    cores = len(os.sched_getaffinity(0))
    return {"cpu": _processor(), "cores": cores, "memory_gib": round(memory), **gpu}


def _processor() -> str:
    """Return the processor with what decides last bits: its generation and instruction set."""
    import torch

    known: dict[str, str] = {}
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines() if ":" in line)
        known = {key.strip(): value.strip() for key, _, value in pairs}
    name = known.get("model name") or platform.processor() or platform.machine()
    kind = [f"{key} {known[key]}" for key in ("cpu family", "model") if key in known]
    return f"{name} ({', '.join([*kind, torch.backends.cpu.get_cpu_capability()])})"
