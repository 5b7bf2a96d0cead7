"""Run every result with the present code: ``make release``, or ``python -m pipelines.release``.

Says first what is stale or was never run, and how long it took the last time. Then runs the main
job and one target after another with ``dvc repro``, the shortest first, and goes on where an
earlier call stopped. A target that fails is named at the end and keeps nobody waiting. At the end
writes docs/results.md and the pictures, and ships the models that were trained again. Recipes for a
GPU wait for one.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ebm_dist import config
from ebm_dist.datasets import adbench
from ebm_dist.errors import DataError, ResultsError
from ebm_dist.files import read_json
from ebm_dist.registry import shipped
from ebm_dist.runs import code, provenance
from pipelines import ROOT, digests, run

_STAGES = "pipelines/recipes/dvc.yaml"
_BENCHMARKS = ("benchmark", "accept_reject")  # quick to check: DVC decides


class Target(NamedTuple):
    """What ``dvc repro`` is to run."""

    stage: str
    reason: str
    seconds: float | None
    """of its last run; None if there was none"""


def stale(root: Path = ROOT) -> Iterator[Target]:
    """Yield the recipes and tables with results of other code or settings, or without any."""
    for name, path in digests.recipes(root).items():
        params = config.load(path)
        if params.cluster.use_gpu and not _has_gpu():
            continue
        reasons = [
            reason
            for suite in params.evaluation
            for reason in provenance.status(path, suite, root / "reports").reasons
        ]
        if reasons:
            seconds = _seconds(root / "reports" / name, params.num_seeds)
            reason = "never run" if seconds is None else reasons[0]
            yield Target(f"results@{name}", reason, seconds)
    digest = code.tabular_digest(root)
    for protocol in get_args(adbench.Protocol):
        tasks = _json(root / "reports/tabular" / protocol / "metrics.json").get("tasks", [])
        if not tasks or any(task["code"] != digest for task in tasks):
            times = [row["seconds"] for task in tasks for row in task["scores"].values()]
            reason = "the code has changed" if tasks else "never run"
            yield Target(f"tabular@{protocol}", reason, sum(times) / 2 if times else None)


def _seconds(report: Path, num_seeds: int) -> float | None:
    trained = [
        _json(report / "train" / str(seed) / provenance.RUN).get("seconds")
        for seed in range(num_seeds)
    ]
    known = [float(seconds) for seconds in trained if seconds is not None]
    judged = [_json(path).get("seconds", 0.0) for path in report.glob(f"*/{provenance.RUN}")]
    return num_seeds * sum(known) / len(known) + sum(judged) if known else None


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path, "train"))
    except DataError:
        return {}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _repro(target: str) -> bool:
    return _succeeds("dvc", "repro", target)


def _call(stage: str, *arguments: str) -> bool:
    return _succeeds(sys.executable, "-m", f"pipelines.{stage}", *arguments)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0  # noqa: S603


def outdated(root: Path = ROOT) -> Iterator[list[str]]:
    """Yield what ``pipelines.ship`` is to do for each shipped model that was trained again here."""
    for name, entry in shipped.lock(root / "pipelines/weights")["models"].items():
        recipe, seed = entry["recipe"], str(entry["seed"])
        record = _json(root / "reports" / recipe / "train" / seed / provenance.RUN)
        is_here = (root / "models" / recipe / seed).is_dir()
        if is_here and record.get("commit", entry["commit"]) != entry["commit"]:
            bare = [] if entry["classifier"] else ["--no-classifier"]
            yield [recipe, "--name", name, "--seed", seed, *bare]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--list", action="store_true", help="only say what is stale")
    options.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no target after so many"
    )
    args, began = options.parse_args(), time.monotonic()
    targets = sorted(stale(), key=lambda target: target.seconds or float("inf"))
    for target in targets:
        length = "-" if target.seconds is None else f"{target.seconds / 60:.0f} min"
        print(f"{target.stage:44} {length:>7}  {target.reason}")
    hours = sum(target.seconds or 0.0 for target in targets) / 3600
    unknown = sum(target.seconds is None for target in targets)
    print(f"{len(targets)} targets, {hours:.1f} hours and {unknown} of unknown length", flush=True)
    if args.list:
        return
    failed = [] if _repro("dvc.yaml") else ["dvc.yaml"]
    for number, target in enumerate(targets, 1):
        if time.monotonic() - began > 60 * args.minutes:
            break
        print(f"\n== {number} of {len(targets)}: {target.stage}", flush=True)
        if not _repro(f"{_STAGES}:{target.stage}"):
            failed.append(target.stage)
    else:
        failed += [stage for stage in _BENCHMARKS if not _repro(f"{_STAGES}:{stage}")]
    failed += [stage for stage in ("results", "pictures") if not _call(stage)]
    failed += [f"ship {words[0]}" for words in outdated() if not _call("ship", *words)]
    if failed:
        raise ResultsError(f"{', '.join(failed)}: failed", "see above, and run this again")


if __name__ == "__main__":
    run(main)
