"""Samples of the generator itself, without chains: FID-clf beside real images, and a picture.

FID-clf is that of suite ``samples``: in the features of the pipeline's own classifier, with as many
samples, floor images and real images of the split.
"""

from typing import Any

import torch

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.metrics import features
from ebm_dist.models import latent
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream

_COLUMNS = 10


@section
class Config:
    num_samples: PositiveInt = 1000
    """Samples of the generator, or the number of training images where that is less."""
    split: str = "test"
    """The split of real images: ``val`` to choose settings, ``test`` to report."""


def check(config: Config, needs: Needs) -> None:
    needs.generator()
    needs.images()
    needs.classifier_data()
    needs.split("train")
    needs.split(config.split)


def evaluate(config: Config, subject: Subject) -> Report:
    train, _ = shards.read_split(subject.data, "train")
    real, _ = shards.read_split(subject.data, config.split)
    rows = numpy_stream(0, "generated/real").permutation(len(train))[: config.num_samples]
    drawn = latent.draw(subject.model, len(rows), "generated").x
    check_finite(drawn, "evaluation.generated: samples of the generator")
    metrics: dict[str, Any] = {"num_samples": len(drawn)}
    if subject.classifier is not None:
        of_real = features.classify(subject.classifier, real).features
        for suffix, x in (("", drawn), ("_floor", train[torch.from_numpy(rows)])):
            scored = features.classify(subject.classifier, x)
            metrics |= {
                f"fid_clf{suffix}": features.frechet_distance(scored.features, of_real),
                f"is_clf{suffix}": features.inception_score(scored.probabilities),
            }
    title = "Samples of the generator, without chains"
    picture = figures.image_grid(drawn[: _COLUMNS**2].numpy(), _COLUMNS, title)
    return Report(metrics, {}, {"generated.png": picture})
