"""Validation while training goes on: a task of Ray Train scores a checkpoint on a CPU beside.

The scores are those of a search (:mod:`ebm_dist.search.scores`), of the validation split. A file of
each checkpoint is in the folder ``validation`` of the run. The classifier that FID-clf needs is
trained by the first of these tasks, with the bits of the pipeline's own; there is no FID-clf where
the data cannot train it, or where ``features.dataset`` names other data.
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
from ebm_dist.search.trials import WORST

_NUM_SAMPLES = 1000


def validate(checkpoint: Any, step: int, job: dict[str, Any]) -> dict[str, float]:
    """Score the weights after ``step`` steps, and write the scores that are finite to the run.

    ``checkpoint`` is Ray's; ``job`` has the parameters, and where data and run are.
    """
    params, run = from_values(job["params"], Path("job")), storage.location(job["run"])
    torch.set_num_threads(params.train.num_threads)
    index = shards.read_index(storage.location(job["data"]))
    classifier = run / VALIDATION / "classifier"
    if not (classifier / features.CARD).exists():
        if features.is_measurable(index) and params.features.dataset is None:
            features.train(params.features, index, classifier)
        else:
            write_json(classifier / features.CARD, None)
    scorer = Scorer(job["params"], job["data"], str(classifier), job["digest"], (), _NUM_SAMPLES)
    with checkpoint.as_directory() as folder:
        scores = {key: v for key, v in scorer.score(Path(folder)).items() if v < WORST}
    row = {"step": step, "time": time.time(), **scores}
    write_json(run / VALIDATION / f"{step:08d}.json", row)
    return scores
