"""One rank of a group of gloo processes, forked from a server that has already imported all of this; see tests/helpers.py."""

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ebm_dist import config
from ebm_dist.runs.record import FileReporter
from tests import helpers

helpers.params()  # it, and optimizers with torch._dynamo, import what each rank would import again


def train(
    rank: int, world_size: int, rendezvous: Path, run: Path, data: Path, settings: dict[str, Any]
) -> None:
    comm = helpers.join_group(rank, world_size, rendezvous)
    chosen = config.from_values(settings, Path("job"))
    trainer = helpers.build(chosen, data, comm)
    trainer.fit(run, FileReporter(run, rank, {"world_size": world_size}))
    dist.destroy_process_group()
    os._exit(
        0
    )  # without destructors: DDP's can wait, with the GIL, for a thread of gloo that waits for the GIL
