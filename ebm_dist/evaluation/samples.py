"""Sample quality of chains from noise: distance to held-out data, and copies of training data.

FID-clf and IS-clf use the features of the pipeline's own classifier (see
:mod:`ebm_dist.metrics.features`). FID depends on the number of samples, so samples, floor and plain
baselines are all scored with the same ``num_scored``, which is less than ``num_samples`` where
there are fewer training images. All are compared with the ``num_real`` images of the split. The
replay buffer is scored with ``num_replay`` chains, all that it has of them.

FID of a thousand chains varies by several units with their noise alone, and the noise is the same
for every model. With ``num_sets`` the scores are means over sets of chains with noise of their
own, beside as many sets of real images, or all whole ones that the training split has.
``num_continued`` more steps are scored at up to ten of them; ``fid_clf_continued`` is their mean.

``copies`` is the share of samples that are nearer to a training sample than half the median
distance of the real samples of the split, ``copies_of_real`` the share of those. Real samples that
are exactly training samples count in the share and not in the median, so duplicates in the data do
not move the limit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_dist.config import Mismatch, NonNegativeInt, Params, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import averages_of, frozen, given, is_conditional
from ebm_dist.errors import DataError
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.generators import mixture
from ebm_dist.metrics import features
from ebm_dist.models.trained import TrainedModel
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream, stream
from ebm_dist.samplers import Info, Observer, State, noise, run_chain

_SEED = 0  # of the evaluation, the same for all models, so that scores can be compared
_COLUMNS = 10
_NUM_LOOKS = 10  # at chains that go on


@section
class Config:
    num_samples: PositiveInt = 1000
    """Chains from noise, at least 2. Floor and baselines have as many samples, and all are scored
    with the number of training samples where that is less."""
    num_steps: PositiveInt = 200
    """Steps of the chains from noise, with the sampler of the training."""
    num_continued: NonNegativeInt = 0
    """Steps that the chains of the first set go on for; they are scored too."""
    num_sets: PositiveInt = 1
    """Sets of ``num_samples`` chains from noise; scores are means over them."""
    num_frames: PositiveInt = 20
    """Frames of the animation of the chains."""
    split: str = "test"
    """The split of real data to compare with: ``val`` to choose settings, ``test`` to report."""

    added_keys = ("num_continued", "num_sets")

    def check(self, params: Params) -> None:
        if self.num_samples < 2:
            raise Mismatch("evaluation.samples.num_samples", "needs at least 2, for a covariance")


def check(config: Config, needs: Needs) -> None:
    needs.split("train")
    needs.split(config.split)


def evaluate(config: Config, subject: Subject) -> Report:
    samples, looks, trace, frames = sample(config, subject)
    train, _ = shards.read_split(subject.data, "train")
    real, _ = shards.read_split(subject.data, config.split)
    order = torch.from_numpy(numpy_stream(_SEED, "samples/real").permutation(len(train)))
    floors = order.split(config.num_samples)[: config.num_sets]
    rows = floors[0]
    chains, n = subject.model.chains[: len(rows)], len(rows)
    metrics: dict[str, Any] = {"num_samples": len(samples), "num_steps": config.num_steps}
    tables: dict[str, list[dict[str, Any]]] = {"chain_energy": trace}
    if subject.classifier is not None:
        more = (_follow(config, subject.model, number)[:n] for number in range(1, config.num_sets))
        sets = {
            "model, from noise": [samples[:n], *more],
            "model, replay buffer": [chains],
            "real training images (floor)": [train[rows] for rows in floors if len(rows) == n],
            "Gaussian fitted to training images": [_gaussian(train, n)],
            "mixture of Gaussians fitted to them": [_mixture(train, n)],
            "pixels shuffled": [_shuffled(train[rows])],
            "uniform noise": [
                noise(
                    (n, *samples.shape[1:]), subject.model.bounds, stream(_SEED, "samples/uniform")
                )
            ],
        } | {f"model, {step} steps more": [x[:n]] for step, x in looks}
        of_real = features.classify(subject.classifier, real).features
        scores = {name: _scores(subject.classifier, parts, of_real) for name, parts in sets.items()}
        tables["quality"] = [
            {"set": name, "count": len(sets[name][0]), **row} for name, row in scores.items()
        ]
        model, replay, floor, gaussian, mixed = list(scores.values())[:5]
        if floor["fid_clf"] == 0 or gaussian["fid_clf"] == 0:
            raise DataError(
                f"{subject.data.folder}: FID-clf of real images against the {config.split} split is"
                " 0, so there is no floor to compare with",
                "use images of which the splits are not the same, or leave suite samples out",
            )
        metrics |= {
            "num_scored": n,
            "num_real": len(real),
            "num_replay": len(chains),
            "fid_clf": model["fid_clf"],
            "fid_clf_floor": floor["fid_clf"],
            "fid_clf_over_floor": model["fid_clf"] / floor["fid_clf"],
            "fid_clf_gaussian": gaussian["fid_clf"],
            "fid_clf_mixture": mixed["fid_clf"],
            "fid_clf_over_gaussian": model["fid_clf"] / gaussian["fid_clf"],
            "fid_clf_replay": replay["fid_clf"],
            "is_clf": model["is_clf"],
            "is_clf_floor": floor["is_clf"],
            "smallest_class_share": model["smallest_class_share"],
            "smallest_class_share_floor": floor["smallest_class_share"],
        }
        if config.num_continued:
            metrics["num_continued"] = config.num_continued
            ends = [scores[f"model, {step} steps more"]["fid_clf"] for step, _ in looks]
            metrics["fid_clf_continued"] = float(np.mean(ends))
            metrics["fid_clf_continued_last"] = ends[-1]
    distance, nearest = nearest_neighbours(samples, train)
    real_distance, _ = nearest_neighbours(real, train)
    metrics |= {
        "nearest_train_distance": distance.mean().item(),
        "nearest_train_distance_of_real": real_distance.mean().item(),
        **copies(distance, real_distance),
    }
    report = Report(metrics, tables, {})
    if len(subject.data.shape) == 3:
        caption = f"Chains from noise, {config.num_steps} steps{subject.model.classes_caption}"
        _draw(report, config, samples, chains, train[nearest], real, frames, caption)
    return report


Looks = list[tuple[int, Tensor]]
"""Steps, and positions ``(n, *shape)`` after them"""


def sample(config: Config, subject: Subject) -> tuple[Tensor, Looks, list[dict[str, Any]], Looks]:
    """Run chains from noise, the same noise for every model.

    Return their positions ``(n, *shape)`` after ``num_steps``; looks at the steps after these;
    quantiles of the energy along the chains; and frames of the first hundred chains.
    """
    every = max(1, config.num_steps // config.num_frames)
    every_look = math.ceil(config.num_continued / _NUM_LOOKS)
    trace, frames, looks = list[dict[str, Any]](), Looks(), Looks()

    def observe(step: int, state: State, info: Info) -> None:
        further = step + 1 - config.num_steps
        if further == 0 or (further > 0 and further % every_look == 0):
            looks.append((further, state.position))
        if further > 0:
            return
        if step % every == 0:
            q = info.energy.quantile(torch.tensor([0.05, 0.5, 0.95]))
            trace.append(
                {"step": step} | dict(zip(("p05", "median", "p95"), q.tolist(), strict=True))
            )
        if (step + 1) % every == 0:
            frames.append((step + 1, state.position[:100]))

    _follow(config, subject.model, 0, config.num_continued, observe)
    (_, samples), *looks = looks
    return samples, looks, trace, [(0, _start(config, subject.model, 0)[:100]), *frames]


def _follow(
    config: Config,
    model: TrainedModel,
    number: int,
    num_further: int = 0,
    observe: Observer | None = None,
) -> Tensor:
    """Run the chains of a set; return their ends ``(n, *shape)``."""
    num_steps, is_labelled = config.num_steps + num_further, is_conditional(model.params)
    # the classes of E(x, y) take turns
    labels = torch.arange(config.num_samples) % model.card["num_classes"] if is_labelled else None
    with frozen(model.energy):
        ends, _ = run_chain(
            model.kernel(),
            given(model.energy, labels),
            _start(config, model, number),
            num_steps,
            stream(_SEED, _of_set("samples/chain", number)),
            observe=observe,
        )
    check_finite(ends, f"evaluation.samples: ends of chains of {num_steps} steps")
    return ends


def _start(config: Config, model: TrainedModel, number: int) -> Tensor:
    size = (config.num_samples, *model.card["shape"])
    return noise(size, model.bounds, stream(_SEED, _of_set("samples/noise", number)))


def _of_set(purpose: str, number: int) -> str:
    return f"{purpose}/{number}" if number else purpose


def nearest_neighbours(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return Euclidean distance and index, ``(n,)`` each, of the nearest training sample.

    ``x (n, *shape)`` are the samples, ``train (num_train, *shape)`` the training samples. The
    search expands the square, so it runs on samples centred in float64. The distances are those of
    the differences, so an equal sample has distance 0.
    """
    from sklearn.metrics import pairwise_distances_argmin  # slow to import

    centre = train.mean(dim=0, dtype=torch.float64)
    references = (train - centre).flatten(1).numpy()
    indices, distances = list[Tensor](), list[Tensor]()
    for part in x.split(4096):
        found = pairwise_distances_argmin((part - centre).flatten(1).numpy(), references)
        indices.append(torch.from_numpy(found))
        distances += [
            (few.double() - train[rows].double()).flatten(1).norm(dim=1)
            for few, rows in zip(part.split(500), indices[-1].split(500), strict=True)
        ]
    return torch.cat(distances), torch.cat(indices)


