"""Check that two commits compute the same bits: python -m pipelines.verify OLD NEW.

Both commits are checked out in worktrees. In each of them every recipe with available raw data is
prepared, trained for a few steps past a logging, checkpoint, burn-in and task boundary, resumed
once, exported, and evaluated by one cheap suite. The SHA-256 of data, weights, averages, moments,
chains, history, exported weights and suite metrics are compared. The exit code is 1 if any differs.

With --record every suite of each recipe is evaluated. If all results are equal, a line of
pipelines/verified.jsonl records the digests of the code on both sides. Results of the old code then
count as results of the new code (ebm_dist.runs.provenance). Commit that file.
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ebm_dist import config
from ebm_dist.errors import ConfigError, EbmError
from ebm_dist.runs import code, lineage, provenance
from pipelines import ROOT, run

_PROBE = ROOT / "pipelines/_probe.py"


class DifferenceError(EbmError):
    """The two commits compute different bits."""


class Comparison(NamedTuple):
    """The result of a verification in which no recipe differs."""

    equal: dict[Path, dict[str, str]]
    """SHA-256 of each result, by recipe"""
    num_skipped: int
    """recipes without raw data"""


def recipe_paths(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the parameter files of recipes given by names, paths, or ``all``.

    Raise :class:`ConfigError` for a file that does not exist.
    """
    if list(names) == ["all"]:
        recipes = sorted(
            path
            for path in (root / "pipelines/recipes").glob("*.yaml")
            if path.name not in ("dvc.yaml", "rows.yaml")
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


def choose_suites(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """Choose one suite per recipe, so that together they cover as many suites as possible."""
    suite_of: dict[Path, str] = {}
    for path in paths:
        suites = list(config.load(path).evaluation)
        uncovered = [suite for suite in suites if suite not in suite_of.values()]
        suite_of[path] = next(iter([*uncovered, *suites]), "")
    return {path: [suite] if suite else [] for path, suite in suite_of.items()}


def all_suites(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """Return every suite of each recipe."""
    return {path: list(config.load(path).evaluation) for path in paths}


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out into a folder while the block runs.

    Raise :class:`ConfigError` for an unknown commit.
    """
    added = _git("worktree", "add", "--detach", str(folder), commit)
    if added.returncode:
        reason = added.stderr.strip().splitlines()[-1]
        raise ConfigError(f"{commit}: cannot be checked out ({reason}); give two commits")
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


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
    environment = probe_environment(tree)
    return subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603


def probe_environment(tree: Path) -> dict[str, str]:
    """Return the environment of a probe: its own code first, one thread, no store, no fault."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("EBM_STORE", "EBM_FAULT", "RAY_ADDRESS")
    }
    if "EBM_DATA_DIR" in kept:
        kept["EBM_DATA_DIR"] = str(Path(kept["EBM_DATA_DIR"]).resolve())
    return kept | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the names of the results that differ."""
    return [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def report(
    probes: Sequence["subprocess.Popen[str]"],
    suites: Mapping[Path, Sequence[str]],
    started: float,
) -> Comparison:
    """Print a line per recipe as both trees finish it, and return the equal results.

    Raise :class:`DifferenceError` if results differ or a recipe failed.
    """
    differing, skipped, failed = list[str](), list[str](), list[str]()
    equal = dict[Path, dict[str, str]]()
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
            equal[path] = new
            status = f"equal    {name}: {len(new)} results, suite {', '.join(suites[path])}"
        print(f"{time.monotonic() - started:6.0f} s  {status}", flush=True)
    if differing or failed:
        raise DifferenceError(
            f"{', '.join(differing + failed)}: other bits, or no result;"
            f" {len(equal)} recipes are equal"
        )
    return Comparison(equal, len(skipped))


def code_digests(path: Path, suites: Sequence[str], tree: Path) -> dict[str, str]:
    """Return the digests of a recipe's code in a tree, by stage.

    Raise :class:`ConfigError` for a tree with another layout.
    """
    params, name = config.load(path), path.stem
    try:
        return {
            f"prepare {name}": code.prepare_digest(params, root=tree),
            f"train {name}": code.train_digest(params, root=tree),
            **{
                f"evaluate {name} {suite}": code.evaluate_digest(
                    params, suite, figures=False, root=tree
                )
                for suite in suites
            },
        }
    except KeyError as missing:
        raise ConfigError(
            f"--record: the code at {_head(tree)[:10]} has another layout ({missing.args[0]});"
            " record only commits of the present layout"
        ) from None


def _head(tree: Path) -> str:
    return _git("rev-parse", "HEAD", folder=tree).stdout.strip()


def record(
    trees: Sequence[Path],
    comparison: Comparison,
    suites: Mapping[Path, Sequence[str]],
    steps: int,
) -> dict[str, Any]:
    """Append a line to ``pipelines/verified.jsonl`` and return it.

    ``trees`` are the old and the new one, and the recipes are files of the new one. Raise
    :class:`ConfigError` if nothing was compared or a tree has another layout.
    """
    compared = {  # a training that diverges has no weights to compare
        path: results for path, results in comparison.equal.items() if "diverged" not in results
    }
    if not compared:
        raise ConfigError("--record: no recipe was compared; set EBM_DATA_DIR to the raw files")
    digests = dict[str, list[str]]()
    for path in compared:
        old, new = (code_digests(_in_tree(path, trees, t), suites[path], t) for t in trees)
        digests |= {name: [old[name], new[name]] for name in new if old[name] != new[name]}
    results_by_name = {path.stem: results for path, results in compared.items()}
    row = {
        "from": _head(trees[0]),
        "to": _head(trees[1]),
        "steps": steps,
        "recipes": list(results_by_name),
        "hardware": lineage.hardware(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": provenance.versions(),
        "sha256": hashlib.sha256(json.dumps(results_by_name, sort_keys=True).encode()).hexdigest(),
        "digests": digests,
    }
    with (ROOT / provenance.VERIFIED).open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    return row


def _in_tree(path: Path, trees: Sequence[Path], tree: Path) -> Path:
    """Return a parameter file of the new tree as another tree has it; files outside are shared."""
    new = trees[1]
    return tree / path.relative_to(new) if path.is_relative_to(new) else path


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
    parser.add_argument(
        "--record",
        action="store_true",
        help="evaluate all suites, and record an equal result in pipelines/verified.jsonl",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch, ExitStack() as stack:
        trees = [
            stack.enter_context(worktree(commit, Path(scratch) / name))
            for name, commit in (("old", args.old), ("new", args.new))
        ]
        paths = recipe_paths(trees[1], args.recipes)
        suites = all_suites(paths) if args.record else choose_suites(paths)
        if args.record:  # before the work: each tree must have the present layout
            for tree in trees:
                code_digests(_in_tree(paths[0], trees, tree), suites[paths[0]], tree)
        started, probes = time.monotonic(), []
        for tree, work in zip(trees, ("work-old", "work-new"), strict=True):
            entries = [f"{_in_tree(path, trees, tree)}:{','.join(suites[path])}" for path in paths]
            probes.append(probe(tree, entries, args.steps, Path(scratch) / work))
            stack.callback(probes[-1].kill)
        comparison = report(probes, suites, started)
        if args.record:
            row = record(trees, comparison, suites, args.steps)
            print(f"{provenance.VERIFIED}: {len(row['digests'])} digests recorded; commit the file")
        print(
            f"{len(comparison.equal)} recipes are equal,"
            f" {comparison.num_skipped} skipped for lack of data"
        )


if __name__ == "__main__":
    run(main)
