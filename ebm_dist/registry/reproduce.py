"""Reproduce a registered version from its code, settings and data, to the same weights."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ebm_dist.config import TRAINING
from ebm_dist.errors import DataError
from ebm_dist.files import sha256
from ebm_dist.registry import versions
from ebm_dist.runs.lineage import ROOT


def again(uri: str) -> Iterator[str]:
    """Prepare the data and train again; yield a line per step.

    ``uri`` is ``models:/name@alias`` or ``models:/name/version``. The code is that of the version's
    commit if this repository has it, else the present code. Raise :class:`DataError` if data or
    weights differ.
    """
    card, commit = versions.origin(uri)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        has_commit = bool(commit) and _succeeds(
            "git", "worktree", "add", "--detach", str(folder / "code"), commit
        )
        root = folder / "code" if has_commit else ROOT
        try:
            yield (
                f"code      commit {commit}"
                if has_commit
                else "code      present code: this repository does not have the version's commit"
            )
            settings = folder / "params.yaml"
            settings.write_text(
                json.dumps({name: card["params"][name] for name in TRAINING})
            )  # JSON is YAML
            _stage(root, "prepare", params=settings, out=folder / "data")
            _check_equal("data", sha256(folder / "data/dataset/index.json"), card["data_digest"])
            yield f"data      {card['data_digest'][:16]}, the same bytes"
            report, runs = folder / "report", folder / "runs"
            _stage(
                root,
                "train",
                params=settings,
                data=folder / "data",
                out=folder / "model",
                report=report,
                runs=runs,
            )
            _check_equal(
                "weights",
                sha256(folder / "model/energy.safetensors"),
                card["sha256"]["energy.safetensors"],
            )
            yield f"weights   {card['sha256']['energy.safetensors'][:16]}, the same bits"
        finally:
            if has_commit:
                _succeeds("git", "worktree", "remove", "--force", str(root))


def _stage(root: Path, name: str, **options: Path) -> None:
    arguments = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{options['params'].parent}/mlflow.db",
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-m", f"pipelines.{name}", *arguments]
    # an installed package reads the user's files from the working directory
    cwd = root if (root / "pyproject.toml").exists() else None
    done = subprocess.run(command, cwd=cwd, env=environment, check=False)
    if done.returncode:
        raise DataError(
            f"stage {name} ended with exit code {done.returncode}; its message is above"
        )


def _check_equal(what: str, reproduced: str, registered: str) -> None:
    if reproduced != registered:
        raise DataError(
            f"{what} differ: {reproduced[:16]} here, {registered[:16]} registered; other versions"
            " of packages or another processor give other last bits: compare with the hardware and"
            " requirements of the version"
        )


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
