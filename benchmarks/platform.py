"""Measure the platform: data, chains, checkpoints, reductions, Ray, the search, DVC.

    EBM_DATA_DIR=<folder with the MNIST files> python -m benchmarks.platform

Works that are compared take turns; ratios are medians over rounds. ``--only`` selects parts. Writes
reports/benchmarks/platform.json and keeps the parts that were not run.
"""

import argparse
import io
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import webdataset
from ruamel.yaml import YAML

from benchmarks import circumstances, take_turns
from ebm_dist import config
from ebm_dist.chains.replay import ReplayShard
from ebm_dist.data import shards
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.files import read_json, write_json
from ebm_dist.rng import stream
from ebm_dist.runs.record import METRICS, FileReporter, read_lines
from ebm_dist.search import driver
from ebm_dist.search.mlflow import Family
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm

ROOT = Path(__file__).resolve().parent.parent
MNIST = ROOT / "pipelines/recipes/mnist.yaml"
IDLE = (
    "_AutoscalingCoordinatorActor",
    "SynchronizationActor",
    "PlacementGroupCleaner",
    "DatasetManager",
)  # actors of Ray Train
WINDOW_S = 2


def replay(folder: Path) -> dict[str, Any]:
    """Measure chains drawn and stored per second, 128 of 8,192, against a list of tensors."""
    rows = {}
    for shape in ((1, 28, 28), (3, 32, 32)):
        shard = ReplayShard(8192, shape, (0.0, 1.0), range(1), stream(0, "chains"))
        listed = [torch.rand(1, *shape) for _ in range(8192)]

        def ours(shard: ReplayShard = shard) -> None:
            for step in range(50):
                draw = shard.draw(128, 0.05, stream(0, "replay", 0, step))
                shard.put(draw, draw.position)

        def textbook(shape: tuple[int, ...] = shape, listed: list[torch.Tensor] = listed) -> None:
            for _ in range(50):
                drawn = torch.cat(
                    [
                        random.choice(listed) if random.random() > 0.05 else torch.rand(1, *shape)
                        for _ in range(128)
                    ]
                )
                listed[:] = (list(drawn.chunk(128)) + listed)[:8192]

        timing = take_turns({"ours": ours, "list of tensors": textbook}, "list of tensors")
        rows["x".join(map(str, shape))] = {
            "chains_per_second": {
                name: 50 * 128 / seconds for name, seconds in timing.seconds.items()
            },
            "ratio": timing.ratio["ours"],
        }
    return rows


def reading(folder: Path) -> dict[str, Any]:
    """Measure 28x28 samples read per second, with SHA-256, against a tar of single samples."""
    images = np.random.default_rng(0).integers(0, 256, (60000, 1, 28, 28), np.uint8)
    index = shards.write(
        folder / "packed",
        "random",
        Dataset(
            {"train": Arrays(images, np.zeros(60000, np.int64))},
            255.0,
            (0, 1),
            1,
            "random numbers",
            False,
        ),
    )
    with webdataset.TarWriter(str(folder / "single.tar")) as tar:
        for i, image in enumerate(images[:6000]):
            tar.write({"__key__": f"{i:06d}", "x.npy": image})

    def single() -> None:
        for sample in webdataset.WebDataset(str(folder / "single.tar"), shardshuffle=False):
            np.load(io.BytesIO(sample["x.npy"]), allow_pickle=False)

    timing = take_turns(
        {"packed, verified": lambda: shards.read_split(index, "train"), "a member each": single},
        "a member each",
        5,
    )
    rates = {
        "packed, verified": 60000 / timing.seconds["packed, verified"],
        "a member each": 6000 / timing.seconds["a member each"],
    }
    return {"samples_per_second": rates}


def checkpoints(folder: Path) -> dict[str, Any]:
    """Measure saving and loading a checkpoint of the mnist recipe, all chains in one process."""
    index = prepared(folder, MNIST)
    built = trainer.build(config.load(MNIST), index, LocalComm(), torch.device("cpu"), "benchmark")
    reporter = FileReporter(folder / "run")
    built.advance()

    def save() -> None:
        built.step += 1
        built.save(folder / "run", reporter)

    timing = take_turns({"save": save, "load": lambda: built.restore(folder / "run")}, "save")
    size = sum(path.stat().st_size for path in max((folder / "run").glob("step-*")).iterdir())
    return {"seconds": timing.seconds, "bytes": size}


def prepared(folder: Path, params: Path) -> shards.Index:
    """Prepare the data of a parameter file once; return their index."""
    where = folder / "data"
    if not where.exists():
        call("-m", "pipelines.prepare", "--params", str(params), "--out", str(where))
    return shards.read_index(where / "dataset")