def copies(distance: Tensor, real_distance: Tensor) -> dict[str, float]:
    """Return the share of copies of training samples, of the samples and of real samples.

    The arguments are the distances ``(n,)`` to the nearest training sample. A copy is nearer than
    half the median distance of the real samples that are not training samples themselves. There is
    no share where all are.
    """
    unseen = real_distance[real_distance > 0]
    if not len(unseen):
        return {}
    limit = unseen.median() / 2
    return {
        "copies": (distance < limit).double().mean().item(),
        "copies_of_real": (real_distance < limit).double().mean().item(),
    }


def _scores(
    classifier: features.Classifier, sets: Sequence[Tensor], of_real: features.Array
) -> dict[str, float]:
    """Return the mean scores of sets ``(n, *shape)``; real images have features ``(m, dim)``."""
    rows = []
    for scored in (features.classify(classifier, x) for x in sets):
        rows.append(
            {
                "fid_clf": features.frechet_distance(scored.features, of_real),
                "is_clf": features.inception_score(scored.probabilities),
                "smallest_class_share": float(features.class_shares(scored.probabilities).min()),
            }
        )
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _gaussian(train: Tensor, n: int) -> Tensor:
    """Return samples of the Gaussian fitted to the training data, clamped to the data's range.

    The Gaussian has full covariance and is a strong baseline.
    """
    flat = train.flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(flat, rowvar=False)))
    white = numpy_stream(_SEED, "samples/gaussian").standard_normal((n, flat.shape[1]))
    x = flat.mean(axis=0) + (white * np.sqrt(values.clip(min=0))) @ vectors.T
    return torch.from_numpy(x).float().clamp(train.min(), train.max()).view(n, *train.shape[1:])


