"""Copy a trained model into pipelines/weights, which the package contains, and renew its lock.

The rows of docs/results.json that this model gives are evaluated from the copy. Only those that it
reproduces are recorded for ``ebm-dist check``. Chains of the training are cut to the first ones
that fit 512 KiB; all other tensors keep their bits. Nobody edits the lock.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ebm_dist import config
from ebm_dist.cli import check
from ebm_dist.config import Params, modules_of
from ebm_dist.datasets._download import RawFile
from ebm_dist.errors import ConfigError, DataError, ResultsError
from ebm_dist.files import encode, read_json, read_tensors, sha256, write_json
from ebm_dist.metrics import features
from ebm_dist.registry import shipped
from ebm_dist.runs import provenance
from ebm_dist.storage import write_whole
from pipelines import ROOT, digests, run

_CARD, _CHAINS, _CLASSIFIERS = "model.json", "chains.safetensors", "classifiers"
_MAX_CHAINS = 512 * 1024  # bytes of positions


def copy_model(source: Path, folder: Path) -> int:
    """Copy a trained model with as many of its chains as fit; return their number."""
    card = read_json(source / _CARD, "train")
    folder.mkdir(parents=True)
    for name in card["sha256"]:
        shutil.copyfile(source / name, folder / name)
    chains = read_tensors(source / _CHAINS, "train")
    positions = chains["position"]
    num_chains = min(len(positions), _MAX_CHAINS // (positions[0].numel() * 4))
    if num_chains < len(positions):
        first = {name: tensor[:num_chains].clone() for name, tensor in chains.items()}
        write_whole(folder / _CHAINS, encode(first))
        card["sha256"][_CHAINS] = sha256(folder / _CHAINS)
    write_json(folder / _CARD, card)
    return num_chains


def copy_classifier(source: Path, data: str, weights: Path) -> str | None:
    """Copy a classifier, once for all models that share it, and return its path in the folder.

    Return None where the data have none.
    """
    card = read_json(source / features.CARD, "classifier")
    if card is None:
        return None
    name = f"{_CLASSIFIERS}/{data}-{card['weights_sha256'][:8]}"
    (weights / name).mkdir(parents=True, exist_ok=True)
    for file in (features.CARD, features.WEIGHTS):
        shutil.copyfile(source / file, weights / name / file)
    return name


def raw_files(params: Params) -> list[str]:
    """Return the names of the files that the data sets of these settings read."""
    names = list[str]()
    for section in (params.dataset, *params.comparison_datasets.values()):
        if path := getattr(section, "path", None):
            names.append(path)
        for module in modules_of(section):
            for value in vars(module).values():
                group = value.values() if isinstance(value, dict) else [value]
                names += [file.name for file in group if isinstance(file, RawFile)]
    return list(dict.fromkeys(names))


def rows_of(recipe: str, seed: int, results: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the results that one recipe gives, with the figure of one seed."""
    return {
        row["id"]: {
            "metric": row["metric"],
            "what": row["what"],
            "committed": row["seeds"].get(str(seed), row["reached"]),
            "mean": row["reached"],
        }
        for row in json.loads(results.read_text())
        if row["recipes"] == [recipe] and (str(seed) in row["seeds"] or not row["seeds"])
    }


