"""Which change to a maximum entropy generator does what: ``python -m benchmarks.meg --data data/meg-25gaussians``.

Each variant differs from the recipe meg-25gaussians in the values that its name says, and trains in this process for a quarter of
its steps. Samples are judged as in the suite ``density``. Writes reports/benchmarks/meg.json.
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
from ebm_dist.files import write_json
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
    "no information": {"objective": {"mi_weight": 0.0, "final_mi_weight": 0.0}},
}


def train(
    changes: dict[str, dict[str, Any]], index: shards.Index, num_steps: int, seed: int
) -> dict[str, float]:
    """Quality of 10,000 samples of the averaged generator, and CPU seconds; the step at which it diverged, if it did."""
    values = YAML(typ="safe", pure=True).load(RECIPE.read_text()) | {"seed": seed}
    for section, own in ({"train": {"num_steps": num_steps}} | changes).items():
        values[section] = values[section] | own
    params = config.from_values(values, RECIPE)
    own = trainer.build(params, index, LocalComm(), torch.device("cpu"), "benchmark")
    began = time.process_time()
    try:
        while own.step < num_steps:
            own.advance()
            own.step += 1
    except DivergedError:
        return {"diverged_at_step": own.step + 1}
    seconds = time.process_time() - began
    truth, generator = module_of(params.dataset).density(params.dataset), own.averages["generator"]
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
    options.add_argument(
        "--data", type=Path, required=True, help="what stage prepare wrote for the recipe"
    )
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/meg.json"))
    given = options.parse_args()
    torch.set_num_threads(1)
    index, found = shards.read_index(given.data / "dataset"), {}
    for name, changes in VARIANTS.items():
        found[name] = train(changes, index, given.steps, given.seed)
        print(
            name,
            json.dumps({key: round(value, 3) for key, value in found[name].items()}),
            flush=True,
        )
    write_json(
        given.out,
        {"num_steps": given.steps, "seed": given.seed, "variants": found, **circumstances()},
    )


if __name__ == "__main__":
    run(main)
