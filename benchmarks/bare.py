"""Train without Ray, under torchrun.

Use ``torchrun --nproc-per-node 2 -m benchmarks.bare --params FILE --data FOLDER --record FOLDER``.
"""

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
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("params", "data", "record"):
        options.add_argument(f"--{name}", type=Path, required=True)
    args = options.parse_args()
    params = config.load(args.params)
    torch.set_num_threads(params.train.num_threads)
    dist.init_process_group("gloo")
    comm = TorchComm(torch.device("cpu"))
    index = shards.read_index(args.data)
    trained = trainer.build(params, index, comm, comm.device, "bare")
    trained.fit(args.record, FileReporter(args.record, comm.rank))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
