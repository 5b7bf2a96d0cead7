"""Check that two commits compute the same bits: python -m pipelines.verify OLD NEW.

Both commits are checked out in worktrees. In each of them every recipe whose raw data are at hand is prepared, trained for a
few steps past a logging, checkpoint, burn-in and task boundary, resumed once, exported and evaluated by one cheap suite.
The SHA-256 of data, weights, averages, moments, chains, history, exported weights and suite metrics are compared. The exit
code is 1 where one differs.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ebm_dist import config
from ebm_dist.errors import ConfigError, EbmError
from pipelines import ROOT, run

_PROBE = ROOT / "pipelines/_probe.py"


class DifferenceError(EbmError):
    """The two commits compute different bits."""


def recipe_paths(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the parameter files of these recipes: names, paths, or ``all``. Raises :class:`ConfigError`."""
    if list(names) == ["all"]:
        recipes = sorted(
            p
            for p in (root / "pipelines/recipes").glob("*.yaml")
            if p.name not in ("dvc.yaml", "rows.yaml")
        )
        return [root / "params.yaml", *recipes]
    paths = [
        Path(name).resolve() if name.endswith(".yaml") else root / f"pipelines/recipes/{name}.yaml"
        for name in names
    ]
    for path in paths:
        if not path.exists():
            raise ConfigError(f"--recipes: no file {path}; 'ebm-dist recipes' lists the names")
    return paths


def choose_suites(paths: Sequence[Path]) -> dict[Path, str]:
    """Choose one suite per recipe, so that together they cover as many suites as possible."""
    chosen: dict[Path, str] = {}
    for path in paths:
        suites = list(config.load(path).evaluation)
        fresh = [suite for suite in suites if suite not in chosen.values()]
        chosen[path] = next(iter([*fresh, *suites]), "")
    return chosen


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out into a folder while the block runs. Raises :class:`ConfigError` for an unknown commit."""
    added = _git("worktree", "add", "--detach", str(folder), commit)
    if added.returncode:
        raise ConfigError(
            f"{commit}: cannot be checked out ({added.stderr.strip().splitlines()[-1]}); give two commits"
        )
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )  # noqa: S603, S607


def probe(tree: Path, entries: Sequence[str], steps: int, work: Path) -> "subprocess.Popen[str]":
    """Start the probe in a tree of code; it prints one JSON line per recipe."""
    command = [
        sys.executable,
        "-P",
        str(_PROBE),
        "--work",
        str(work),
        "--steps",
        str(steps),
        *entries,
    ]
    environment = config_free_environment(tree)
    return subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603


def config_free_environment(tree: Path) -> dict[str, str]:
    """Return the environment of a probe: its own code first, one thread, no store and no armed fault."""
    import os

    kept = {
        k: v for k, v in os.environ.items() if k not in ("EBM_STORE", "EBM_FAULT", "RAY_ADDRESS")
    }
    if "EBM_DATA_DIR" in kept:
        kept["EBM_DATA_DIR"] = str(Path(kept["EBM_DATA_DIR"]).resolve())
    return kept | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the names of the results that differ."""
    return [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="commit to compare with")
    parser.add_argument("new", help="commit to check")
    parser.add_argument(
        "--recipes", nargs="+", default=["all"], help="names or parameter files (default: all)"
    )
    parser.add_argument(
        "--steps", type=int, default=50, help="training steps of each recipe (default: 50)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch, ExitStack() as stack:
        trees = [
            stack.enter_context(worktree(commit, Path(scratch) / name))
            for name, commit in (("old", args.old), ("new", args.new))
        ]
        paths = recipe_paths(trees[1], args.recipes)
        suites = choose_suites(paths)
        started, probes = time.monotonic(), []
        for tree, work in zip(trees, ("work-old", "work-new"), strict=True):
            own = [
                tree / path.relative_to(trees[1]) if path.is_relative_to(trees[1]) else path
                for path in paths
            ]
            entries = [f"{path}:{suites[other]}" for path, other in zip(own, paths, strict=True)]
            probes.append(probe(tree, entries, args.steps, Path(scratch) / work))
            stack.callback(probes[-1].kill)
        summary = report(probes, suites, started)
        print(summary)


def report(
    probes: Sequence["subprocess.Popen[str]"], suites: Mapping[Path, str], started: float
) -> str:
    """Print a line per recipe as both trees finish it, and return the summary. Raises :class:`DifferenceError`."""
    differing, skipped, failed, equal = list[str](), list[str](), list[str](), 0
    old_lines, new_lines = (p.stdout or () for p in probes)
    for path, old_line, new_line in itertools.zip_longest(suites, old_lines, new_lines):
        if old_line is None or new_line is None or path is None:
            raise DifferenceError(f"{path}: a probe ended early; its message is above")
        old, new = (dict[str, Any](json.loads(line))["bits"] for line in (old_line, new_line))
        name, names = path.stem, compare(old, new)
        if names:
            differing.append(name)
            status = f"DIFFERS  {name}: {', '.join(names)}"
            details = {
                key: (old.get(key), new.get(key))
                for key in ("failed", "skipped", "diverged")
                if key in old or key in new
            }
            status += "".join(
                f"\n         {key}: {was} -> {now}" for key, (was, now) in details.items()
            )
        elif "skipped" in new:
            skipped.append(name)
            status = f"skipped  {name}: {new['skipped']}"
        elif "failed" in new:
            failed.append(name)
            status = f"FAILED   {name}: both with {new['failed']}"
        else:
            equal += 1
            status = f"equal    {name}: {len(new)} results, suite {suites[path]}"
        print(f"{time.monotonic() - started:6.0f} s  {status}", flush=True)
    if differing or failed:
        raise DifferenceError(
            f"{', '.join(differing + failed)}: other bits, or no result; {equal} recipes are equal"
        )
    return f"{equal} recipes are equal, {len(skipped)} skipped for lack of data"


if __name__ == "__main__":
    run(main)
