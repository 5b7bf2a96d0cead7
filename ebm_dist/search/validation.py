"""Validation while training goes on: a task of Ray Train scores a checkpoint on a CPU beside.

The scores are those of a search (:mod:`ebm_dist.search.scores`), of the validation split. A file of
each checkpoint is in the folder ``validation`` of the run. The classifier that FID-clf needs is
trained by the first of these tasks, with the bits of the pipeline's own.
"""

import time
from pathlib import Path
from typing import Any

import torch

from ebm_dist import storage
from ebm_dist.config import from_values
from ebm_dist.data import shards
from ebm_dist.files import write_json
from ebm_dist.metrics import features
from ebm_dist.runs.record import VALIDATION
from ebm_dist.search.scores import Scorer

_NUM_SAMPLES = 1000


def validate(checkpoint: Any, step: int, job: dict[str, Any]) -> dict[str, float]:
    """Score the weights after ``step`` steps, and write the scores to the run.

    ``checkpoint`` is Ray's; ``job`` has the parameters, and where data and run are.
    """
    params, run = from_values(job["params"], Path("job")), storage.location(job["run"])
    torch.set_num_threads(params.train.num_threads)
    index = shards.read_index(storage.location(job["data"]))
    classifier = run / VALIDATION / "classifier"
    if index.num_classes and len(index.shape) == 3 and not (classifier / features.CARD).exists():
        features.train(params.features, index, classifier)
    scorer = Scorer(job["params"], job["data"], str(classifier), job["digest"], (), _NUM_SAMPLES)
    with checkpoint.as_directory() as folder:
        scores = scorer.score(Path(folder))
    row = {"step": step, "time": time.time(), **scores}
    write_json(run / VALIDATION / f"{step:08d}.json", row)
    return scores