def call(*arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    """Run Python with these arguments; return its output, or exit with its message."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def settings(folder: Path, name: str, **changes: dict[str, Any]) -> Path:
    """Write the mnist recipe with other values in some sections; return the path."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(MNIST.read_text())
    for section, change in changes.items():
        values[section] = values.get(section, {}) | change
    path = folder / f"{name}.yaml"
    yaml.dump(values, path)
    return path


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the record so far of the one run in a folder."""
    return [row for path in run.rglob(METRICS) for row in read_lines(path)]


def rate(run: Path) -> float:
    """Return the training steps per second in the second half of a run, from its record.

    In the first half the driver still imports MLflow.
    """
    rows = rows_of(run)
    first = rows[len(rows) // 2]
    return (rows[-1]["step"] - first["step"]) / (rows[-1]["seconds"] - first["seconds"])


def bare(folder: Path, params: Path, workers: int) -> float:
    """Train under torchrun; return the steps per second."""
    run = Path(tempfile.mkdtemp(dir=folder))
    threads = str(config.load(params).train.num_threads)
    call(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers),
        "-m", "benchmarks.bare", "--params", str(params), "--data", str(folder / "data/dataset"),
        "--record", str(run), OMP_NUM_THREADS=threads,
    )  # fmt: skip
    return rate(run)


def on_ray(folder: Path, params: Path) -> float:
    """Train on Ray Train; return the steps per second."""
    run = Path(tempfile.mkdtemp(dir=folder))
    call(*training(folder, params, run), MLFLOW_TRACKING_URI=f"sqlite:///{run}/mlflow.db")
    return rate(run)


def training(folder: Path, params: Path, run: Path) -> list[str]:
    """Return the arguments of stage train."""
    paths = {
        "params": params,
        "data": folder / "data",
        "out": run / "model",
        "report": run / "report",
        "runs": run / "runs",
    }
    return [
        "-m",
        "pipelines.train",
        *(word for name, path in paths.items() for word in (f"--{name}", str(path))),
    ]


def rates(works: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the works in turn; return the steps per second of each."""
    measured: dict[str, list[float]] = {name: [] for name in works}
    for count in range(rounds):
        for name in list(works) if count % 2 else reversed(list(works)):
            measured[name].append(works[name]())
    return measured


def ray(folder: Path) -> dict[str, Any]:
    """Measure steps per second of the mnist recipe on Ray Train and under torchrun."""
    prepared(folder, MNIST)
    short = {"num_steps": 300, "log_every": 10, "checkpoint_every": 100}
    ordered = settings(folder, "ordered", train=short)
    works = {
        "Ray Train, ordered, 2 workers": partial(on_ray, folder, ordered),
        "torchrun, ordered, 2 workers": partial(bare, folder, ordered, 2),
    }
    return {"steps_per_second": rates(works, rounds=6)}


def spare(folder: Path) -> dict[str, Any]:
    """Measure one worker of one thread on Ray Train and under torchrun: Ray has a core."""
    prepared(folder, MNIST)
    one = settings(
        folder,
        "one",
        train={"num_steps": 200, "log_every": 10, "checkpoint_every": 100},
        cluster={"workers": 1},
    )
    works = {
        "Ray Train, ordered, 1 worker": partial(on_ray, folder, one),
        "torchrun, ordered, 1 worker": partial(bare, folder, one, 1),
    }
    return {"steps_per_second": rates(works, rounds=4)}


def others(folder: Path) -> dict[str, Any]:
    """Measure the cost of the processes that run with the workers.

    The ratio is the speed of the job while they are stopped / while they run, in turn.
    """
    prepared(folder, MNIST)
    params = settings(folder, "long", train={"log_every": 2, "checkpoint_every": 10_000})
    run, environment = (
        folder / "others",
        os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
    )
    command = [sys.executable, *training(folder, params, run)]
    job = psutil.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def speed() -> float:
        before = len(rows_of(run))
        time.sleep(WINDOW_S)
        rows = rows_of(run)[before:]
        if len(rows) < 2:
            raise SystemExit("training has stopped; see its output above")
        return float(
            (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["seconds"] - rows[0]["seconds"])
        )

    try:
        while len(rows_of(run)) < 20:  # the driver still imports MLflow
            if job.poll() is not None:
                raise SystemExit("training ended; see its output above")
            time.sleep(1)
        names = {process: process.cmdline()[0] for process in [job, *job.children(recursive=True)]}
        groups = {
            "its idle actors": [
                process
                for process, name in names.items()
                if any(f"ray::{idle}" in name for idle in IDLE)
            ],
            "all but the workers": [
                process for process, name in names.items() if "ray::RayTrainWorker" not in name
            ],
        }
        rows: dict[str, dict[str, Any]] = {
            name: {"processes": len(group), "cpu": [], "ratio": []}
            for name, group in groups.items()
        }
        for name, group in list(groups.items()) * 24:
            began = sum(sum(process.cpu_times()[:2]) for process in group)
            speed_beside = speed()
            rows[name]["cpu"].append(
                (sum(sum(process.cpu_times()[:2]) for process in group) - began) / WINDOW_S
            )
            for process in group:
                process.suspend()
            try:
                rows[name]["ratio"].append(speed() / speed_beside)
            finally:
                for process in group:
                    process.resume()
            time.sleep(0.5)
    finally:
        with suppress(psutil.NoSuchProcess):
            job.terminate()
        if psutil.wait_procs([job], timeout=60)[1]:
            job.kill()
    for row in rows.values():
        row["cpu"] = statistics.fmean(row["cpu"])
        row["ratio"] = statistics.quantiles(row["ratio"], n=4)
    return {"rows": rows}


def scaling(folder: Path) -> dict[str, Any]:
    """Measure the mnist recipe under torchrun with both reductions and several worker counts."""
    prepared(folder, MNIST)
    short = {"num_steps": 130, "log_every": 10, "checkpoint_every": 65}
    ordered = settings(folder, "ordered", train=short)
    threads = settings(folder, "threads", train=short | {"num_threads": 2})
    ddp = settings(folder, "ddp", train=short | {"reduce": "ddp"})
    four = settings(folder, "four", train=short | {"num_shards": 4}, replay={"capacity": 4096})
    many = short | {"num_shards": 64}
    many_ordered = settings(folder, "many", train=many, replay={"capacity": 4096})
    many_ddp = settings(
        folder, "many-ddp", train=many | {"reduce": "ddp"}, replay={"capacity": 4096}
    )
    measured = rates(
        {
            "torchrun, ordered, 2 workers": partial(bare, folder, ordered, 2),
            "torchrun, ddp, 2 workers": partial(bare, folder, ddp, 2),
            "torchrun, ordered, 1 worker": partial(bare, folder, ordered, 1),
            "torchrun, ordered, 1 worker of 2 threads": partial(bare, folder, threads, 1),
            "torchrun, ordered, 4 shards, 2 workers": partial(bare, folder, four, 2),
            "torchrun, ordered, 4 shards, 4 workers": partial(bare, folder, four, 4),
            "torchrun, ordered, 64 shards, 2 workers": partial(bare, folder, many_ordered, 2),
            "torchrun, ddp, 64 shards, 2 workers": partial(bare, folder, many_ddp, 2),
        },
        rounds=3,
    )
    return {"steps_per_second": measured}


def search(folder: Path) -> dict[str, Any]:
    """Measure what a search of two trials takes beyond their training, after ``dvc repro``.

    The rest is Ray, drivers and the scores at the end.
    """
    values = config.load(ROOT / "params.yaml").as_dict()
    values["tune"] |= {"num_trials": 2, "num_steps": 270, "scheduler": "none"}
    params, index = (
        config.from_values(values, Path("benchmark")),
        shards.read_index(ROOT / "data/main/dataset"),
    )
    job = driver.start(params, index, ROOT / "model/classifier", folder / "runs")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    result = driver.find(params, job, Family(params, job.digest, "benchmark", {}), compares=False)
    trained = [
        list(read_lines(path))[-1]["seconds"] for path in (Path(job.home) / "search").rglob(METRICS)
    ]
    return {
        "seconds": result.seconds["search"],
        "training": max(trained),
        "num_trials": len(trained),
    }


def pipeline(folder: Path) -> dict[str, Any]:
    """Measure the stages of the default ``dvc repro``, and one with nothing to do."""
    project = folder / "project"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        ["dvc", "repro", "-f"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    starts: list[tuple[str, float]] = []
    for line in process.stdout:
        if stage := re.search(r"Running stage '(.+)'", line):
            starts.append((stage[1], time.perf_counter()))
    if process.wait():
        raise SystemExit("dvc repro failed")
    ended = time.perf_counter()
    ends = [*(at for _, at in starts[1:]), ended]
    stages = {name: end - at for (name, at), end in zip(starts, ends, strict=True)}
    learning = read_json(project / "reports/main/train/run.json", "train")["seconds"]
    imports = {
        name: seconds_of(f"import pipelines.{name.partition('@')[0]}", project) for name in stages
    }
    imports["evaluate"] = seconds_of(
        "import ebm_dist.evaluation.samples, ebm_dist.evaluation.ood", project
    )
    around = starts[0][1] - began + stages["train"] - learning + stages["register"]
    around += sum(seconds for name, seconds in imports.items() if name not in ("train", "register"))
    nothing = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(["dvc", "repro"], cwd=project, check=True, capture_output=True)
        nothing.append(time.perf_counter() - began)
    return {
        "stages": stages, "training": learning,
        "platforms_and_imports": around, "nothing_to_do": sorted(nothing)[2],
    }  # fmt: skip


def seconds_of(code: str, cwd: Path) -> float:
    """Return the seconds that a piece of Python takes in a new process."""
    began = time.perf_counter()
    call("-c", code, cwd=cwd)
    return time.perf_counter() - began


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "replay": replay,
    "reading": reading,
    "checkpoints": checkpoints,
    "ray": ray,
    "spare": spare,
    "others": others,
    "scaling": scaling,
    "search": search,
    "pipeline": pipeline,
}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/platform.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    content = read_json(args.out, "benchmark") if args.out.exists() else {}
    for name in args.only:
        folder = Path(tempfile.mkdtemp(prefix="ebm-benchmark-"))
        try:
            content[name] = circumstances("ray", "dvc", "mlflow") | PARTS[name](folder)
        finally:
            shutil.rmtree(folder)
        print(name, content[name], flush=True)
        write_json(args.out, content)


if __name__ == "__main__":
    main()
