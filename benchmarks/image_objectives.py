"""Compare objectives on images at equal compute: ``python -m benchmarks.image_objectives``.

All train the network, data and batches of a recipe (8x8 digits by default) for the same CPU
seconds of one thread. First each candidate of an objective's settings is trained for a third of the
time with a seed of its own; FID-clf on the validation split chooses. Then the chosen settings are
trained with each seed, and judged on the test split by the suites of the pipeline:

- FID-clf of a thousand chains from noise, each of about 500 gradients, over however many levels;
- the error of completions of the lower half, where the sampler can hold pixels fixed;
- AUROC of -E, mean over real and synthetic images of another kind;
- gradients of a chain until split R-hat over the energy and five components stays below 1.1.

Beside them: real images, a fitted mixture of Gaussians, and the nearest training image. Rows are
written as they come, and a call goes on where an earlier one stopped. Writes
reports/benchmarks/image_objectives.json.
"""

import argparse
import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import circumstances, steps_within
from benchmarks.mixing import NUM_CHAINS, axes_of, follow
from ebm_dist import config, models
from ebm_dist.config import Params
from ebm_dist.data import prepare, shards
from ebm_dist.energies import frozen
from ebm_dist.errors import ConfigError, DivergedError
from ebm_dist.evaluation import Needs, Subject, completion, ood, samples
from ebm_dist.files import read_json, write_json
from ebm_dist.metrics import features
from ebm_dist.models import TrainedModel
from ebm_dist.rng import stream
from ebm_dist.runs.record import FileReporter
from ebm_dist.samplers import noise
from ebm_dist.training import checkpoint, trainer
from ebm_dist.training.reduce import LocalComm
from pipelines import run

_CHOICE, _CHOICE_SEED = 1 / 3, 1000
_GRADIENTS, _NUM_SAMPLES = 500, 1000
_TIMED = 100  # steps timed to decide how many fit
_LEVELS = [round(0.02 * 1000 ** (k / 29), 4) for k in range(30)]  # 0.02 to 20
_BASE: dict[str, Any] = {"name": "mixture", "num_components": 64}

Changes = dict[str, Any]
"""Values by dotted key, over those of the recipe; a section with a name replaces it"""


def ways() -> dict[str, list[Changes]]:
    """Return the candidates of each objective, by its name."""
    slow, fast = (langevin(step, 10) for step in (0.002, 0.01))
    known = {"pretraining": 0}

    def over(samplers: list[Changes], *objectives: Changes, **also: Any) -> list[Changes]:
        return [
            {"objective": objective, "sampler": sampler, "optimizer.lr": 2e-3} | also
            for objective, sampler in itertools.product(objectives, samplers)
        ]

    return {
        "persistent CD": [{}, {"optimizer.lr": 3e-3}],
        "persistent CD, tempered": [
            {"sampler.num_steps": 3, "replay.temperatures": t} for t in ([1, 1.6, 2.5], [1, 2, 4])
        ],
        "NCE, mixture": over(
            [slow, fast],
            {"name": "noise_contrastive", "generator": _BASE, "data_noise": 0.05} | known,
        ),
        "level classification": over(
            [langevin(step, 10) for step in (0.1, 0.3)],
            {"name": "level_classification", "generator": _BASE, "sigmas": [0.05, 0.1, 0.3, 1.0]}
            | known,
            **{"energy.heads": True},
        ),
        "energy discrepancy": over(
            [slow, fast], *({"name": "energy_discrepancy", "sigma": s} for s in (0.1, 0.3))
        ),
        "denoising score matching": over(
            [slow, fast], *({"name": "score_matching", "sigmas": [s]} for s in (0.1, 0.2))
        ),
        "score matching, noise levels": over(
            [{"name": "ancestral", "correction": h} for h in (0.0, 0.15)],
            {"name": "score_matching", "sigmas": _LEVELS, "noise_levels": True, "data_sd": 0.3}
            | {"base": _BASE, "base_from": 1.0},
        ),
        "recovery likelihood": over(
            [langevin(step, 15) for step in (0.1, 0.3)],
            {"name": "recovery_likelihood", "sigmas": [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]}
            | {"energy_penalty": 0.001},
        ),
        "energy matching": over(
            [slow, fast],
            *({"name": "energy_matching", "num_langevin": 15, "epsilon": e} for e in (0.05, 0.15)),
        ),
        "MEG": over(
            [slow, fast],
            {
                "name": "meg",
                "generator": {"name": "mlp", "latent_size": 32, "hidden": [256, 256]},
                "statistics_hidden": [256, 256],
            },
        ),
    }


