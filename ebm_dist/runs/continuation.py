"""Start a run from the end of a shorter one that differs only in ``train.num_steps``.

Where the number of steps decides no step, the shorter run is the beginning of the longer one. Each
such run has a file ``open-ended-<digest>``, by which longer runs find it.
"""

import json
from pathlib import Path

from ebm_dist.config import Params
from ebm_dist.runs import lineage
from ebm_dist.storage import read_bytes, write_whole
from ebm_dist.training import checkpoint
from ebm_dist.training.reduce import LocalComm

_MARK = "open-ended-"


def start(runs: Path, run: Path, digest: str, params: Params, data_digest: str) -> Path | None:
    """Copy the last checkpoint of the longest shorter run into a new run, and return that run.

    Return None if the run has a checkpoint, or if there is no shorter run.
    """
    shared = lineage.open_ended_digest(params, data_digest)
    if shared is None:
        return None
    mark = f"{_MARK}{shared[:16]}"
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / mark, shared.encode())
    if checkpoint.whole(run):
        return None
    steps = {
        step: folder
        for other in sorted(path.parent for path in runs.glob(f"*/{mark}"))
        for step, folder in checkpoint.whole(other).items()
        if step <= params.train.num_steps
    }
    if not steps:
        return None
    last = steps[max(steps)]
    _copy(last, run, digest)
    return last.parent


def _copy(folder: Path, run: Path, digest: str) -> None:
    """Copy a checkpoint as one of another run. Raise :class:`CheckpointError` if it is damaged."""
    step = checkpoint.verify(folder)
    names = json.loads(read_bytes(folder / checkpoint.MANIFEST))["files"]
    content = {name: read_bytes(folder / name) for name in names}
    checkpoint.save(run, step, content, LocalComm(), digest=digest, keep=2)
