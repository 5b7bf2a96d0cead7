"""Stage tune: search for better settings on Ray Tune, and write a parameter file that has them.

The best settings are compared with the file's own over several seeds. Only the validation split is
used. The record of the search is in runs/tune/<digest>/; the same command resumes an interrupted
search. To adopt the result and train with it: dvc exp run dvc.yaml -S recipe=tuned.yaml
"""

from pathlib import Path

from ebm_dist import config, storage
from ebm_dist.data import shards
from ebm_dist.errors import redact
from ebm_dist.files import write_json
from ebm_dist.runs import tracking
from ebm_dist.runs.lineage import hardware
from ebm_dist.search import driver, report
from ebm_dist.search.mlflow import Family
from pipelines import digests, parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder that stage prepare wrote")
    options.add_argument(
        "--classifier", type=Path, required=True, help="folder that stage classifier wrote"
    )
    options.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write metrics.json, trials.csv and plots/ to",
    )
    options.add_argument(
        "--tuned",
        type=Path,
        default=Path("tuned.yaml"),
        help="parameter file to write (default: tuned.yaml)",
    )
    options.add_argument(
        "--runs",
        type=storage.location,
        help="folder of the runs' records (default: $EBM_STORE/runs or runs)",
    )
    args = options.parse_args()
    params, runs = config.load(args.params, seed=args.seed), args.runs or storage.store("runs")
    check_unchanged = digests.check("tune", args.params)
    index = shards.read_index(args.data / "dataset")
    shards.verify(index)
    storage.check(runs)
    job = driver.start(params, index, args.classifier, runs)
    facts = {"dataset": index.dataset, "data.digest": index.digest}
    family = Family(params, job.digest, f"tune-{index.dataset}-{job.digest[:8]}", facts)
    result = driver.find(params, job, family)
    metrics = report.write(params, result, args.out, args.params, args.tuned)
    write_json(args.out / "run.json", {"seconds": result.seconds, "hardware": hardware()})
    verdict = report.verdict(metrics)
    numbers = {"best": metrics["best"]["score"], "used_steps": metrics["used_steps"]}
    tags = {
        "ebm.best_trial": str(metrics["best"]["trial"]),
        "mlflow.note.content": verdict.replace("\n", "  \n"),
    }
    family.finish({"search": result.trials, "final": result.finals}, numbers, tags, args.out)
    print(verdict)
    counts = f"{metrics['num_trials']} trials, {metrics['num_diverged']} diverged"
    durations = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in result.seconds.items())
    print(f"{args.out}: {counts}; {durations}; record in {job.home}")
    print(f"adopt and retrain: dvc exp run dvc.yaml -S recipe={args.tuned}")
    where = f"mlflow ui --backend-store-uri {redact(tracking.tracking_uri())}"
    print(f"look at it: {where}   ({family.name}, its children and artifacts)")
    check_unchanged()


if __name__ == "__main__":
    run(main)
