"""Losses of energy-based learning (LeCun et al. 2006, table 1) compared on the labels of digits.

Run ``python -m benchmarks.label_losses --data data/digits``. Each trains the same multilayer
perceptron with an output for each label on 8x8 digits in this process with one thread, for as many
steps. The accuracy on the validation split chooses the learning rate and the margin, with a seed of
its own; then five seeds are trained, and the test split is looked at once, at the end. Beside them
are classifiers of scikit-learn, with the settings that the same split chooses. Writes
reports/benchmarks/label_losses.json.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor

from benchmarks import circumstances
from benchmarks.rbm import build, steps
from ebm_dist.data import shards
from ebm_dist.errors import DivergedError
from ebm_dist.files import write_json
from ebm_dist.objectives.discriminative import LOSSES
from ebm_dist.report.table import interval
from pipelines import run

RATES, MARGINS = (1e-3, 5e-3), (1.0, 5.0)
WITH_MARGIN = ("hinge", "lvq2", "square_square", "square_exponential")
CHOICE_SEED = 1000
VALUES: dict[str, Any] = {
    "dataset": {"name": "digits"},
    "comparison_datasets": {},
    "energy": {"name": "mlp", "hidden": [128, 128], "heads": True},
    "sampler": {"name": "langevin"},
    "replay": {"capacity": 64},
    "train": {"batch_size": 64, "num_shards": 1, "max_energy": 1e8},
    "cluster": {"workers": 1},
}
CLASSIFIERS = {
    "logistic regression": [LogisticRegression(C=c, max_iter=2000) for c in (0.1, 1.0, 10.0)],
    "support vectors, radial kernel": [SVC(C=c) for c in (1.0, 10.0, 100.0)],
    "nearest neighbours": [KNeighborsClassifier(k) for k in (1, 3, 5)],
}


def accuracy(
    index: shards.Index, loss: str, lr: float, margin: float, seed: int, num_steps: int, split: str
) -> float | None:
    """Train; return the accuracy on a split, or None if the training diverges."""
    values = VALUES | {
        "seed": seed,
        "objective": {"name": "discriminative", "loss": loss, "margin": margin},
        "optimizer": {"lr": lr, "decay": 0.5, "ema_decay": 0.99},
    }
    training = build(values, index, num_steps)
    try:
        steps(training, num_steps)
    except DivergedError:
        return None
    x, y = shards.read_split(index, split)
    with torch.no_grad():
        every = torch.arange(index.num_classes).expand(len(x), -1)
        energies: Tensor = training.averages["energy"](x, every)
    return float((energies.argmin(dim=1) == y).float().mean())


def rows(index: shards.Index, num_steps: int, num_seeds: int) -> list[dict[str, Any]]:
    """Return the test accuracies of each loss and classifier."""
    found = []
    for loss in LOSSES:
        ways = list(itertools.product(RATES, MARGINS if loss in WITH_MARGIN else (1.0,)))
        on_val = [accuracy(index, loss, *way, CHOICE_SEED, num_steps, "val") for way in ways]
        best = max(range(len(ways)), key=lambda i: on_val[i] or 0)
        reached = [
            accuracy(index, loss, *ways[best], seed, num_steps, "test") for seed in range(num_seeds)
        ]
        ended = [value for value in reached if value is not None]
        found.append(
            {
                "by": loss,
                "lr": ways[best][0],
                "margin": ways[best][1] if loss in WITH_MARGIN else None,
                "accuracy": float(np.mean(ended)) if ended else None,
                "interval": interval(ended, "accuracy"),
                "diverged": len(reached) - len(ended),
            }
        )
        print(found[-1], flush=True)
    (x, y), (x_val, y_val), (x_test, y_test) = (
        (x.flatten(1).numpy(), y.numpy())
        for x, y in (shards.read_split(index, split) for split in ("train", "val", "test"))
    )
    for name, candidates in CLASSIFIERS.items():
        best_one = max(candidates, key=lambda c: c.fit(x, y).score(x_val, y_val))
        score = float(best_one.fit(x, y).score(x_test, y_test))
        found.append({"by": name, "accuracy": score, "settings": str(best_one)})
        print(found[-1], flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, default=Path("data/digits"))
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/label_losses.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    content = circumstances() | {"threads": 1, "steps": args.steps, "seeds": args.seeds}
    content["rows"] = rows(shards.read_index(args.data / "dataset"), args.steps, args.seeds)
    write_json(args.out, content)


if __name__ == "__main__":
    run(main)
