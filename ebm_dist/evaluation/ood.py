"""Out-of-distribution detection (Du & Mordatch 2019, section 4.4 and Figure 10; metric of Hendrycks & Gimpel 2017).

AUROC of ``-E`` with the test split as positives. Both sides have the same preparation: images are rounded to the data's own grey
levels. Beside each figure stand baselines without a model, and nothing is tuned on these sets. Chance is 0.5.

The second score is how far the energy falls along a chain of the model's own sampler, as long as in training, that starts at the
image. Training made chains end where data are, so from data they go nowhere; a low energy alone does not say so (Nalisnick et al.
2019, on simple images; Grathwohl et al. 2020, section 5.3, take the slope at the image).
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import build_energy, given, is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Report, Subject
from ebm_dist.evaluation._baselines import Array, FittedGaussian
from ebm_dist.metrics.ood_images import others_like, synthetic
from ebm_dist.models.trained import TrainedModel
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream, stream
from ebm_dist.samplers import run_chain

_MODEL, _FALL, _UNTRAINED = "-E (model)", "fall of E (model)", "-E (before training)"
_BATCH = 1000  # chains at once
_NUM_COMPONENTS = 100


@section
class Config:
    max_samples: PositiveInt = 10000
    """At most so many samples of each set."""
    num_chains: PositiveInt = 2000
    """Of these, at most so many start a chain, for the fall of the energy."""
    num_bootstrap: PositiveInt = 1000
    """Resamples of both sets behind each 95 % interval."""
    mean_of: tuple[str, ...] = ()
    """Sets whose mean is reported as ``mean_auroc``; all if none is named."""


def evaluate(config: Config, subject: Subject) -> Report:
    train = shards.read_split(subject.data, "train")[0][: config.max_samples]
    inside = shards.read_split(subject.data, "test")[0][: config.max_samples]
    sets = synthetic(inside, subject.data) | others_like(
        subject.data, subject.comparison_datasets, config.max_samples
    )
    scorers: dict[str, Any] = {
        _MODEL: lambda x: -subject.model.energies(x).double().numpy(),
        _FALL: lambda x: -energy_drop(subject.model, x[: config.num_chains]).double().numpy(),
    }
    if not is_conditional(subject.model.params):
        untrained = build_energy(subject.model.params, subject.data.shape, subject.data.num_classes)
        untrained.initialise(lambda of: of(train.double()).mean(dim=0))
        blank = subject.model._replace(energy=untrained.eval().requires_grad_(False))
        scorers[_UNTRAINED] = lambda x: -blank.energies(x).double().numpy()
    scorers |= _baselines(train)
    known = {name: score(inside) for name, score in scorers.items()}
    rows: list[dict[str, Any]] = []
    for set_name, x in sets.items():
        for name, score in scorers.items():
            found = score(x)
            value, low, high = auroc(known[name], found, config.num_bootstrap)
            rows.append(
                {
                    "set": set_name,
                    "count": len(found),
                    "score": name,
                    "auroc": value,
                    "low": low,
                    "high": high,
                }
            )
    ours = {row["set"]: row for row in rows if row["score"] == _MODEL}
    best = {
        name: max(
            r["auroc"]
            for r in rows
            if r["set"] == name and r["score"] not in (_MODEL, _FALL, _UNTRAINED)
        )
        for name in ours
    }
    metrics: dict[str, Any] = {
        name: {
            "auroc": row["auroc"],
            "low": row["low"],
            "high": row["high"],
            "best_baseline": best[name],
        }
        for name, row in ours.items()
    }
    for row in rows:
        if row["score"] == _FALL:
            metrics[row["set"]] |= {f"{key}_by_fall": row[key] for key in ("auroc", "low", "high")}
    if unknown := set(config.mean_of) - set(sets):
        raise ConfigError(
            f"evaluation.ood.mean_of: no set {', '.join(sorted(unknown))}; there: {', '.join(sets)}"
        )
    chosen = config.mean_of or tuple(sets)
    means = {
        name: float(
            np.mean([row["auroc"] for row in rows if row["score"] == name and row["set"] in chosen])
        )
        for name in scorers
    }
    metrics["mean_auroc"] = means.pop(_MODEL)
    metrics["mean_auroc_of"] = means
    shown = {
        f"{name} ({ours[name]['count']:,})": {
            r["score"]: (r["auroc"], r["low"], r["high"]) for r in rows if r["set"] == name
        }
        for name in ours
    }
    title = f"{subject.data.dataset}: test images ({len(inside):,}) against other images"
    picture = figures.intervals(shown, "AUROC, 95 % interval (dashed: chance)", title, 0.5)
    examples = torch.cat([x[:10] for x in [inside, *sets.values()] if len(x) >= 10])
    rows_shown = ", ".join(["test", *(name for name, x in sets.items() if len(x) >= 10)])
    sheet = figures.image_grid(examples.numpy(), 10, f"Rows: {rows_shown}")
    return Report(metrics, {"auroc": rows}, {"auroc.png": picture, "sets.png": sheet})


def auroc(inside: Array, outside: Array, num_bootstrap: int) -> tuple[float, float, float]:
    """P(inside scores above outside), ties counting half, with the 2.5 % and 97.5 % bootstrap quantiles over both sets."""
    # resampling counts instead of values: one sort serves all resamples
    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]), method="dense") - 1
    generator = numpy_stream(0, "ood/bootstrap")
    width = int(ranks.max()) + 1
    values = []
    for i in range(num_bootstrap + 1):
        a, b = ranks[:n], ranks[n:]
        if i:
            a, b = a[generator.integers(n, size=n)], b[generator.integers(m, size=m)]
        ours, theirs = np.bincount(a, minlength=width), np.bincount(b, minlength=width)
        below = np.cumsum(theirs) - theirs
        values.append(float((ours * (below + theirs / 2)).sum() / (n * m)))
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return values[0], float(low), float(high)


@torch.no_grad()
def energy_drop(model: TrainedModel, x: Tensor) -> Tensor:
    """``E(x) - E(x_K)`` of each sample ``(n, *shape)``, ``(n,)``: ``x_K`` is where ``K`` steps of the model's sampler lead from it.

    ``K`` is that of training. Of a conditional model under the likeliest label, in standard deviations of that class's energies.
    """
    kernel, num_steps, generator = (
        model.kernel(),
        model.params.sampler.num_steps,
        stream(0, "ood/fall"),
    )
    falls = []
    for start in x.split(_BATCH):
        labels = model.likeliest(start) if is_conditional(model.params) else None
        target = given(model.energy, labels)
        end, _ = run_chain(kernel, target, start, num_steps, generator)
        scale = torch.tensor(1.0) if labels is None else model.class_energies[1][labels]
        falls.append((target(start) - target(end)) / scale)
    return torch.cat(falls)


def _baselines(train: Tensor) -> dict[str, Any]:
    """Scores that no energy model made; where a sign would have to be chosen they are two-sided."""
    gaussian = FittedGaussian(train)
    size = len(gaussian.mean)
    ridge = 1e-3 * np.trace(gaussian.covariance) / size

    def two_sided(statistic: Any) -> Any:
        middle = np.median(statistic(train))
        return lambda x: -np.abs(statistic(x) - middle)

    def residual(x: Tensor) -> Array:
        return np.log(gaussian.residual(x, min(_NUM_COMPONENTS, size // 4)) + 1e-6)  # type: ignore[no-any-return]

    def variation(x: Tensor) -> Array:
        return sum(x.diff(dim=dim).abs().flatten(1).sum(dim=1) for dim in (2, 3)).double().numpy()  # type: ignore[union-attr]

    def saturation(x: Tensor) -> Array:
        return (x.amax(dim=1) - x.amin(dim=1)).flatten(1).mean(dim=1).double().numpy()

    colour = {"saturation, two-sided": two_sided(saturation)} if train.shape[1] > 1 else {}
    return {
        "PNG size, two-sided": two_sided(_png_bytes),
        "brightness, two-sided": two_sided(lambda x: x.flatten(1).mean(dim=1).double().numpy()),
        "total variation, two-sided": two_sided(variation),
        "PCA residual, two-sided": two_sided(residual),
        "Gaussian (Mahalanobis)": lambda x: -gaussian.mahalanobis(x, ridge),
        **colour,
    }


def _png_bytes(x: Tensor) -> Array:
    sizes = []
    for image in (x * 255).round().byte().numpy():
        out = io.BytesIO()
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(out, "PNG")
        sizes.append(out.tell())
    return np.array(sizes, np.float64)
