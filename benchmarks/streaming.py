"""A data set larger than memory through the pipeline, with each process limited to 1.5 GiB.

Run ``python -m benchmarks.streaming --folder /tmp/large``, which needs some 20 GiB there. Writes
8 GiB of images of 28 x 28 in ``.npz`` parts: a digit of 8 x 8 enlarged, with noise. Then prepares
them, trains 200 steps on 2 workers, evaluates samples, energies and out-of-distribution detection,
and registers the model. A process may have 1.5 GiB of its own, without files that are mapped:
RLIMIT_DATA refuses more. Ray's workers reserve 1.4 GiB of that sort without a use, so in training
a process is killed instead when it uses more (RssAnon, looked at ten times a second). Prints, for
each stage, the time and the largest memory of one process.

Then measures how many samples a second one worker reads, verified, from the disk and from the
object store of infra/local, and what part of a training step of the recipe ``mnist`` its batch
would take. Writes reports/benchmarks/streaming.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from ruamel.yaml import YAML

from benchmarks import circumstances
from ebm_dist import config, storage
from ebm_dist.data import shards
from ebm_dist.data.loader import LogicalShard
from ebm_dist.datasets import digits
from ebm_dist.files import write_json
from ebm_dist.runs.record import FileReporter
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm
from infra.local import Stack
from pipelines import ROOT, run

LIMIT = 3 << 29
_PART = 1 << 18  # samples
SUITES = ("samples", "histogram", "ood")


def write_parts(folder: Path, num_bytes: int) -> None:
    """Write noisy enlarged digits as parts."""
    folder.mkdir(parents=True, exist_ok=True)
    small, labels = digits.load(digits.Config()).splits["train"]
    large = np.pad(small.repeat(3, axis=2).repeat(3, axis=3), ((0, 0), (0, 0), (2, 2), (2, 2)))
    rng = np.random.default_rng(0)
    for number in range(num_bytes // (28 * 28 * _PART)):
        path = folder / f"part-{number:03d}.npz"
        if path.exists():
            continue
        chosen = rng.integers(len(large), size=_PART)
        noise = rng.integers(0, 32, (_PART, 1, 28, 28), np.uint8)
        np.savez(path, images=np.maximum(large[chosen], noise), labels=labels[chosen])
        print(path, flush=True)


def settings(folder: Path) -> dict[str, Any]:
    """Return the parameters of the run."""
    return {
        "seed": 0,
        "dataset": {"name": "parts", "path": str(folder / "parts")},
        "comparison_datasets": {},
        "energy": {"name": "mlp", "hidden": [256, 128]},
        "sampler": {"name": "langevin", "step_size": 0.1, "noise_scale": 0.01, "num_steps": 10},
        "objective": {"name": "contrastive_divergence"},
        "replay": {"capacity": 1024},
        "optimizer": {"lr": 1.0e-3},
        "train": {"num_steps": 200, "batch_size": 128, "num_shards": 4, "log_every": 50},
        "cluster": {"workers": 2},
        "features": {"num_steps": 100},
        "evaluation": {
            "samples": {"num_samples": 500, "num_steps": 50},
            "histogram": {},
            "ood": {},
        },
        "register": {"model": "large"},
    }


def watched(command: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run a stage under the limit; return its exit code, seconds and largest memory."""
    began, largest = time.monotonic(), 0
    limited = "" if command.startswith("train") else f"prlimit --data={LIMIT} "
    process = subprocess.Popen(
        f"{limited}{sys.executable} -m pipelines.{command}".split(),
        cwd=ROOT,
        env=environment,
    )
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid)]
            family += family[0].children(recursive=True)
        except psutil.Error:
            family = []
        for member in family:
            if (used := _own_memory(member.pid)) > LIMIT:
                member.kill()
            largest = max(largest, used)
        time.sleep(0.1)
    return {
        "stage": command.partition(" --")[0],
        "exit_code": process.returncode,
        "seconds": time.monotonic() - began,
        "mib": largest / 2**20,
    }


def _own_memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
    return found[0] if found else 0


