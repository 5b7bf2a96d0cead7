"""Profile a training step: ``python -m benchmarks.profile``, after stage prepare.

Trains for some steps in this process and prints the share of each part of a step. With several
workers, ``torchrun --nproc-per-node 2 -m benchmarks.profile``, a reduction includes waiting for the
slower one.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks import circumstances
from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.files import write_json
from ebm_dist.runs.record import FileReporter
from ebm_dist.training import trainer
from ebm_dist.training.reduce import Comm, LocalComm, TorchComm
from ebm_dist.training.reporter import Request

PARTS = {  # the names that the code gives to record_function
    "data": "batches from memory",
    "sampler": "chains of the negatives",
    "reduce": "gradients and votes of all workers",
    "update": "optimizer, spectral norm, average of the weights",
    "report": "writing metrics to the record",
    "checkpoint": "encoding, hashing and writing",
}


class Ending(FileReporter):
    """A reporter that stops the training after some steps."""

    def __init__(self, run: Path, rank: int, num_steps: int) -> None:
        super().__init__(run, rank)
        self.left = num_steps

    def requested(self) -> Request:
        """Request a stop once the steps are done."""
        self.left -= 1
        return Request.NOTHING if self.left >= 0 else Request.STOP


def shares(
    params: config.Params, index: shards.Index, comm: Comm, num_steps: int
) -> dict[str, Any]:
    """Measure the shares of ``num_steps`` steps, after as many to warm up."""
    run = (
        Path(tempfile.gettempdir()) / f"ebm-profile-{os.environ.get('MASTER_PORT', os.getpid())}"
    )  # the same on all ranks
    try:
        trainer.build(params, index, comm, torch.device("cpu"), "profile").fit(
            run / "first", Ending(run / "first", comm.rank, num_steps)
        )
        profiled = trainer.build(params, index, comm, torch.device("cpu"), "profile")
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            began = time.perf_counter()
            profiled.fit(run / "second", Ending(run / "second", comm.rank, num_steps))
            seconds = time.perf_counter() - began
    finally:
        comm.agree(0)  # wait for all
        shutil.rmtree(run, ignore_errors=True)
    measured = {
        event.key: event.cpu_time_total / 1e6 / seconds
        for event in profiler.key_averages()
        if event.key in PARTS
    }
    share = {name: measured.get(name, 0.0) for name in PARTS}
    return {
        "seconds_per_step": seconds / num_steps,
        "share": share | {"loss and gradient": 1 - sum(share.values())},
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--params", type=Path, default=Path("params.yaml"))
    options.add_argument("--data", type=Path, default=Path("data/main"))
    options.add_argument("--steps", type=int, help="default: the steps between two checkpoints")
    options.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    args = options.parse_args()
    params = config.load(args.params)
    torch.set_num_threads(params.train.num_threads)
    comm: Comm = LocalComm()
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
        comm = TorchComm(torch.device("cpu"))
    result = shares(
        params,
        shards.read_index(args.data / "dataset"),
        comm,
        args.steps or params.train.checkpoint_every,
    )
    if comm.rank == 0:
        table = Table(
            title=f"{args.params}: {1e3 * result['seconds_per_step']:.1f} ms per step,"
            f" {comm.world_size} workers"
        )
        for column in ("part", "share", "meaning"):
            table.add_column(column, justify="right" if column == "share" else "left")
        for name, share in result["share"].items():
            table.add_row(
                name, f"{share:.1%}", PARTS.get(name, "forward and backward passes of the networks")
            )
        Console().print(table)
        if args.out:
            write_json(
                args.out,
                circumstances() | {"params": str(args.params), "workers": comm.world_size} | result,
            )
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
