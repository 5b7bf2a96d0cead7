"""Completion of images with a hidden lower half (Du & Mordatch 2019, section 4.2 and Figure 7).

The hidden pixels start from noise and follow the sampler of the training; the other pixels stay
fixed. An error on test images far above that on training images is a sign of memorisation. The
variance over several completions of one image tells a distribution from a single answer. A
conditional model gets the label. Baselines without a model are the mean training image, and the
lower half of the training image with the nearest upper half. For a conditional model they are of
the same class, and the mean of all classes stands beside.
"""

from typing import Any

import torch
from torch import Tensor

from ebm_dist.config import Mismatch, Params, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import frozen, given, is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream, stream
from ebm_dist.samplers import noise, run_chain

_SHOWN = 10


@section
class Config:
    num_images: PositiveInt = 500
    """Images of each split to complete, at least 2."""
    num_completions: PositiveInt = 8
    """Completions of each image, at least 2."""
    num_steps: PositiveInt = 200
    """Steps of the chains."""

    def check(self, params: Params) -> None:
        for name in ("num_images", "num_completions"):
            if getattr(self, name) < 2:
                raise Mismatch(f"evaluation.completion.{name}", "needs at least 2, for a variance")


def check(config: Config, needs: Needs) -> None:
    needs.images()
    needs.split("train")
    needs.split("test")
    needs.chains_of_parts()
    if needs.data.shape[1] < 2:
        raise needs.error(f"needs images of two rows, found the shape {needs.data.shape}")


def evaluate(config: Config, subject: Subject) -> Report:
    if len(subject.data.shape) != 3:
        raise ConfigError(
            f"evaluation.completion: {subject.data.dataset} has samples of shape "
            f"{subject.data.shape}, not images; leave this suite out"
        )
    train, train_labels = shards.read_split(subject.data, "train")
    test, test_labels = shards.read_split(subject.data, "test")
    rows_of_train = torch.from_numpy(
        numpy_stream(0, "completion/train").permutation(len(train))[: config.num_images]
    )
    sets = {
        "train": (train[rows_of_train], train_labels[rows_of_train]),
        "test": (test[: config.num_images], test_labels[: config.num_images]),
    }
    num_images = len(sets["test"][0])
    metrics: dict[str, Any] = {"num_images": num_images, "num_steps": config.num_steps}
    mean_image, rows = hidden(train.mean(dim=0, keepdim=True)), list[dict[str, Any]]()
    pictures, has_labels = {}, is_conditional(subject.model.params)
    for name, (x, y) in sets.items():
        truth, ends = hidden(x), complete(config, subject, x, y, name)
        errors = ((ends - truth) ** 2).flatten(2).mean(dim=2)  # (completions, images)
        per_image = errors.mean(dim=0)
        allowed = torch.ones(len(x), len(train), dtype=torch.bool)
        if has_labels:
            allowed &= y[:, None] == train_labels
        if name == "train":
            allowed[torch.arange(len(x)), rows_of_train] = False  # the image itself
        metrics[name] = {
            "mse": per_image.mean().item(),
            "mse_standard_error": (per_image.std() / len(x) ** 0.5).item(),
            "mse_of_mean_completion": ((ends.mean(dim=0) - truth) ** 2).mean().item(),
            "variance": ends.var(dim=0).mean().item(),
            "mse_mean_image": ((mean_image - truth) ** 2).mean().item(),
            **_of_class_means(truth, y, hidden(train), train_labels, has_labels=has_labels),
            "mse_nearest": ((nearest(x, train, allowed) - truth) ** 2).mean().item(),
        }
        rows += [{"set": name, **metrics[name]}]
        pictures[f"{name}.png"] = _picture(x, ends, name)
    metrics["mse_test_over_train"] = metrics["test"]["mse"] / metrics["train"]["mse"]
    metrics["mse_over_mean_image"] = metrics["test"]["mse"] / metrics["test"]["mse_mean_image"]
    return Report(metrics, {"completion": rows}, pictures)


def _of_class_means(
    truth: Tensor, y: Tensor, train: Tensor, labels: Tensor, *, has_labels: bool
) -> dict[str, float]:
    """Return the error of the mean training image of the class, of a model that gets the label."""
    if not has_labels:
        return {}
    are_of = {label: labels == label for label in y.unique().tolist()}
    means = {
        label: train[rows if rows.any() else slice(None)].mean(dim=0)
        for label, rows in are_of.items()
    }
    of_class = torch.stack([means[label] for label in y.tolist()])
    return {"mse_class_mean": ((of_class - truth) ** 2).mean().item()}


def nearest(x: Tensor, train: Tensor, allowed: Tensor) -> Tensor:
    """Return the lower halves ``(n, channels, h/2, w)`` of the nearest training images.

    The distance is that of the upper halves. ``allowed (n, num_train)`` masks the training images
    to use for each image.
    """
    upper, train_upper = (part[:, :, : x.shape[2] // 2].flatten(1) for part in (x, train))
    # an expanded square would cancel far from 0, and break ties by rounding
    distance = torch.cdist(upper, train_upper, compute_mode="donot_use_mm_for_euclid_dist")
    distance[~allowed] = torch.inf
    return hidden(train[distance.argmin(dim=1)])


def hidden(x: Tensor) -> Tensor:
    """Return the part of images ``(..., h, w)`` to complete: the lower half."""
    return x[..., x.shape[-2] // 2 :, :]


def complete(config: Config, subject: Subject, x: Tensor, y: Tensor, name: str) -> Tensor:
    """Return completions ``(num_completions, n, channels, h/2, w)`` of ``x (n, channels, h, w)``.

    ``name`` addresses the random streams.
    """
    model, upper = subject.model, x[:, :, : x.shape[2] // 2]
    energy = given(model.energy, y if is_conditional(model.params) else None)
    ends = []
    with frozen(model.energy):
        for i in range(config.num_completions):
            start = noise(
                tuple(hidden(x).shape), model.bounds, stream(0, f"completion/{name}/start", i)
            )
            chain = stream(0, f"completion/{name}/chain", i)
            end, _ = run_chain(
                model.kernel(),
                lambda part: energy(torch.cat([upper, part], dim=2)),
                start,
                config.num_steps,
                chain,
            )
            check_finite(end, f"evaluation.completion: completions of {name} images")
            ends.append(end)
    return torch.stack(ends)


def _picture(x: Tensor, ends: Tensor, name: str) -> bytes:
    """Draw a row of images, a row of their upper halves, and rows of completions."""
    count = min(_SHOWN, len(x))
    blank = torch.full_like(hidden(x[:count]), 0.5)
    upper = x[:count, :, : x.shape[2] // 2]
    rows = [
        x[:count],
        *(torch.cat([upper, part], dim=2) for part in (blank, *(end[:count] for end in ends[:6]))),
    ]
    title = f"Completions of {name} images. Rows: image, visible half, completions"
    return figures.image_grid(torch.cat(rows).numpy(), count, title)