def langevin(step_size: float, num_steps: int) -> Changes:
    """Return the settings of Langevin dynamics of temperature 1."""
    noise_scale = (2 * step_size) ** 0.5
    return {"name": "langevin", "step_size": step_size, "num_steps": num_steps} | {
        "noise_scale": noise_scale
    }


def settings(recipe: Path, changes: Changes, seed: int, num_steps: int) -> Params:
    """Return the parameters of a training in this process, of one logical shard."""
    values = config.load(recipe).as_dict()
    values |= {"seed": seed, "cluster": {"workers": 1}}
    values["train"] |= {"num_steps": num_steps, "num_shards": 1, "checkpoint_every": 10**9}
    values["train"] |= {"max_energy": 1e8}
    for key, value in changes.items():
        section, *rest = key.split(".")
        if rest:
            values[section] = values[section] | {rest[0]: value}
        else:
            values[section] = value
    return config.from_values(values, Path("benchmark"))


class Bench:
    """Data and classifier of a recipe, written once."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe, self.folder, params = recipe, folder, config.load(recipe)
        self.others = dict(prepare.write_all(params, folder))
        self.index = self.others.pop("dataset")
        features.train(params.features, self.index, folder / "classifier")
        self.classifier = features.load(folder / "classifier")

    def train(self, changes: Changes, seed: int, budget: float) -> tuple[TrainedModel, int, float]:
        """Train for ``budget`` CPU seconds; return the model, its steps and seconds."""
        first = changes.get("objective", {}).get("pretraining", 0)
        num_steps = steps_within(
            budget, lambda n: self._fit(changes, seed, n, None)[1], _TIMED, first
        )
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        params, used = self._fit(changes, seed, num_steps, folder)
        written = checkpoint.latest(folder)
        assert written is not None
        return models.from_checkpoint(written, params, self.index), num_steps, used

    def _fit(
        self, changes: Changes, seed: int, num_steps: int, folder: Path | None
    ) -> tuple[Params, float]:
        params = settings(self.recipe, changes, seed, num_steps)
        with tempfile.TemporaryDirectory() as thrown_away:
            place, began = folder or Path(thrown_away), time.process_time()
            training = trainer.build(
                params, self.index, LocalComm(), torch.device("cpu"), "benchmark"
            )
            training.fit(place, FileReporter(place / "record"))
        return params, time.process_time() - began

    def subject(self, model: TrainedModel) -> Subject:
        """Return what the suites judge."""
        return Subject(model, self.index, self.others, self.classifier)

    def gradients_of_a_step(self, model: TrainedModel) -> int:
        """Return how often a step of the sampler computes the energy, for the scores in it."""
        count, energy = 0, model.energy

        def counted(*_: Any) -> None:
            nonlocal count
            count += 1

        hook = energy.register_forward_hook(counted)
        kernel, start = model.kernel(), noise((2, *self.index.shape), model.bounds, stream(0, "x"))
        with frozen(energy), torch.no_grad():
            state = kernel.init(energy, start)
            state, _ = kernel.step(energy, state, stream(0, "steps"))
            before = count
            kernel.step(energy, state, stream(0, "steps"))
        hook.remove()
        return count - before

    def samples(self, model: TrainedModel, split: str) -> dict[str, Any]:
        """Return the metrics of suite samples."""
        num_steps = math.ceil(_GRADIENTS / self.gradients_of_a_step(model))
        chosen = samples.Config(num_samples=_NUM_SAMPLES, num_steps=num_steps, split=split)
        return dict(samples.evaluate(chosen, self.subject(model)).metrics)

    def choose(self, candidates: list[Changes], budget: float) -> list[dict[str, Any]]:
        """Return the candidates with their FID-clf on the validation split, the best first.

        One that repeats an earlier one's settings in this recipe is left out.
        """
        found: list[dict[str, Any]] = []
        known: list[Params] = []
        for changes in candidates:
            params = settings(self.recipe, changes, _CHOICE_SEED, 1)
            if params in known:
                continue
            known.append(params)
            try:
                model, *_ = self.train(changes, _CHOICE_SEED, _CHOICE * budget)
                fid = float(self.samples(model, "val")["fid_clf"])
            except DivergedError:
                fid = math.inf
            found.append({"changes": changes, "fid_clf": fid if math.isfinite(fid) else None})
        return sorted(found, key=lambda row: row["fid_clf"] or math.inf)

    def row(self, changes: Changes, seed: int, budget: float, gradients: int) -> dict[str, Any]:
        """Train and judge; a training or chains that diverge leave the rest of the row empty."""
        found: dict[str, Any] = {}
        try:
            model, steps, seconds = self.train(changes, seed, budget)
            found |= {"steps": steps, "seconds": seconds}
            judged = self.samples(model, "test")
            keys = ("fid_clf", "fid_clf_floor", "fid_clf_mixture", "smallest_class_share")
            found |= {key: judged[key] for key in keys}
            found["auroc"] = self._auroc(model)
            found |= self._completions(model)
            found |= self._mixing(model, gradients)
        except DivergedError as diverged:
            found["diverged"] = str(diverged)
        return found

    def _auroc(self, model: TrainedModel) -> float:
        report = ood.evaluate(ood.Config(num_chains=100, num_bootstrap=40), self.subject(model))
        return float(report.metrics["mean_auroc"])

    def _completions(self, model: TrainedModel) -> dict[str, Any]:
        try:
            Needs("completion", model.params, self.index, {}).chains_of_parts()
        except ConfigError:  # chains over noise levels
            return {}
        num_steps = math.ceil(_GRADIENTS / self.gradients_of_a_step(model))
        chosen = completion.Config(num_images=200, num_steps=num_steps)
        judged = completion.evaluate(chosen, self.subject(model)).metrics["test"]
        return {f"completion_{key}": judged[key] for key in ("mse", "mse_nearest")}

    def _mixing(self, model: TrainedModel, gradients: int) -> dict[str, Any]:
        axes = axes_of(shards.read_split(self.index, "train")[0][:10000].flatten(1))
        start = noise((NUM_CHAINS, *self.index.shape), model.bounds, stream(0, "benchmark/start"))
        with frozen(model.energy), torch.no_grad():
            work = self.gradients_of_a_step(model)
            row = follow(model.kernel(), model.energy, start, axes, work, gradients)
        return {"rhat": row["rhat"], "gradients_to_good": row["work_to_good"]}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipe = Path("pipelines/recipes/digits.yaml")
    options.add_argument("--recipe", type=Path, default=recipe)
    options.add_argument(
        "--seconds", type=float, default=120.0, help="CPU seconds of each training"
    )
    options.add_argument("--gradients", type=int, default=20000, help="of the chains for R-hat")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", default="", help="part of the name of an objective")
    out = Path("reports/benchmarks/image_objectives.json")
    options.add_argument("--out", type=Path, default=out)
    args = options.parse_args()
    torch.set_num_threads(1)
    content = circumstances() | {
        "recipe": args.recipe.stem,
        "seconds": args.seconds,
        "gradients": args.gradients,
        "choices": {},
        "rows": [],
    }
    if args.out.exists():
        content |= {
            k: v for k, v in read_json(args.out, "benchmark").items() if k in ("choices", "rows")
        }
    have = {(row["objective"], row["seed"]) for row in content["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.recipe, Path(folder))
        for seed, (name, candidates) in itertools.product(range(args.seeds), ways().items()):
            if args.only not in name or (name, seed) in have:
                continue
            if name not in content["choices"]:
                content["choices"][name] = bench.choose(candidates, args.seconds)
                print(name, [row["fid_clf"] for row in content["choices"][name]], flush=True)
            chosen = content["choices"][name][0]["changes"]
            found = bench.row(chosen, seed, args.seconds, args.gradients)
            content["rows"].append({"objective": name, "seed": seed} | found)
            write_json(args.out, content)
            print(content["rows"][-1], flush=True)


if __name__ == "__main__":
    run(main)
