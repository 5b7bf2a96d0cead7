"""What a step and a checkpoint cost as shards and workers grow: measured here, and on paper.

Run ``python -m benchmarks.scale``. Measured in this process, with the recipe ``digits`` and one
sample of the batch for each of 64, 256 and 1,024 logical shards: seconds to deal and read the data,
of a step, of a checkpoint and of its reading, and the files of a checkpoint. On paper: bytes and
seconds of a step of the recipe ``igebm-cifar10`` with one logical shard on each of 8 to 1,024 GPUs,
from the sizes of its network and chains and the assumptions in ``ASSUMED``. Writes
reports/benchmarks/scale.json.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import circumstances
from ebm_dist import config
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.energies import build_energy
from ebm_dist.files import write_json
from ebm_dist.runs.record import FileReporter
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm
from pipelines import run

RECIPES = Path("pipelines/recipes")
SHARDS = (64, 256, 1024)
GPUS = (8, 64, 256, 1024)
ASSUMED = {
    "seconds of a step of one GPU": 0.0926,  # docs/performance.md, 128 images, 60 steps, H200
    "bytes a second between GPUs": 50e9,  # 400 Gbit/s each
    "seconds of a collective and a hop": 10e-6,  # latency, over log2 of the GPUs
    "bytes a second of a GPU to the store": 1e9,
    "requests a second of a store": 5500.0,  # of a prefix, as Amazon documents for reading
    "hours between failures of a GPU": 50_000.0,
}
_PACK = 256  # samples


def measured(num_shards: int, folder: Path) -> dict[str, Any]:
    """Train two steps with as many logical shards; return the seconds of each part."""
    values = config.load(RECIPES / "digits.yaml").as_dict()
    values["cluster"] = {"workers": 1}
    values["train"] |= {"num_shards": num_shards, "batch_size": num_shards, "num_steps": 2}
    values["train"] |= {"checkpoint_every": 2, "log_every": 1}
    values["replay"] |= {"capacity": 4 * num_shards}
    params = config.from_values(values, Path("benchmark"))
    index = shards.read_index(folder / "dataset")
    began = time.perf_counter()
    training = trainer.build(params, index, LocalComm(), torch.device("cpu"), "benchmark")
    row: dict[str, Any] = {"shards": num_shards, "seconds to deal": time.perf_counter() - began}
    with tempfile.TemporaryDirectory() as where:
        reporter = FileReporter(Path(where) / "record")
        training.resume_or_init(Path(where))
        began = time.perf_counter()
        training.advance()
        row["seconds of a step"] = time.perf_counter() - began
        training.step = 1
        began = time.perf_counter()
        training.save(Path(where), reporter)
        row["seconds of a checkpoint"] = time.perf_counter() - began
        files = [p for p in Path(where).glob("step-*/*") if p.is_file()]
        row |= {"files": len(files), "bytes": sum(p.stat().st_size for p in files)}
        again = trainer.build(params, index, LocalComm(), torch.device("cpu"), "benchmark")
        began = time.perf_counter()
        again.resume_or_init(Path(where))
        row["seconds to resume"] = time.perf_counter() - began
    return row


def on_paper() -> Iterator[dict[str, Any]]:
    """Yield bytes and seconds of a step for each number of GPUs, one logical shard on each."""
    params = config.load(RECIPES / "igebm-cifar10.yaml")
    shape = (3, 32, 32)
    energy = build_energy(params, shape, 10)
    weights = 4 * sum(p.numel() for p in energy.parameters())
    image, batch = math.prod(shape), params.train.batch_size
    chains = params.replay.capacity * 4 * image
    compute, speed, hop, store, requests, failures = ASSUMED.values()
    for gpus in GPUS:
        gradients = 2 * weights  # sent: a row by slices, and the sum of a slice to all
        latency = 2 * hop * math.log2(gpus)
        checkpoint = (4 * weights + chains) / store  # the first rank has the most to write
        yield {
            "GPUs": gpus,
            "gradients sent, MiB": gradients / 2**20,
            "their seconds": gradients / speed + latency,
            "share of a step": (gradients / speed + latency) / compute,
            "images of a step": gpus * batch,
            "chains of all, GiB": gpus * chains / 2**30,
            "requests a second": gpus * batch / _PACK / compute,
            "share of the store's": gpus * batch / _PACK / compute / requests,
            "seconds of a checkpoint": checkpoint,
            "hours between failures": failures / gpus,
        }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/scale.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    content = circumstances() | {"assumed": ASSUMED, "on_paper": list(on_paper()), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        params = config.load(RECIPES / "digits.yaml")
        index = shards.write(
            Path(folder) / "dataset", "digits", module_of(params.dataset).load(params.dataset)
        )
        assert index.num_samples("train") >= max(SHARDS)
        for num_shards in SHARDS:
            content["rows"].append(measured(num_shards, Path(folder)))
            print(content["rows"][-1], flush=True)
    for row in content["on_paper"]:
        print(row, flush=True)
    write_json(args.out, content)


if __name__ == "__main__":
    run(main)
