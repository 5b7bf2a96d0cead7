"""A registered version made again from what it came from: its code, settings and data, to the same digest of weights."""

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
    """Prepare the data and train anew, saying what is done. Raises :class:`DataError` where anything comes out different.

    ``uri`` is ``models:/name@alias`` or ``models:/name/version``. Code is that of the version's commit, where this repository has
    it, else as it is here.
    """
    card, commit = versions.origin(uri)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        is_there = bool(commit) and _succeeds(
            "git", "worktree", "add", "--detach", str(folder / "code"), commit
        )
        root = folder / "code" if is_there else ROOT
        try:
            yield (
                f"code      commit {commit}"
                if is_there
                else "code      as it is here: this repository has not the version's commit"
            )
            settings = folder / "params.yaml"
            settings.write_text(
                json.dumps({name: card["params"][name] for name in TRAINING})
            )  # JSON is YAML
            _stage(root, "prepare", params=settings, out=folder / "data")
            _same("data", sha256(folder / "data/dataset/index.json"), card["data_digest"])
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
            _same(
                "weights",
                sha256(folder / "model/energy.safetensors"),
                card["sha256"]["energy.safetensors"],
            )
            yield f"weights   {card['sha256']['energy.safetensors'][:16]}, the same bits"
        finally:
            if is_there:
                _succeeds("git", "worktree", "remove", "--force", str(root))


def _stage(root: Path, name: str, **options: Path) -> None:
    arguments = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    tracked = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{options['params'].parent}/mlflow.db",
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-m", f"pipelines.{name}", *arguments]
    done = subprocess.run(command, cwd=root, env=os.environ | tracked, check=False)
    if done.returncode:
        raise DataError(
            f"stage {name} ended with exit code {done.returncode}; its message is above"
        )


def _same(what: str, ours: str, theirs: str) -> None:
    if ours != theirs:
        raise DataError(
            f"{what} differ: {ours[:16]} here, {theirs[:16]} registered; other versions of packages or another processor give other"
            " last bits: compare with the hardware and requirements of the version"
        )


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
