"""Stage train: train on Ray, from where an earlier attempt stopped, and export model, metrics and curves.

The run's record and checkpoints are kept in runs/<digest>/, in the working folder or in the object store that EBM_STORE names; the
digest is of settings, data and code.
"""

from pathlib import Path

from ebm_dist import config, models, storage
from ebm_dist.data import shards
from ebm_dist.files import write_csv, write_json
from ebm_dist.runs import cluster, lineage, progress, record, snapshots, tracking
from pipelines import parser, run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="prepared data: what stage prepare wrote")
    options.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    options.add_argument("--report", type=Path, required=True, help="folder to write metrics.json and curves.csv to")
    options.add_argument("--runs", type=storage.location, help="folder of the runs' records (default: $EBM_STORE/runs or runs)")
    given = options.parse_args()
    params, runs = config.load(given.params, seed=given.seed), given.runs or storage.store("runs")
    index = shards.read_index(given.data / "dataset")
    shards.verify(index)
    storage.check(runs)
    digest = lineage.run_digest(params, index.digest)
    folder, name = runs / digest[:16], f"{index.dataset}-{digest[:8]}"
    with cluster.exclusive_lock(folder, digest), tracking.sync_while_running(params, digest, name, folder):
        if not cluster.is_finished(folder, digest, params.train.num_steps):
            with progress.live(folder, params.train.num_steps), snapshots.sync_while_running(folder):
                cluster.fit(params, shards.publish(index, storage.store("shards")).folder, folder, digest)
    exported = models.export(folder, given.out, params, index, shards.read_split(index, "train"), digest)
    history = exported["history"]
    given.report.mkdir(parents=True, exist_ok=True)
    write_json(given.report / "metrics.json", history[-1])
    write_csv(given.report / "curves.csv", history)
    if strip := snapshots.strip(folder):  # no output of the stage either: which checkpoints were seen differs
        storage.write_whole(given.report / "chains.png", strip)
    facts = {"dataset": index.dataset, "is_official": index.is_official, "data_digest": index.digest, "run_digest": digest}
    watts = [row["watts"] for row in record.read_lines(folder / record.METRICS) if "watts" in row]
    facts |= {"watts_a_worker": round(sum(watts) / len(watts), 1)} if watts else {}
    facts |= {"seconds": round(exported["seconds"], 1), "workers": params.cluster.workers, "hardware": lineage.hardware()}
    write_json(given.report / "run.json", facts)  # no output of the stage: times differ from run to run
    print(f"{given.out}: {params.train.num_steps} steps in {exported['seconds']:.0f} s; record in {folder}")


if __name__ == "__main__":
    run(main)
