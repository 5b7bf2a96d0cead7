"""Compare EnergyDetector with detectors of scikit-learn (and PyOD, if installed) on tables.

Run ``python -m benchmarks.detector --data FOLDER``. The folder has the classical tables of ADBench
(Han et al. 2022) as ``NUMBER_NAME.npz`` with ``X`` and ``y``, 1 for anomalies. Large tables are
reduced to ``--rows`` random rows, at most a tenth of them anomalies; tables with more than 200
columns are left out. For each seed, a random half of the rows is for training, without its
anomalies, and all detectors score the other half (Zong et al. 2018). Defaults were chosen on every
third table, by splits of its training half (``--tuning`` scores them in that way); results are of
the other tables. Intervals are 95 % t intervals. Writes reports/benchmarks/detector.json.
"""

import argparse
import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.stats import t as student
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

import ebm_dist as ebm
from ebm_dist.evaluation._baselines import FittedGaussian
from ebm_dist.files import write_json

OURS, MAX_COLUMNS = "EnergyDetector", 200
Fit = Callable[[np.ndarray, int], Callable[[np.ndarray], np.ndarray]]


def energy(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    detector = ebm.EnergyDetector(random_state=seed).fit(x)
    return lambda rows: -detector.score_samples(rows)


def forest(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    fitted = IsolationForest(random_state=seed).fit(x)
    return lambda rows: -fitted.score_samples(rows)


def svm(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    scaler = StandardScaler().fit(x)
    fitted = OneClassSVM().fit(scaler.transform(x))
    return lambda rows: -fitted.decision_function(scaler.transform(rows))


def mahalanobis(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    scaler = StandardScaler().fit(x)
    fitted = FittedGaussian(torch.from_numpy(scaler.transform(x)))
    return lambda rows: fitted.mahalanobis(torch.from_numpy(scaler.transform(rows)), 1e-6)


def neighbours(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    scaler = StandardScaler().fit(x)
    fitted = NearestNeighbors(n_neighbors=min(5, len(x))).fit(scaler.transform(x))
    return lambda rows: fitted.kneighbors(scaler.transform(rows))[0].mean(axis=1)


def ecod(x: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    from pyod.models.ecod import ECOD

    return ECOD().fit(x).decision_function  # type: ignore[no-any-return]


DETECTORS: dict[str, Fit] = {
    OURS: energy,
    "isolation forest": forest,
    "one-class SVM": svm,
    "Mahalanobis": mahalanobis,
    "5 neighbours": neighbours,
} | ({"ECOD": ecod} if find_spec("pyod") else {})


def number(path: Path) -> int:
    return int(path.stem.partition("_")[0])


def split(path: Path, seed: int, num_rows: int) -> tuple[np.ndarray, ...]:
    """Return rows and labels of the training half, then rows and labels of the test half."""
    with np.load(path, allow_pickle=False) as table:
        x, y = table["X"].astype(float), table["y"].astype(int).ravel()
    rng = np.random.default_rng(seed)
    anomalies = rng.permutation(np.flatnonzero(y == 1))[
        : num_rows // 10 if len(y) > num_rows else None
    ]
    inliers = rng.permutation(np.flatnonzero(y == 0))[: num_rows - len(anomalies)]
    rows = rng.permutation(np.concatenate([anomalies, inliers]))
    half = len(rows) // 2
    return x[rows[:half]], y[rows[:half]], x[rows[half:]], y[rows[half:]]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and half of the width of its 95 % interval."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), float(half)


def shown(mean: float, half: float) -> str:
    return f"{mean:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def compare(path: Path, seeds: int, num_rows: int, is_tuning: bool) -> dict[str, Any] | None:
    """Return sizes and scores of a table; None if it is too wide or no split has anomalies."""
    scores: dict[str, dict[str, list[float]]] = {
        name: {"auroc": [], "auprc": [], "seconds": []} for name in DETECTORS
    }
    for seed in range(seeds):
        x, y, test, truth = split(path, seed, num_rows)
        if is_tuning:
            half = len(x) // 2
            x, y, test, truth = x[:half], y[:half], x[half:], y[half:]
        if x.shape[1] > MAX_COLUMNS:
            return None
        if len(set(truth)) < 2:
            continue
        for name, fit in DETECTORS.items():
            start = time.perf_counter()
            values = fit(x[y == 0], seed)(test)
            scores[name]["seconds"].append(time.perf_counter() - start)
            scores[name]["auroc"].append(float(roc_auc_score(truth, values)))
            scores[name]["auprc"].append(float(average_precision_score(truth, values)))
    if not scores[OURS]["auroc"]:
        return None
    return {"train_rows": int((y == 0).sum()), "columns": x.shape[1], "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10000, help="maximum number of rows of a table")
    parser.add_argument("--jobs", type=int, default=1, help="tables at a time")
    parser.add_argument("--tuning", action="store_true", help="the tables that chose the defaults")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/detector.json"))
    args = parser.parse_args()
    paths = sorted(args.data.glob("[0-9]*_*.npz"), key=number)
    paths = [path for i, path in enumerate(paths) if (i % 3 == 0) == args.tuning]
    print(f"{'table':24}{'rows':>6}{'cols':>6}" + "".join(f"{name:>19}" for name in DETECTORS))
    results = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(compare)(path, args.seeds, args.rows, args.tuning) for path in paths
    )
    tables = {}
    for path, table in zip(paths, results, strict=True):
        if table is None:
            print(f"{path.stem:24} left out")
            continue
        tables[path.stem] = table
        cells = [interval(score["auroc"]) for score in table["scores"].values()]
        print(
            f"{path.stem:24}{table['train_rows']:6}{table['columns']:6}"
            + "".join(f"{shown(*cell):>19}" for cell in cells),
            flush=True,
        )
    summary: dict[str, Any] = {}
    for name in DETECTORS:
        summary[name] = {"num_seeds": args.seeds, "num_tables": len(tables)}
        for key in ("auroc", "auprc", "seconds"):
            means = [float(np.mean(table["scores"][name][key])) for table in tables.values()]
            ours = [float(np.mean(table["scores"][OURS][key])) for table in tables.values()]
            mean, half = interval([a - b for a, b in zip(ours, means, strict=True)])
            summary[name] |= {
                key: float(np.mean(means)),
                f"{key}_gain": mean,
                f"{key}_gain_interval": [mean - half, mean + half],
            }
        row = summary[name]
        low, high = row["auroc_gain_interval"]
        print(
            f"{name:18} AUROC {row['auroc']:.3f}, AUPRC {row['auprc']:.3f},"
            f" {row['seconds']:.2f} s; {OURS} - this: AUROC {row['auroc_gain']:+.3f}"
            f" ({low:+.3f} to {high:+.3f})"
        )
    if not args.tuning:
        write_json(args.out, {"tables": tables, "summary": summary})


if __name__ == "__main__":
    main()
