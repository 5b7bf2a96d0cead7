"""Stage train: train on Ray, resume an interrupted training, and export model, metrics and curves.

Record and checkpoints of the run are in runs/<digest>/, in the working folder or in the object
store that EBM_STORE names. The digest is of settings, data and code. A training that only has more
steps than a finished one goes on from its end.
"""

from pathlib import Path

from ebm_dist import config, evaluation, models, storage
from ebm_dist.data import shards
from ebm_dist.files import write_csv, write_json
from ebm_dist.runs import (
    cluster,
    continuation,
    lineage,
    progress,
    provenance,
    record,
    snapshots,
    tracking,
)
from ebm_dist.search.validation import validate
from pipelines import digests, parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder that stage prepare wrote")
    options.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    options.add_argument(
        "--report", type=Path, required=True, help="folder to write metrics.json and curves.csv to"
    )
    options.add_argument(
        "--runs",
        type=storage.location,
        help="folder of the runs' records (default: $EBM_STORE/runs or runs)",
    )
    args = options.parse_args()
    params, runs = config.load(args.params, seed=args.seed), args.runs or storage.store("runs")
    check_unchanged = digests.check("train", args.params)
    index = shards.read_index(args.data / "dataset")
    comparison_datasets = {
        name: shards.read_index(args.data / name) for name in params.comparison_datasets
    }
    evaluation.check(params, index, comparison_datasets)
    shards.verify(index)
    storage.check(runs)
    digest = lineage.run_digest(params, index.digest)
    made = provenance.of_training(params, index.digest)  # now: files may change meanwhile
    folder, name = runs / digest[:16], f"{index.dataset}-{digest[:8]}"
    data = tracking.Data(index.dataset, index.digest, index.source)
    record.check(folder)
    with (
        cluster.exclusive_lock(folder, digest),
        tracking.sync_while_running(params, digest, name, data, folder),
    ):
        if not cluster.is_finished(folder, digest, params.train):
            if shorter := continuation.start(runs, folder, digest, params, index.digest):
                print(f"{folder}: goes on from the end of {shorter}", flush=True)
            with (
                progress.live(folder, params.train.num_steps),
                snapshots.sync_while_running(folder),
            ):
                published = shards.publish(index, storage.store("shards"))
                cluster.fit(params, published.folder, folder, digest, validate)
    check_unchanged()  # before the export: the finished run is kept
    exported = models.export(folder, args.out, params, index, digest)
    history = exported["history"]
    args.report.mkdir(parents=True, exist_ok=True)
    write_json(args.report / "metrics.json", history[-1])
    write_csv(args.report / "curves.csv", history)
    # chains.png and run.json are no outputs of the stage: they differ from run to run
    if strip := snapshots.strip(folder):
        storage.write_whole(args.report / "chains.png", strip)
    facts = {"dataset": index.dataset, "is_official": index.is_official, "run_digest": digest}
    facts |= made | provenance.of_record(folder, args.out / "energy.safetensors")
    watts = [row["watts"] for row in record.read_lines(folder / record.METRICS) if "watts" in row]
    facts |= {"watts_a_worker": round(sum(watts) / len(watts), 1)} if watts else {}
    facts |= {"seconds": round(exported["seconds"], 1), "workers": params.cluster.workers}
    write_json(args.report / provenance.RUN, facts)
    if scores := [row for row in record.validations(folder) if "fid_clf" in row]:
        best = min(scores, key=lambda row: float(row["fid_clf"]))
        print(f"validation: least FID-clf {best['fid_clf']:.1f}, after {best['step']} steps")
    print(
        f"{args.out}: {params.train.num_steps} steps in {exported['seconds']:.0f} s;"
        f" record in {folder}"
    )


if __name__ == "__main__":
    run(main)