def write_lock(weights: Path, models: dict[str, Any]) -> None:
    """Write the lock of a folder, without models whose folder is deleted.

    Classifiers that no model uses any more are deleted. Raise :class:`DataError` if the files are
    too large together.
    """
    models = {name: model for name, model in models.items() if (weights / name).is_dir()}
    used = {*models, *(str(model["classifier"]) for model in models.values())}
    for classifier in (weights / _CLASSIFIERS).glob("*"):
        if str(classifier.relative_to(weights)) not in used:
            shutil.rmtree(classifier)
    files: dict[str, dict[str, Any]] = {
        str(path.relative_to(weights)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(weights.rglob("*"))
        if path.is_file() and str(path.parent.relative_to(weights)) in used
    }
    total = sum(entry["bytes"] for entry in files.values())
    if total > shipped.MAX_BYTES:
        raise DataError(
            f"{weights}: the models would have {total / 2**20:.1f} MiB together, and the limit is"
            f" {shipped.MAX_BYTES / 2**20:.0f} MiB",
            "ship a smaller model, or delete one",
        )
    write_json(weights / shipped.LOCK, {"models": models, "files": files})


def ship(args: argparse.Namespace, weights: Path) -> None:
    """Write a model and the lock into the folder of weights.

    Raise :class:`DataError` if the training has no record or another one's, or if it is too large,
    :class:`ResultsError` if the model gives none of its rows.
    """
    recipe, seed = args.recipe, args.seed
    name = args.name or recipe
    source = args.models / recipe / str(seed)
    record = args.reports / recipe / "train" / str(seed) / provenance.RUN
    origin = read_json(record, "train")
    if origin.get("weights") != sha256(source / "energy.safetensors"):
        raise DataError(f"{record}: is not of {source}", "run the stage train of this recipe")
    params = config.load(digests.recipes()[recipe], seed=seed)
    shutil.rmtree(weights / name, ignore_errors=True)
    num_chains = copy_model(source, weights / name)
    classifier = (
        None
        if args.no_classifier
        else copy_classifier(args.models / recipe / "classifier", origin["dataset"], weights)
    )
    models = shipped.lock(weights)["models"]
    models[name] = {
        "recipe": recipe,
        "seed": seed,
        "commit": origin["commit"],
        "made_with": {"torch": origin["versions"]["torch"], "cpu": origin["hardware"]["cpu"]},
        "num_chains": num_chains,
        "classifier": classifier,
        "data": raw_files(params),
        "rows": {},
    }
    write_lock(weights, models)
    rows = rows_of(recipe, seed, args.results)
    for result in check.results(name, rows, weights):
        for line in check.described(result):
            print(line, flush=True)
        if result.is_reproduced:
            models[name]["rows"][result.row] = rows[result.row]
    if rows and not models[name]["rows"]:
        raise ResultsError(
            f"{name}: reproduces no row of {args.results}", "run the stages of this recipe"
        )
    write_lock(weights, models)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recipe", help="recipe with a trained model")
    options.add_argument("--name", help="name of the shipped model (default: the recipe)")
    options.add_argument("--seed", type=int, default=0, help="seed to ship (default: 0)")
    options.add_argument(
        "--no-classifier", action="store_true", help="leave the classifier of FID-clf out"
    )
    for name, default, text in (
        ("models", "models", "folder of trained models"),
        ("reports", "reports", "folder with the records of the trainings"),
        ("results", "docs/results.json", "committed rows of the results"),
    ):
        options.add_argument(
            f"--{name}", type=Path, default=Path(default), help=f"{text} (default: {default})"
        )
    args = options.parse_args()
    recipes = digests.recipes()
    if args.recipe not in recipes:
        raise ConfigError(
            f"{args.recipe}: no such recipe", config.nearest(args.recipe, list(recipes))
        )
    if (args.name or args.recipe) in recipes.keys() - {args.recipe}:
        raise ConfigError(f"--name {args.name}: is another recipe", "choose another name")
    weights = ROOT / "pipelines/weights"
    with tempfile.TemporaryDirectory(dir=weights.parent) as folder:  # an error leaves all as it was
        copy = Path(folder) / weights.name
        shutil.copytree(weights, copy) if weights.exists() else copy.mkdir()
        ship(args, copy)
        shutil.rmtree(weights, ignore_errors=True)
        copy.rename(weights)
    entry = shipped.lock()["models"][args.name or args.recipe]
    print(f"{weights}: {args.name or args.recipe}, {len(entry['rows'])} rows")


if __name__ == "__main__":
    run(main)
