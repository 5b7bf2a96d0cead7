"""Score detectors on tables with anomalies: ``python -m pipelines.tabular --sets FOLDER``.

FOLDER has tables as ``.npz`` with ``X`` and ``y``, 1 for anomalies; without it they are the 31 of
:mod:`ebm_dist.datasets.adbench`. Each table is split for each seed in a protocol of that module,
and every detector is fitted to the training rows and scores the test rows; where these are the
training rows, it leaves out the row that it scores. All have the same settings for all tables.
Tables and seeds are tasks on Ray. Writes metrics as tasks end, and a call goes on where an earlier
one of the same code and protocol stopped.

The figure is the mean over tables of the mean AUROC over seeds, beside the average precision and
the mean rank. Intervals are 95 % t-intervals of the difference to ``EnergyDetector`` within tables.
The settings were chosen on every second table of ADBench, from the first; ``reported`` has the
others, and is there for these 31 tables alone.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from scipy.stats import rankdata

from ebm_dist.api.detector import EnergyDetector
from ebm_dist.datasets import adbench
from ebm_dist.errors import DataError
from ebm_dist.files import read_json, sha256, write_json
from ebm_dist.metrics import detectors
from ebm_dist.report import figures
from ebm_dist.report.table import interval
from ebm_dist.runs import cluster, code, provenance
from ebm_dist.storage import write_whole
from pipelines import run

OURS = "EnergyDetector"
REPORTED = sorted(adbench.SHA256)[1::2]
WITH_COPIES = f"{OURS}, copies kept"


class Task(NamedTuple):
    """A table and a seed."""

    path: Path
    digest: str
    """of the file"""
    protocol: adbench.Protocol
    seed: int
    names: tuple[str, ...]


def energy(train: detectors.Array, seed: int) -> detectors.Score:
    fitted = EnergyDetector(random_state=seed).fit(train)
    return lambda x: -fitted.score_samples(x)


def energy_with_copies(train: detectors.Array, seed: int) -> detectors.Score:
    fitted = EnergyDetector(random_state=seed, leaves_out_copies=False).fit(train)
    return lambda x: -fitted.score_samples(x)


ALL: dict[str, detectors.Fit] = {
    OURS: energy,
    **detectors.DETECTORS,
    WITH_COPIES: energy_with_copies,
}


def score(task: Task) -> dict[str, Any]:
    """Fit and score all detectors of a task."""
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import

    table = adbench.split(*adbench.read(task.path), task.protocol, task.seed)
    found: dict[str, Any] = {
        "table": task.path.stem,
        "seed": task.seed,
        "file": task.digest,
        "rows": len(table.train),
        "columns": table.train.shape[1],
        "copies": table.num_copies,
        "scores": {},
    }
    if len(set(table.truth.tolist())) < 2:
        return found
    for name in task.names:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # equal rows, which tables have
            if task.protocol == "contaminated" and name in detectors.OF_TRAINING:
                scores = detectors.OF_TRAINING[name](table.train)
            else:
                scores = ALL[name](table.train, task.seed)(table.test)
        found["scores"][name] = {
            "auroc": float(roc_auc_score(table.truth, scores)),
            "auprc": float(average_precision_score(table.truth, scores)),
            "seconds": time.perf_counter() - began,
        }
    return found


def summary(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means, ranks and paired differences over the tables, of detectors that scored all."""
    scored = [task for task in tasks if task["scores"]]
    tables = sorted({task["table"] for task in scored})
    if not scored:
        raise DataError(
            "no table has normal rows and anomalies in its test part", "use other tables"
        )
    names = [n for n in scored[0]["scores"] if all(n in task["scores"] for task in scored)]
    means = {
        key: np.array(
            [
                [
                    np.mean([t["scores"][name][key] for t in scored if t["table"] == table])
                    for name in names
                ]
                for table in tables
            ]
        )
        for key in ("auroc", "auprc", "seconds")
    }
    ranks = np.stack([rankdata(-row) for row in means["auroc"]]).mean(axis=0)
    found: dict[str, dict[str, Any]] = {
        name: {
            **{key: float(values[:, i].mean()) for key, values in means.items()},
            "rank": float(ranks[i]),
        }
        for i, name in enumerate(names)
    }
    for i, name in enumerate(names):
        if name != OURS and OURS in names and len(tables) > 1:
            difference = means["auroc"][:, names.index(OURS)] - means["auroc"][:, i]
            ends = interval([*difference.tolist()])
            found[name]["behind"] = {"mean": float(difference.mean()), "interval": ends}
    return {"num_tables": len(tables), "detectors": found}


