"""Measure out-of-distribution detection while a recipe trains (Du & Mordatch 2019, section 4.4).

Run ``python -m benchmarks.progress --data data/igebm-cifar10-ood-cpu``. The recipe's model trains
in this process with each seed, and at ten steps the AUROC of -E is measured: test samples against
the sets of suite ``ood``. The claim is that it grows with the training: the figure is Spearman's
rank correlation of the mean AUROC over the sets with the step, within each seed. No setting is
chosen by it. Writes reports/benchmarks/progress.json as rows come, and goes on where an earlier
call stopped.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks import circumstances
from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.energies import EnergyModel
from ebm_dist.evaluation.ood import auroc
from ebm_dist.files import read_json, write_json
from ebm_dist.metrics.ood_images import others_like, synthetic
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm
from pipelines import run

RECIPE = Path("pipelines/recipes/igebm-cifar10-ood-cpu.yaml")
_NUM_LOOKS, _NUM_SAMPLES, _PART = 10, 1000, 500
_NUM_BOOTSTRAP = 1  # the spread over seeds is the interval


@torch.no_grad()
def energies(energy: EnergyModel, x: torch.Tensor) -> Any:
    """Return the energies ``(n,)`` of samples."""
    return torch.cat([energy(part) for part in x.split(_PART)]).double().numpy()


def look(
    energy: EnergyModel, inside: torch.Tensor, sets: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Return the AUROC of -E against each set."""
    of_inside = -energies(energy, inside)
    return {
        name: auroc(of_inside, -energies(energy, x), _NUM_BOOTSTRAP)[0] for name, x in sets.items()
    }


def train(
    seed: int, index: shards.Index, sets: dict[str, torch.Tensor], mean_of: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Train one seed; return what is seen at each look."""
    values = config.load(RECIPE).as_dict() | {"seed": seed}
    params = config.from_values(values, RECIPE)
    training = trainer.build(params, index, LocalComm(), torch.device("cpu"), "benchmark")
    inside = shards.read_split(index, "test")[0][:_NUM_SAMPLES]
    last, rows = params.train.num_steps, []
    marks = {round(last * i / _NUM_LOOKS) for i in range(_NUM_LOOKS + 1)}
    while True:
        if training.step in marks:
            found = look(training.averages["energy"], inside, sets)
            mean = float(np.mean([found[name] for name in mean_of or found]))
            rows.append({"seed": seed, "step": training.step, "mean_auroc": mean, "auroc": found})
        if training.step == last:
            return rows
        training.advance()
        training.step += 1


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="prepared data of the recipe")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/progress.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    params = config.load(RECIPE)
    index = shards.read_index(args.data / "dataset")
    others = {name: shards.read_index(args.data / name) for name in params.comparison_datasets}
    inside = shards.read_split(index, "test")[0][:_NUM_SAMPLES]
    sets = synthetic(inside, index) | others_like(index, others, _NUM_SAMPLES)
    content: dict[str, Any] = circumstances() | {"recipe": RECIPE.stem, "rows": [], "spearman": {}}
    if args.out.exists():
        earlier = read_json(args.out, "benchmark")
        content |= {key: earlier[key] for key in ("rows", "spearman")}
    for seed in range(args.seeds):
        if any(row["seed"] == seed for row in content["rows"]):
            continue
        content["rows"] += train(seed, index, sets, params.evaluation["ood"].mean_of)
        rows = [row for row in content["rows"] if row["seed"] == seed]
        correlation = spearmanr([r["step"] for r in rows], [r["mean_auroc"] for r in rows])
        content["spearman"][str(seed)] = float(correlation.statistic)
        write_json(args.out, content)
        print(
            f"seed {seed}: mean AUROC {rows[0]['mean_auroc']:.3f} before training,"
            f" {rows[-1]['mean_auroc']:.3f} after; rank correlation with the step"
            f" {content['spearman'][str(seed)]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
