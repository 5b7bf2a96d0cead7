"""What a result came from: digests of settings, data and code, the git commit, the hashes that DVC holds."""

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


def run_digest(params: Params, data_digest: str) -> str:
    """Names a training run: the same settings, data and code give the same digest, hence the same run."""
    return _sha256([params.digest(*TRAINING), data_digest, code.train_digest(params)])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def git_state() -> dict[str, str]:
    """Commit and whether files differ from it; in a job, which has no repository, the commit that the submitter names."""

    def git(*arguments: str) -> str | None:
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
    """Return the commit of the code, with a ``+`` where the code differs from it; empty where nothing tells."""
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
    """Return the commit that last changed a file; empty where nothing tells."""
    done = subprocess.run(
        ["git", "log", "-1", "--format=%H", "--", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def dvc_hashes(lock: Path) -> dict[str, str]:
    """Hash of every output that a ``dvc.lock`` holds; empty if there is none yet."""
    if not lock.exists():
        return {}
    stages = (YAML(typ="safe", pure=True).load(lock.read_text()) or {}).get("stages", {})
    return {
        f"dvc.{out['path']}": out.get("md5", "")
        for stage in stages.values()
        for out in stage.get("outs", [])
    }


def hardware() -> dict[str, Any]:
    """The machine, in words: processor, its cores at hand, memory, and a GPU's name if there is one."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory), **gpu}
