"""One rank of a group of gloo processes: ``python -m tests.worker JOB RANK WORLD_SIZE``; see tests/helpers.py."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ebm_dist import config
from ebm_dist.runs.record import FileReporter
from ebm_dist.training.reduce import TorchComm
from tests import helpers

if __name__ == "__main__":
    job, rank, world_size = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", f"file://{job['rendezvous']}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    chosen = config.from_values(job["settings"], Path("job"))
    trainer = helpers.build(chosen, Path(job["data"]), TorchComm(torch.device("cpu")))
    trainer.fit(Path(job["run"]), FileReporter(Path(job["run"]), rank, {"world_size": world_size}))
    dist.destroy_process_group()
