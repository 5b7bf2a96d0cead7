"""Train each recipe for a few steps in one tree of code and print the SHA-256 of every result.

The output is a JSON line per recipe. :mod:`pipelines.verify` runs this file in two trees, so it
imports modules by name and knows the names that older trees use.
"""

import argparse
import copy
import hashlib
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch

_BATCH = 8  # samples per step, at least two per logical shard
_MAX_CHAIN_STEPS = 3
_CHAINS = 100  # in the replay buffer
_MAX_COUNT = 40  # of anything that a suite counts: samples, chains, draws
_CAPS = {"samples_per_mode": 1, "num_steps": 10, "steps_per_round": 5, "num_rounds": 2}


class Interrupted(Exception):
    """Simulates the death of the process; the second attempt resumes from a checkpoint."""


# the finder of an editable installation would import missing modules from another tree
sys.meta_path[:] = [
    finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")
]


def module(*names: str) -> Any:
    """Import the first module of these names that the tree has."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if not (missing.name and name.startswith(missing.name)):
                raise
    raise ModuleNotFoundError(" or ".join(names))


config = module("ebm_dist.config")
errors = module("ebm_dist.errors")
evaluation = module("ebm_dist.evaluation")
shards = module("ebm_dist.data.shards", "ebm_dist.shards")
trainer = module("ebm_dist.training.trainer", "ebm_dist.trainer")
reduce = module("ebm_dist.training.reduce", "ebm_dist.comm")
record = module("ebm_dist.runs.record", "ebm_dist.reporting")
checkpoint = module("ebm_dist.training.checkpoint", "ebm_dist.checkpoint")
model = module("ebm_dist.models.trained", "ebm_dist.model")
features = module("ebm_dist.metrics.features", "ebm_dist.features")


def reduced(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Shrink a recipe so that a few steps pass a logging, checkpoint, burn-in and task boundary."""
    values = copy.deepcopy(values)
    train, replay, tasks = values["train"], values["replay"], values["train"]["num_tasks"]
    steps = -(-steps // tasks) * tasks
    train |= {
        "num_steps": steps,
        "log_every": max(5, 5, *_counts(values["objective"], "num_energy_steps")),
    }
    train |= {
        "checkpoint_every": steps // 2 - 2,
        "max_energy": 1e12,
        "compile": False,
        "precision": "float32",
    }
    train["batch_size"] = train["num_shards"] * max(2, _BATCH // train["num_shards"])
    # small, so that chains are drawn again; the likelihood suite needs 100 chains
    num_shards = train["num_shards"]
    replay["capacity"] = max(2 * train["batch_size"], -(-_CHAINS // num_shards) * num_shards)
    values["sampler"]["num_steps"] = min(values["sampler"]["num_steps"], _MAX_CHAIN_STEPS)
    caps = {
        "pretraining": steps // 5,
        "energy_lead": steps // 5,
        "num_steps": _MAX_CHAIN_STEPS,
        "num_completions": 8,
    }
    _cap(values["objective"], caps)
    values["cluster"] |= {"workers": 1, "use_gpu": False}
    values["features"]["num_steps"] = 3
    values.pop("tune", None)
    values["register"]["gates"] = []
    return values


def _counts(values: dict[str, Any], name: str) -> list[int]:
    inner = [
        count
        for value in values.values()
        if isinstance(value, dict)
        for count in _counts(value, name)
    ]
    return [values[name], *inner] if name in values else inner


def _cap(values: dict[str, Any], caps: dict[str, int]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _cap(value, caps)
        elif name in caps and isinstance(value, int):
            values[name] = min(value, caps[name])


def interrupted_after(step: int, run: Path) -> Any:
    """Return a reporter that keeps the record and interrupts training at this step."""

    class Reporter(record.FileReporter):  # type: ignore[misc,name-defined]
        def metrics(self, row: dict[str, float], seconds: float) -> None:
            super().metrics(row, seconds)
            if row["step"] >= step:
                raise Interrupted

    return Reporter(run)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Probe:
    """The work of one tree. Recipes with the same data set share its prepared data."""

    def __init__(self, work: Path, steps: int) -> None:
        self.work, self.steps = work, steps
        self.prepared: dict[str, Any] = {}
        self.classifiers: dict[str, Any] = {}

    def prepare(self, plugin: Any) -> Any:
        key = sha256(repr(plugin).encode())[:16]
        if key not in self.prepared:
            name = config.plugin_name(plugin)
            self.prepared[key] = shards.write(
                self.work / "data" / key, name, config.module_of(plugin).load(plugin)
            )
        return self.prepared[key]

    def classifier(self, params: Any, index: Any) -> Any:
        key = sha256(f"{index.digest} {params.features}".encode())[:16]
        if key not in self.classifiers:
            folder = self.work / "classifier" / key
            possible = features.is_possible(index)
            if possible:
                features.train(params.features, index, folder)
            self.classifiers[key] = features.load(folder) if possible else None
        return self.classifiers[key]

    def run(self, path: Path, suites: list[str]) -> dict[str, str]:
        """Return the SHA-256 of each result of a recipe, by name of the result."""
        values = reduced(config.load(path).as_dict(), self.steps)
        params = config.from_values(values, path)
        index = self.prepare(params.dataset)
        out = {"data": index.digest}
        run = self.work / "runs" / path.stem
        try:
            out |= self.train(params, index, run)
        except errors.DivergedError as diverged:
            return out | {"diverged": str(diverged)}
        exported = self.work / "models" / path.stem
        if "tars" in inspect.signature(model.export).parameters:
            model.export(run, exported, params, index, "verify", tars=range(1))
        else:  # of an older commit
            train = shards.read_split(index, "train", range(1))
            model.export(run, exported, params, index, train, "verify")
        out |= {
            f"exported {p.name}": sha256(p.read_bytes()) for p in exported.glob("*.safetensors")
        }
        card = json.loads((exported / "model.json").read_bytes())
        out["class energies"] = sha256(json.dumps(card["class_energies"]).encode())
        for suite in suites:
            out[f"suite {suite}"] = self.evaluate(path, values, suite, exported, index)
        if suites:
            indices = {name: self.prepare(d) for name, d in comparison_datasets(params).items()}
            out |= {f"data {name}": compared.digest for name, compared in indices.items()}
        return out

    def train(self, params: Any, index: Any, run: Path) -> dict[str, str]:
        for reporter_of in (
            lambda: interrupted_after(int(0.7 * self.steps), run),
            lambda: record.FileReporter(run),
        ):
            attempt = trainer.build(
                params, index, reduce.LocalComm(), torch.device("cpu"), "verify"
            )
            try:
                attempt.fit(run, reporter_of())  # type: ignore[no-untyped-call]
            except Interrupted:
                continue
        folder = checkpoint.latest(run, "verify")
        files = {
            p.name: p for p in folder.iterdir() if p.name not in ("manifest.json", "state.json")
        }
        return {name: sha256(files[name].read_bytes()) for name in sorted(files)}

    def evaluate(
        self, path: Path, values: dict[str, Any], suite: str, exported: Path, index: Any
    ) -> str:
        options = values["evaluation"][suite]
        options.pop("name", None)
        for name, value in options.items():
            if isinstance(value, int) and not isinstance(value, bool):
                options[name] = min(value, _CAPS.get(name, _MAX_COUNT))
        params = config.from_values(values | {"evaluation": {suite: options}}, path)
        indices = {name: self.prepare(each) for name, each in comparison_datasets(params).items()}
        judged = indices[params.features.dataset] if params.features.dataset else index
        subject = evaluation.Subject(
            model.load(exported), index, indices, self.classifier(params, judged)
        )
        suite_config = params.evaluation[suite]
        report = config.module_of(suite_config).evaluate(suite_config, subject)
        return sha256(
            json.dumps([report.metrics, report.tables], sort_keys=True, default=str).encode()
        )


def comparison_datasets(params: Any) -> dict[str, Any]:
    datasets: dict[str, Any] = getattr(params, "comparison_datasets", None) or getattr(
        params, "others", {}
    )
    return datasets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("recipes", nargs="+", help="path:suite,suite, or path: for no suite")
    args = parser.parse_args()
    torch.set_num_threads(1)
    probe = Probe(args.work, args.steps)
    for entry in args.recipes:
        path, _, suites = entry.rpartition(":")
        try:
            bits = probe.run(Path(path), suites.split(",") if suites else [])
        except errors.DataError as missing:
            bits = {"skipped": str(missing).replace(str(args.work), "")}
        except Exception as failed:  # noqa: BLE001 (both trees must fail in the same way)
            bits = {"failed": f"{type(failed).__name__}: {failed}"}
        print(json.dumps({"recipe": Path(path).stem, "bits": bits}), flush=True)


if __name__ == "__main__":
    main()
