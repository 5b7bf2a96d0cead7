"""Completion of images whose lower half is hidden (Du & Mordatch 2019, section 4.2 and Figure 7).

The hidden pixels start as noise and follow the sampler that the model was trained with; the others stay, so gradient and noise act
on the hidden ones alone. The error on training images beside that on test images tells memory from understanding, the variance over
several completions of one image tells a distribution from an answer. A conditional model is given the label. Beside it, without a
model: the mean training image, and the lower half of the training image with the nearest upper half, of the same class if given.
"""

from typing import Any

import torch
from torch import Tensor

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import frozen, given, is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Report, Subject
from ebm_dist.report import figures
from ebm_dist.rng import numpy_stream, stream
from ebm_dist.samplers import noise, run_chain

_SHOWN = 10


@section
class Config:
    num_images: PositiveInt = 500
    """Images of each split, of which every one is completed."""
    num_completions: PositiveInt = 8
    """Completions of each image."""
    num_steps: PositiveInt = 200
    """Steps of the chains."""


def evaluate(config: Config, subject: Subject) -> Report:
    if len(subject.data.shape) != 3:
        raise ConfigError(
            f"evaluation.completion: {subject.data.dataset} has samples of shape {subject.data.shape}, not images"
        )
    train, train_labels = shards.read_split(subject.data, "train")
    test, test_labels = shards.read_split(subject.data, "test")
    chosen = torch.from_numpy(
        numpy_stream(0, "completion/train").permutation(len(train))[: config.num_images]
    )
    sets = {
        "train": (train[chosen], train_labels[chosen]),
        "test": (test[: config.num_images], test_labels[: config.num_images]),
    }
    metrics: dict[str, Any] = {"num_images": config.num_images, "num_steps": config.num_steps}
    mean_image, rows = hidden(train.mean(dim=0, keepdim=True)), list[dict[str, Any]]()
    pictures, given_labels = {}, is_conditional(subject.model.params)
    for name, (x, y) in sets.items():
        truth, ends = hidden(x), complete(config, subject, x, y, name)
        errors = ((ends - truth) ** 2).flatten(2).mean(dim=2)  # (completions, images)
        per_image = errors.mean(dim=0)
        metrics[name] = {
            "mse": per_image.mean().item(),
            "mse_standard_error": (per_image.std() / len(x) ** 0.5).item(),
            "mse_of_mean_completion": ((ends.mean(dim=0) - truth) ** 2).mean().item(),
            "variance": ends.var(dim=0).mean().item(),
            "mse_mean_image": ((mean_image - truth) ** 2).mean().item(),
            "mse_nearest": (
                (nearest(x, train, y[:, None] == train_labels if given_labels else None) - truth)
                ** 2
            )
            .mean()
            .item(),
        }
        rows += [{"set": name, **metrics[name]}]
        pictures[f"{name}.png"] = _picture(x, ends, name)
    metrics["mse_test_over_train"] = metrics["test"]["mse"] / metrics["train"]["mse"]
    metrics["mse_over_mean_image"] = metrics["test"]["mse"] / metrics["test"]["mse_mean_image"]
    return Report(metrics, {"completion": rows}, pictures)


def nearest(x: Tensor, train: Tensor, allowed: Tensor | None) -> Tensor:
    """Lower halves ``(n, channels, h/2, w)`` of the training images with the nearest upper half, but none at no distance.

    ``allowed (n, training images)``: which may be taken for which; all if None.
    """
    above, theirs = (part[:, :, : x.shape[2] // 2].flatten(1) for part in (x, train))
    distance = torch.cdist(above, theirs)
    distance[distance < 1e-3] = torch.inf  # itself, among training images
    if allowed is not None:
        distance[~allowed] = torch.inf
    return hidden(train[distance.argmin(dim=1)])


def hidden(x: Tensor) -> Tensor:
    """The part of images ``(..., h, w)`` that is to be completed: the lower half."""
    return x[..., x.shape[-2] // 2 :, :]


def complete(config: Config, subject: Subject, x: Tensor, y: Tensor, name: str) -> Tensor:
    """Completions ``(num_completions, n, channels, h/2, w)`` of images ``(n, channels, h, w)``."""
    model, known = subject.model, x[:, :, : x.shape[2] // 2]
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
                lambda part: energy(torch.cat([known, part], dim=2)),
                start,
                config.num_steps,
                chain,
            )
            ends.append(end)
    return torch.stack(ends)


def _picture(x: Tensor, ends: Tensor, name: str) -> bytes:
    """A row of images, the same without their hidden half, and a row for each of some completions."""
    count = min(_SHOWN, len(x))
    blank = torch.full_like(hidden(x[:count]), 0.5)
    known = x[:count, :, : x.shape[2] // 2]
    rows = [
        x[:count],
        *(torch.cat([known, part], dim=2) for part in (blank, *(end[:count] for end in ends[:6]))),
    ]
    title = f"Completions of {name} images. Rows: image, what is given, completions"
    return figures.image_grid(torch.cat(rows).numpy(), count, title)