def throughput(index: shards.Index, num_batches: int) -> float:
    """Return the samples a second that one worker reads and verifies, read ahead."""
    shard = LogicalShard(index, "train", 0, 1, 256, 0)
    shard.batch(0)
    began = time.monotonic()
    for step in range(1, num_batches + 1):
        shard.batch(step)
    return 256 * num_batches / (time.monotonic() - began)


def from_store(index: shards.Index, folder: Path, num_batches: int) -> float:
    """Return :func:`throughput` of the data in a real object store on this machine."""
    stack = Stack(folder)
    stack.prepare()
    stack.store()
    os.environ |= {k: v for k, v in stack.settings().items() if k.startswith(("AWS_", "EBM_"))}
    try:
        return throughput(shards.publish(index, storage.store("shards")), num_batches)
    finally:
        stack.down()


def seconds_of_a_step(folder: Path, num_steps: int = 50) -> tuple[float, int]:
    """Return the seconds of a training step of the recipe ``mnist`` in one process, and its batch.

    On the data of this benchmark, which have the same shape.
    """
    values = config.load(ROOT / "pipelines/recipes/mnist.yaml").as_dict()
    values |= {"comparison_datasets": {}, "evaluation": {}, "register": {"model": "none"}}
    values |= {"dataset": settings(folder)["dataset"], "cluster": {"workers": 1}}
    values["train"] |= {"checkpoint_every": 10**9, "log_every": num_steps}
    seconds = []
    for length in (1, 1 + num_steps):
        values["train"]["num_steps"] = length
        params = config.from_values(values, folder)
        training = trainer.build(
            params,
            shards.read_index(folder / "data/dataset"),
            LocalComm(),
            torch.device("cpu"),
            "benchmark",
        )
        with tempfile.TemporaryDirectory() as thrown_away:
            began = time.monotonic()
            training.fit(Path(thrown_away), FileReporter(Path(thrown_away) / "record"))
            seconds.append(time.monotonic() - began)
    return (seconds[1] - seconds[0]) / num_steps, params.train.batch_size


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--gib", type=float, default=8.0)
    options.add_argument("--batches", type=int, default=4000, help="of the throughput")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/streaming.json"))
    args = options.parse_args()
    folder = args.folder.resolve()
    write_parts(folder / "parts", int(args.gib * 2**30))
    params = folder / "params.yaml"
    with params.open("w") as stream:
        YAML(typ="safe", pure=True).dump(settings(folder), stream)
    of = f"--params {params} --data {folder}/data"
    model, classifier, reports = (f"{folder}/{name}" for name in ("model", "classifier", "reports"))
    runs = f"--runs {folder}/runs"
    stages = [
        f"prepare --params {params} --out {folder}/data",
        f"classifier {of} --out {classifier}",
        f"train {of} --out {model} --report {reports}/train {runs}",
        *(
            f"evaluate {suite} {of} --model {model} --classifier {classifier}"
            f" --out {reports}/{suite}"
            for suite in SUITES
        ),
        f"register --params {params} --model {model} --reports {reports}"
        f" --out {reports}/registry.json {runs}",
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    torch.set_num_threads(1)
    content = circumstances() | {"limit_mib": LIMIT / 2**20, "gib": args.gib, "rows": []}
    for command in stages:
        content["rows"].append(watched(command, environment))
        print(json.dumps(content["rows"][-1]), flush=True)
        if content["rows"][-1]["exit_code"]:
            raise SystemExit(f"{command} failed")
    index = shards.read_index(folder / "data/dataset")
    content["samples_per_second"] = throughput(index, args.batches)
    step, batch = seconds_of_a_step(folder)
    content["share_of_a_step"] = batch / content["samples_per_second"] / step
    content["samples_per_second_from_store"] = from_store(index, folder / "local", args.batches)
    read = ("samples_per_second", "samples_per_second_from_store", "share_of_a_step")
    print(json.dumps({key: content[key] for key in read}))
    write_json(args.out, content)


if __name__ == "__main__":
    run(main)
