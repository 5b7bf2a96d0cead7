"""Histogram of energies of training, test, noise and other data (Du & Mordatch 2019, Figure 11).

Anomalies among the test samples are a set of their own.
"""

import torch

from ebm_dist.config import PositiveInt, section
from ebm_dist.data import shards
from ebm_dist.evaluation import Needs, Report, Subject, check_finite
from ebm_dist.metrics.ood_images import others_like
from ebm_dist.report import figures
from ebm_dist.rng import stream
from ebm_dist.samplers import noise


@section
class Config:
    max_samples: PositiveInt = 10000
    """Largest number of samples per set."""


def check(config: Config, needs: Needs) -> None:
    needs.split("train")
    needs.split("test")
    needs.comparable_sets()


def evaluate(config: Config, subject: Subject) -> Report:
    from sklearn.metrics import roc_auc_score  # slow to import

    data = subject.data
    train, known = shards.read_split(data, "train")
    test, labels = shards.read_split(data, "test")
    is_anomaly = labels > known.max()
    sets = {"train": train, "test": test[~is_anomaly], "anomalies": test[is_anomaly]}
    sets = {name: x[: config.max_samples] for name, x in sets.items() if len(x)}
    size = (len(sets["test"]), *data.shape)
    sets["uniform noise" if data.bounds else "normal noise"] = noise(
        size, data.bounds, stream(0, "histogram/noise")
    )
    sets |= others_like(data, subject.comparison_datasets, config.max_samples)
    energies = {name: subject.model.energies(x) for name, x in sets.items()}
    for name, values in energies.items():
        check_finite(values, f"evaluation.histogram: energies of {name}")
    rows = [
        {"set": name, "count": len(e), "mean": e.mean().item(), "sd": e.std().item()}
        | dict(
            zip(
                ("p05", "median", "p95"),
                e.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist(),
                strict=True,
            )
        )
        for name, e in energies.items()
    ]
    of_train, of_test = energies["train"], energies["test"]
    is_train = torch.cat([torch.ones(len(of_train)), torch.zeros(len(of_test))])
    metrics = {
        "train_test_gap": (of_test.mean() - of_train.mean()).item(),
        # 0.5: no memorisation
        "train_test_auroc": float(roc_auc_score(is_train, -torch.cat([of_train, of_test]))),
        "mean_energy": {row["set"]: row["mean"] for row in rows},
    }
    arrays = {name: e.numpy() for name, e in energies.items()}
    what = "real, noise and other images" if len(data.shape) == 3 else "data and noise"
    picture = figures.histogram(arrays, "energy E(x)  (low = likely)", f"Energies of {what}")
    return Report(metrics, {"energies": rows}, {"histogram.png": picture})
