"""Compare ASHA with random search at an equal budget of training steps.

Run ``python -m benchmarks.asha`` after ``dvc repro``. Random search trains the first trials of the
same draws to the end, as many as the steps that ASHA used allow. Both are scored at the same rungs
on the validation split. Writes reports/benchmarks/asha.json and asha.png. A search that is done is
not repeated.
"""

import argparse
from pathlib import Path

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.files import write_json
from ebm_dist.report import figures
from ebm_dist.search import driver, trials
from ebm_dist.search.mlflow import Family
from ebm_dist.storage import store, write_whole
from pipelines import run


def curve(params: config.Params, data: Path, classifier: Path, runs: Path) -> trials.Progress:
    """Run a search, and return its best score over the steps used."""
    index = shards.read_index(data / "dataset")
    job = driver.start(params, index, classifier, runs)
    family = Family(
        params, job.digest, f"tune-{index.dataset}-{job.digest[:8]}", {"dataset": index.dataset}
    )
    result = driver.find(params, job, family, compares=False)
    return trials.progress(result.trials, params.tune.metric)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--params", type=Path, default=Path("params.yaml"))
    options.add_argument("--data", type=Path, default=Path("data/main"))
    options.add_argument("--classifier", type=Path, default=Path("model/classifier"))
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    args = options.parse_args()
    values = config.load(args.params).as_dict()
    curves = {}
    for scheduler, label in (("asha", "ASHA"), ("none", "random")):
        values["tune"] |= {"scheduler": scheduler}
        curves[label] = curve(
            config.from_values(values, args.params), args.data, args.classifier, store("runs")
        )
        values["tune"]["num_trials"] = max(
            1, round(curves["ASHA"].used_steps[-1] / values["tune"]["num_steps"])
        )
    budget = max(progress.used_steps[-1] for progress in curves.values())
    content = {label: progress._asdict() for label, progress in curves.items()}
    write_json(args.out / "asha.json", content)
    metric = values["tune"]["metric"]
    title = f"Search at equal budget: {budget:,} steps"
    picture = figures.best_so_far(
        curves, "training steps used", f"best {metric} so far (validation)", title
    )
    write_whole(args.out / "asha.png", picture)
    print(
        "; ".join(
            f"{label}: {progress.best[-1]:.4g} after {progress.used_steps[-1]:,} steps"
            for label, progress in curves.items()
        )
    )


if __name__ == "__main__":
    run(main)
