"""Measure what each part of a maximum entropy generator contributes.

Run ``python -m benchmarks.meg --data data/meg-25gaussians``. Each variant differs from the recipe
meg-25gaussians in the values that its name says, and trains in this process for a quarter of the
steps, with each seed. Samples are scored as in the suite ``density``. Writes
reports/benchmarks/meg.json as rows come, and goes on where an earlier call stopped.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from benchmarks import circumstances
from ebm_dist import config
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.errors import DivergedError
from ebm_dist.evaluation.density import quality
from ebm_dist.files import read_json, write_json
from ebm_dist.rng import stream
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm
from pipelines import run

RECIPE = Path("pipelines/recipes/meg-25gaussians.yaml")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "the recipe": {},
    "logistic loss": {"objective": {"loss": "logistic"}},
    "linear loss": {"objective": {"loss": "linear"}},
    "penalty at the data alone": {"objective": {"negative_penalty": 0.0}},
    "penalty at the data alone, logistic loss": {
        "objective": {"negative_penalty": 0.0, "loss": "logistic"}
    },
    "penalty at the data alone, linear loss": {
        "objective": {"negative_penalty": 0.0, "loss": "linear"}
    },
    "no Fourier features": {"energy": {"num_frequencies": 0}},
    "ten times the information": {"objective": {"mi_weight": 1.0, "final_mi_weight": 0.3}},
    "Kullback-Leibler information": {"objective": {"information": "kullback_leibler"}},
    "no information": {"objective": {"mi_weight": 0.0, "final_mi_weight": 0.0}},
}


def train(
    changes: dict[str, dict[str, Any]], index: shards.Index, num_steps: int, seed: int
) -> dict[str, float]:
    """Train a variant; return the quality of 10,000 samples and the CPU seconds.

    The samples are those of the averaged generator. If the variant diverges, return the step.
    """
    values = YAML(typ="safe", pure=True).load(RECIPE.read_text()) | {"seed": seed}
    for section, change in ({"train": {"num_steps": num_steps}} | changes).items():
        values[section] = values[section] | change
    params = config.from_values(values, RECIPE)
    training = trainer.build(params, index, LocalComm(), torch.device("cpu"), "benchmark")
    began = time.process_time()
    try:
        while training.step < num_steps:
            training.advance()
            training.step += 1
    except DivergedError:
        return {"diverged_at_step": training.step + 1}
    seconds = time.process_time() - began
    truth = module_of(params.dataset).density(params.dataset)
    generator = training.averages["generator"]
    with torch.no_grad():
        x = generator(
            torch.randn(
                10000,
                params.objective.generator.latent_size,
                generator=stream(0, "benchmark/latents"),
            )
        )
    return quality(truth, x.double().numpy(), int(truth.mode.max()) + 1) | {"cpu_seconds": seconds}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="prepared data of the recipe")
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/meg.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    index = shards.read_index(args.data / "dataset")
    content: dict[str, Any] = {"num_steps": args.steps, "variants": {}, **circumstances()}
    if args.out.exists() and (earlier := read_json(args.out, "benchmark")).get("seeds"):
        content["variants"] = earlier["variants"]
    content["seeds"] = args.seeds
    for seed in range(args.seeds):
        for name, changes in VARIANTS.items():
            runs = content["variants"].setdefault(name, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = train(changes, index, args.steps, seed)
            write_json(args.out, content)
            shown = {key: round(value, 3) for key, value in runs[str(seed)].items()}
            print(name, seed, json.dumps(shown), flush=True)


if __name__ == "__main__":
    run(main)
