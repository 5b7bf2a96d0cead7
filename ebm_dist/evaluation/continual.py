"""Class-incremental learning (Du & Mordatch 2019, section 4.5; van de Ven & Tolias 2019).

After each task the class of a test image is the label of least energy among all labels seen so far,
without information about the task of the image. Forgetting is the drop of a task's accuracy from
its best value to the end (Chaudhry et al. 2018).

Two baselines without a network learn each class from the data of that class alone and forget
nothing: the distance to the class mean, and a Gaussian per class. A third score is the sum of the
Gaussian's and the model's energy, a product of experts (Hinton 2002).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_dist.config import Positive, PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.energies import EnergyModel, is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import Report, Subject, check_finite
from ebm_dist.report import figures


@section
class Config:
    split: str = "test"
    """The split to classify: ``val`` to choose settings, ``test`` to report."""
    batch_size: PositiveInt = 1000
    """Images per batch."""
    shrinkage: Positive = 0.05
    """Added to the variances of each class's Gaussian; inputs are between 0 and 1."""
    weight: Positive = 200.0
    """Weight of the model's energy in its sum with the Gaussian's, in nats per unit."""


def evaluate(config: Config, subject: Subject) -> Report:
    model, num_classes = subject.model, subject.data.num_classes
    num_tasks = model.params.train.num_tasks
    if not is_conditional(model.params) or num_tasks == 1:
        raise ConfigError(
            "evaluation.continual: needs a model that learnt classes in tasks "
            "(objective.conditional, train.num_tasks)"
        )
    x, y = shards.read_split(subject.data, config.split)
    per_task = num_classes // num_tasks  # classes
    matrix = np.full((num_tasks, num_tasks), np.nan)  # [after task, on task]
    for after, energy in enumerate([*model.previous_tasks, model.energy]):
        predicted = _energies(config, energy, x, (after + 1) * per_task).argmin(dim=1)
        for on in range(after + 1):
            of_task = y // per_task == on
            matrix[after, on] = (predicted[of_task] == y[of_task]).float().mean().item()
    train = shards.read_split(subject.data, "train")
    distances, gaussians = references(*train, x, num_classes, config.shrinkage)
    energies = _energies(config, model.energy, x, num_classes)

    def accuracy(energies: Tensor) -> float:
        return (energies.argmin(dim=1) == y).float().mean().item()

    final = energies.argmin(dim=1)
    metrics: dict[str, Any] = {
        "accuracy": accuracy(energies),
        "accuracy_with_gaussians": accuracy(gaussians + config.weight * energies),
        "forgetting": float(np.mean(np.nanmax(matrix[:-1, :-1], axis=0) - matrix[-1, :-1])),
        "accuracy_at_once": float(np.mean(matrix.diagonal())),
        "chance": 1 / num_classes,
        "nearest_class_mean": accuracy(distances),
        "class_gaussians": accuracy(gaussians),
        "num_images": len(x),
        "after_task": {
            str(a + 1): {str(on + 1): float(matrix[a, on]) for on in range(a + 1)}
            for a in range(num_tasks)
        },
        "by_class": {
            str(k): (final[y == k] == k).float().mean().item() for k in range(num_classes)
        },
    }
    of_class = subject.data.class_names
    names = [
        f"{of_class[on * per_task]} to {of_class[(on + 1) * per_task - 1]}"
        for on in range(num_tasks)
    ]
    rows = [
        {"after_task": a + 1}
        | {names[on]: matrix[a, on] if on <= a else "" for on in range(num_tasks)}
        for a in range(num_tasks)
    ]
    title = f"{subject.data.dataset}: accuracy over all classes seen so far"
    picture = figures.matrix(
        matrix,
        names,
        [f"after task {a + 1}" for a in range(num_tasks)],
        "classes of the task",
        title,
    )
    return Report(metrics, {"accuracy": rows}, {"accuracy.png": picture})


@torch.no_grad()
def _energies(config: Config, energy: EnergyModel, x: Tensor, num_labels: int) -> Tensor:
    """Return the energies ``(n, num_labels)`` under each of the first labels."""
    labels = [torch.full((config.batch_size,), k) for k in range(num_labels)]
    energies = torch.cat(
        [
            torch.stack([energy(part, y[: len(part)]) for y in labels], dim=1)
            for part in x.split(config.batch_size)
        ]
    )
    check_finite(energies, "evaluation.continual: energies of the images under each label")
    return energies


def references(
    train: Tensor, labels: Tensor, x: Tensor, num_classes: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Return two reference energies ``(n, num_classes)`` of ``x (n, *shape)``.

    They are the squared distance to the class mean, and ``-log N(x; m_y, S_y + shrinkage)`` up to a
    constant that all classes share.
    """
    flat, distances, gaussians = x.flatten(1).double(), [], []
    for k in range(num_classes):
        of_class = train[labels == k].flatten(1).double()
        centred = of_class - of_class.mean(dim=0)
        covariance = centred.T @ centred / len(of_class) + shrinkage * torch.eye(
            of_class.shape[1], dtype=torch.double
        )
        factor = torch.linalg.cholesky(covariance)
        difference = flat - of_class.mean(dim=0)
        white = torch.linalg.solve_triangular(factor, difference.T, upper=False)
        distances.append((difference**2).sum(dim=1))
        gaussians.append((white**2).sum(dim=0) / 2 + factor.diagonal().log().sum())
    return torch.stack(distances, dim=1), torch.stack(gaussians, dim=1)
