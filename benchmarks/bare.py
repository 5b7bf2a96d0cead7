"""A training job without Ray: ``torchrun --nproc-per-node 2 -m benchmarks.bare --params FILE --data FOLDER --record FOLDER``."""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.runs.record import FileReporter
from ebm_dist.training import trainer
from ebm_dist.training.reduce import TorchComm


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    for name in ("params", "data", "record"):
        options.add_argument(f"--{name}", type=Path, required=True)
    given = options.parse_args()
    params = config.load(given.params)
    torch.set_num_threads(params.train.num_threads)
    dist.init_process_group("gloo")
    comm = TorchComm(torch.device("cpu"))
    own = trainer.build(params, shards.read_index(given.data), comm, comm.device, "bare")
    own.fit(given.record, FileReporter(given.record, comm.rank))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