def _mixture(train: Tensor, n: int) -> Tensor:
    """Return samples of a mixture of Gaussians, each fitted to about 100 samples or more.

    It is the strongest baseline: its details are noise, but its shapes are those of the data
    (Richardson & Weiss 2018). Samples are not clamped, which would brighten the dark pixels.
    """
    count = 1 << max(0, min(8, (len(train) // 100).bit_length() - 1))
    fitted = mixture.build(mixture.Config(num_components=count), shape=tuple(train.shape[1:]))
    fitted.initialise(averages_of(train))
    z = torch.randn(n, fitted.latent_size, generator=stream(_SEED, "samples/mixture"))
    return fitted.draw(z)[0]


def _shuffled(x: Tensor) -> Tensor:
    generator = numpy_stream(_SEED, "samples/shuffled")
    return torch.from_numpy(generator.permuted(x.flatten(1).numpy(), axis=1)).view_as(x)


def _draw(
    report: Report,
    config: Config,
    samples: Tensor,
    chains: Tensor,
    nearest: Tensor,
    real: Tensor,
    frames: list[tuple[int, Tensor]],
    caption: str,
) -> None:
    def grid(x: Tensor, title: str) -> bytes:
        return figures.image_grid(x[: _COLUMNS**2].numpy(), _COLUMNS, title)

    report.figures["samples.png"] = grid(samples, caption)
    report.figures["replay.png"] = grid(chains, "Replay buffer at the end of training")
    report.figures["real.png"] = grid(real, f"Real images ({config.split} split)")
    pairs = torch.stack([samples[:50], nearest[:50]], dim=1).flatten(0, 1)
    report.figures["neighbours.png"] = grid(pairs, "Pairs: sample, nearest training image")
    sheets = [x[:64].numpy() for _, x in frames]
    report.figures["chains.gif"] = figures.animation(
        sheets, [f"step {step}" for step, _ in frames], 8
    )