def lines(title: str, content: dict[str, Any]) -> list[str]:
    """Return a summary as lines to print, the best detector first."""
    shown = [f"{title}: {content['num_tables']} tables", f"{'':24}AUROC   AUPRC    rank  behind"]
    ordered = sorted(content["detectors"].items(), key=lambda item: -item[1]["auroc"])
    for name, row in ordered:
        behind = row.get("behind")
        shown.append(
            f"{name:22}{100 * row['auroc']:7.2f} {100 * row['auprc']:7.2f} {row['rank']:7.2f}"
            + (
                f"  {100 * behind['mean']:+.2f} ({100 * behind['interval'][0]:+.2f} to"
                f" {100 * behind['interval'][1]:+.2f})"
                if behind
                else ""
            )
        )
    return shown


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--sets", type=Path, default=None, help="folder of tables")
    options.add_argument("--protocol", choices=get_args(adbench.Protocol), default="leak_free")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--workers", type=int, default=2, help="tasks at a time")
    options.add_argument(
        "--detectors",
        nargs="+",
        choices=list(ALL),
        help=f"default: all; {WITH_COPIES!r} in the published protocol alone",
    )
    options.add_argument("--out", type=Path, default=None, help="default: reports/tabular/PROTOCOL")
    args = options.parse_args()
    folder = args.out or Path("reports/tabular") / args.protocol
    names = args.detectors or [n for n in ALL if args.protocol == "published" or n != WITH_COPIES]
    paths = sorted(args.sets.glob("*.npz")) if args.sets else map(adbench.path_of, adbench.SHA256)
    paths = sorted(paths, key=lambda path: path.name)
    if not paths:
        raise DataError(f"{args.sets}: has no .npz", "give a folder of tables with X and y")
    digest, file, tasks = code.tabular_digest(), folder / "metrics.json", list[dict[str, Any]]()
    hashes = {path.stem: sha256(path) for path in paths}
    if file.exists():
        earlier = read_json(file, "tabular")
        if earlier["protocol"] != args.protocol:
            raise DataError(f"{file}: has protocol {earlier['protocol']}", "use another --out")
        tasks = [t for t in earlier["tasks"] if t["code"] == digest]
    done = {
        (t["table"], t["seed"]): t
        for t in tasks
        if t.get("file") == hashes.get(t["table"], t.get("file"))
    }
    missing = [
        Task(path, hashes[path.stem], args.protocol, seed, lacking)
        for seed in range(args.seeds)
        for path in paths
        if (lacking := _unscored(done.get((path.stem, seed)), names))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for number, found in enumerate(cluster.each(score, missing, args.workers), 1):
        place = (found["table"], found["seed"])
        found["scores"] = done.get(place, found)["scores"] | found["scores"]
        done[place] = found | {"code": digest}
        tasks = [done[key] for key in sorted(done)]
        write_json(file, {"protocol": args.protocol, "tasks": tasks})
        print(f"{number} of {len(missing)}: {place[0]}, seed {place[1]}", flush=True)
    asked = [t for t in tasks if t["table"] in hashes and t["seed"] < args.seeds]
    is_adbench = hashes == adbench.SHA256
    reported = [task for task in asked if is_adbench and task["table"] in REPORTED]
    whole = summary(asked)
    content = {"protocol": args.protocol, **provenance.made_here(), **whole, "tasks": tasks}
    if reported:
        content["reported"] = summary(reported)
    write_json(file, content)
    write_whole(
        folder / "ranks.png", figures.ranks(_ranks(whole), whole["num_tables"], args.protocol)
    )
    print("\n".join(lines(args.protocol, whole)))
    if reported:
        print("\n".join(lines(f"{args.protocol}, every second table", content["reported"])))


def _unscored(task: dict[str, Any] | None, names: list[str]) -> tuple[str, ...]:
    """Return the detectors that a task lacks; none of a table that has no anomalies to score."""
    if task is None:
        return tuple(names)
    return tuple(name for name in names if task["scores"] and name not in task["scores"])


def _ranks(content: dict[str, Any]) -> dict[str, float]:
    return {name: row["rank"] for name, row in content["detectors"].items()}


if __name__ == "__main__":
    run(main)
