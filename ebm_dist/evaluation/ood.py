"""Out-of-distribution detection (Du & Mordatch 2019, section 4.4 and Figure 10).

The metric is the AUROC of ``-E`` with the test split as positives (Hendrycks & Gimpel 2017); chance
is 0.5. Samples of both sides are prepared alike; images of integers are rounded to the grey levels
of the data. Each value has baselines without a model. The suite fits nothing to these sets, and a
recipe says whether its settings were chosen after a look at them. Samples that are no images have
no set of one colour and fewer baselines.

The second score is the drop of the energy along a chain of the model's sampler that starts at the
image and is as long as in training. Training makes chains end where the data are, so chains from
data hardly move. A low energy alone does not show that an image is like the data: Nalisnick et al.
2019 find low energies of simple images. Grathwohl et al. 2020, section 5.3, use the slope at the
image instead.
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ebm_dist.config import Mismatch, Params, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import averages_of, build_energy, given, is_conditional
from ebm_dist.errors import DataError
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.metrics.detectors import Array, Gaussian, rows
from ebm_dist.metrics.ood_images import others_like, synthetic, synthetic_names
from ebm_dist.models.trained import TrainedModel
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream, stream
from ebm_dist.samplers import run_chain

_MODEL, _FALL, _UNTRAINED = "-E (model)", "fall of E (model)", "-E (before training)"
_BATCH = 1000  # chains per batch
_NUM_COMPONENTS = 100
_FEWEST_RESAMPLES = 40  # one beyond each end of the interval


@section
class Config:
    max_samples: PositiveInt = 10000
    """Largest number of samples per set."""
    num_chains: PositiveInt = 2000
    """Largest number of samples per set that start a chain, for the drop of the energy."""
    num_bootstrap: PositiveInt = 1000
    """Bootstrap resamples of both sets for each 95 % interval, at least 40."""
    mean_of: tuple[str, ...] = ()
    """Sets to average in ``mean_auroc``; all sets if empty."""

    def check(self, params: Params) -> None:
        if self.num_bootstrap < _FEWEST_RESAMPLES:
            raise Mismatch(
                "evaluation.ood.num_bootstrap",
                f"needs at least {_FEWEST_RESAMPLES}, for the 2.5 % and 97.5 % quantiles",
            )


def check(config: Config, needs: Needs) -> None:
    needs.split("train")
    needs.split("test")
    needs.comparable_sets()
    names = [*synthetic_names(needs.data.shape), *needs.comparison_datasets]
    if unknown := set(config.mean_of) - set(names):
        raise needs.error(
            f"no set {', '.join(sorted(unknown))} for mean_of", f"choose of {', '.join(names)}"
        )


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
        untrained.initialise(averages_of(train))
        blank = subject.model._replace(energy=untrained.eval().requires_grad_(False))
        scorers[_UNTRAINED] = lambda x: -blank.energies(x).double().numpy()
    scorers |= _baselines(train, subject.data.bounds)
    inside_scores = {name: score(inside) for name, score in scorers.items()}
    rows: list[dict[str, Any]] = []
    for set_name, x in sets.items():
        for name, score in scorers.items():
            outside_scores = score(x)
            value, low, high = auroc(
                inside_scores[name],
                outside_scores,
                config.num_bootstrap,
                f"evaluation.ood: scores {name!r} of the test images and of {set_name}",
            )
            rows.append(
                {
                    "set": set_name,
                    "count": len(outside_scores),
                    "score": name,
                    "auroc": value,
                    "low": low,
                    "high": high,
                }
            )
    model_rows = {row["set"]: row for row in rows if row["score"] == _MODEL}
    best = {
        name: max(
            r["auroc"]
            for r in rows
            if r["set"] == name and r["score"] not in (_MODEL, _FALL, _UNTRAINED)
        )
        for name in model_rows
    }
    metrics: dict[str, Any] = {
        name: {
            "auroc": row["auroc"],
            "low": row["low"],
            "high": row["high"],
            "best_baseline": best[name],
        }
        for name, row in model_rows.items()
    }
    for row in rows:
        if row["score"] == _FALL:
            metrics[row["set"]] |= {f"{key}_by_fall": row[key] for key in ("auroc", "low", "high")}
    averaged = config.mean_of or tuple(sets)
    means = {
        name: float(
            np.mean(
                [row["auroc"] for row in rows if row["score"] == name and row["set"] in averaged]
            )
        )
        for name in scorers
    }
    metrics["mean_auroc"] = means.pop(_MODEL)
    metrics["mean_auroc_of"] = means
    shown = {
        f"{name} ({model_rows[name]['count']:,})": {
            r["score"]: (r["auroc"], r["low"], r["high"]) for r in rows if r["set"] == name
        }
        for name in model_rows
    }
    title = f"{subject.data.dataset}: test samples ({len(inside):,}) against others"
    picture = figures.intervals(shown, "AUROC, 95 % interval (dashed: chance)", title, 0.5)
    report = Report(metrics, {"auroc": rows}, {"auroc.png": picture})
    if inside.ndim == 4:
        report.figures["sets.png"] = _sheet(inside, sets)
    return report


def _sheet(inside: Tensor, sets: dict[str, Tensor]) -> bytes:
    """Draw ten images of each set that has them."""
    examples = torch.cat([x[:10] for x in [inside, *sets.values()] if len(x) >= 10])
    rows_shown = ", ".join(["test", *(name for name, x in sets.items() if len(x) >= 10)])
    return figures.image_grid(examples.numpy(), 10, f"Rows: {rows_shown}")


def auroc(
    inside: Array, outside: Array, num_bootstrap: int, what: str = "scores"
) -> tuple[float, float, float]:
    """Return P(inside scores above outside) and its 2.5 % and 97.5 % bootstrap quantiles.

    Ties count half. Both sets are resampled. Raise :class:`DivergedError` for a score that is not
    finite and :class:`DataError` for a set of one, which cannot be resampled; ``what`` names the
    scores.
    """
    from scipy.stats import rankdata  # slow to import

    check_finite(np.concatenate([inside, outside]), what)
    if min(len(inside), len(outside)) < 2:
        raise DataError(
            f"{what}: an AUROC with an interval needs at least 2 on each side, found"
            f" {len(inside)} and {len(outside)}",
            "use larger sets",
        )
    # resampled ranks instead of values: all resamples need one sort only
    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]), method="dense") - 1
    generator = numpy_stream(0, "ood/bootstrap")
    width = int(ranks.max()) + 1
    values = []
    for i in range(num_bootstrap + 1):
        a, b = ranks[:n], ranks[n:]
        if i:
            a, b = a[generator.integers(n, size=n)], b[generator.integers(m, size=m)]
        counts_in, counts_out = np.bincount(a, minlength=width), np.bincount(b, minlength=width)
        below = np.cumsum(counts_out) - counts_out
        values.append(float((counts_in * (below + counts_out / 2)).sum() / (n * m)))
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return values[0], float(low), float(high)


@torch.no_grad()
def energy_drop(model: TrainedModel, x: Tensor) -> Tensor:
    """Return the drop ``E(x) - E(x_K)``, ``(n,)``, for samples ``x (n, *shape)``.

    ``x_K`` is the end of a chain from ``x``, with the sampler and the number of steps of the
    training. For a conditional model the energy is that under the likeliest label, and the drop is
    in standard deviations of the energies of that class.
    """
    kernel, num_steps = model.kernel(), model.params.sampler.num_steps
    generator = stream(0, "ood/fall")
    drops = []
    for start in x.split(_BATCH):
        labels = model.likeliest(start) if is_conditional(model.params) else None
        target = given(model.energy, labels)
        end, _ = run_chain(kernel, target, start, num_steps, generator)
        scale = torch.tensor(1.0) if labels is None else model.class_energies[1][labels]
        drops.append((target(start) - target(end)) / scale)
    return torch.cat(drops)


def _baselines(train: Tensor, bounds: tuple[float, float] | None) -> dict[str, Any]:
    """Return scores without an energy model, two-sided where the sign would be a choice."""
    gaussian = Gaussian(rows(train))
    size = len(gaussian.mean)
    ridge = 1e-3 * np.trace(gaussian.covariance) / size or 1e-3

    num_components = min(_NUM_COMPONENTS, max(1, size // 4))

    def two_sided(statistic: Any) -> Any:
        middle = np.median(statistic(train))
        return lambda x: -np.abs(statistic(x) - middle)

    def residual(x: Tensor) -> Array:
        squared = gaussian.residual(rows(x), num_components)
        return np.log(squared + 1e-6)  # type: ignore[no-any-return]

    def variation(x: Tensor) -> Array:
        total = sum(x.diff(dim=dim).abs().flatten(1).sum(dim=1) for dim in (2, 3))
        return total.double().numpy()  # type: ignore[union-attr]

    def saturation(x: Tensor) -> Array:
        return (x.amax(dim=1) - x.amin(dim=1)).flatten(1).mean(dim=1).double().numpy()

    scorers: dict[str, Any] = {}
    if train.ndim == 4:
        low, high = bounds or (float(train.min()), float(train.max()))
        scorers["PNG size, two-sided"] = two_sided(lambda x: _png_bytes(x, low, high))
        scorers["brightness, two-sided"] = two_sided(
            lambda x: x.flatten(1).mean(dim=1).double().numpy()
        )
        scorers["total variation, two-sided"] = two_sided(variation)
    if size > 1:
        scorers["PCA residual, two-sided"] = two_sided(residual)
    scorers["Gaussian (Mahalanobis)"] = lambda x: -gaussian.mahalanobis(rows(x), ridge)
    if train.ndim == 4 and train.shape[1] > 1:
        scorers["saturation, two-sided"] = two_sided(saturation)
    return scorers


def _png_bytes(x: Tensor, low: float, high: float) -> Array:
    """Return the size ``(n,)`` of each image as a PNG file, with 256 levels from low to high.

    Images of two or more than four channels are stored as one grey image, channel below channel.
    """
    levels = ((x - low) / max(high - low, 1e-12)).clamp(0, 1)
    sizes = []
    for image in (levels * 255).round().byte().numpy():
        is_colour = len(image) in (3, 4)
        pixels = image.transpose(1, 2, 0) if is_colour else image.reshape(-1, image.shape[2])
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        sizes.append(out.tell())
    return np.array(sizes, np.float64)
