"""Scores of a trial's checkpoints: what a search minimises. Only the validation split is read.

Chains start from the same noise for each checkpoint and run for the steps of evaluation.samples
under the trial's own sampler, on the averages of its weights. Samples are scored in the features of
the pipeline's classifier (:mod:`ebm_dist.metrics.features`).
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ebm_dist import models, storage
from ebm_dist.config import from_values, module_of
from ebm_dist.data import shards
from ebm_dist.errors import DivergedError
from ebm_dist.evaluation import Subject, samples
from ebm_dist.metrics import features
from ebm_dist.runs.record import Lines, read_lines
from ebm_dist.search.trials import WORST
from ebm_dist.training import checkpoint

SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Scorer:
    """Scores of the checkpoints of one run."""

    params: dict[str, Any]
    data: str
    classifier: str
    digest: str
    steps: tuple[int, ...]
    num_samples: int

    def score_newest(self, run: Path) -> None:
        """Score the newest checkpoint if its step is a rung that has no score yet.

        It runs at each checkpoint, before training continues, so no rung is missed.
        """
        folder = checkpoint.latest(run, self.digest)
        step = 0 if folder is None else checkpoint.verify(folder)
        rows = list(read_lines(run / SCORES))
        if (
            folder is not None
            and step in self.steps
            and step > max((row["step"] for row in rows), default=0)
        ):
            Lines(run / SCORES, time.time).replace([*rows, {"step": step, **self.score(folder)}])

    def score(self, folder: Path) -> dict[str, float]:
        """Compute the scores of a checkpoint; a score that is not finite is ``WORST``.

        They are FID-clf, E+ - E- and its absolute value, the mean of abs(E), and the share of
        pixels at the bounds.
        """
        params = from_values(self.params, folder)
        index = shards.read_index(storage.location(self.data))
        classifier = features.load(storage.location(self.classifier))
        real, _ = shards.read_split(index, "val")
        trained = models.from_checkpoint(folder, params, index)
        config = params.evaluation.get("samples", samples.Config())
        options = samples.Config(
            num_samples=self.num_samples, num_steps=config.num_steps, split="val"
        )
        try:
            ends, *_ = module_of(options).sample(options, Subject(trained, index, {}, classifier))
        except DivergedError:  # chains that cannot leave their start
            return {"fid_clf": WORST}
        positive, negative = trained.energies(real), trained.energies(ends)
        gap, size = positive.mean() - negative.mean(), torch.cat([positive, negative]).abs().mean()
        row = {"energy_gap": gap.item(), "abs_gap": gap.abs().item(), "abs_energy": size.item()}
        if index.bounds is not None:
            row["at_bounds"] = (
                ((ends <= index.bounds[0]) | (ends >= index.bounds[1])).float().mean().item()
            )
        if classifier is not None and torch.isfinite(ends).all():
            of_chains = features.classify(classifier, ends)
            of_real = features.classify(classifier, real)
            row["fid_clf"] = features.frechet_distance(of_chains.features, of_real.features)
        return {"fid_clf": WORST} | {
            name: value if math.isfinite(value) else WORST for name, value in row.items()
        }
