"""Write pipelines/code.yaml and pipelines/recipes/rows.yaml, on which the stages depend.

``code.yaml`` has a digest of the code behind each stage of each recipe and, under ``any``, of the
code for any settings, for the main job. ``rows.yaml`` has the rows of the stages, made from the
recipes in the folder. Run this after a change of the code or of the set of recipes; a stage refuses
to run on digests that are not of its code.

With ``--params`` write the digests of one parameter file instead. A project that uses an installed
package has them in ``data/code.json``, which its first stage writes at each run: results of another
version of the package are then stale.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.config import TRAINING, Params
from ebm_dist.errors import CodeChangedError, ConfigError
from ebm_dist.files import read_json, write_json
from ebm_dist.runs import code
from ebm_dist.storage import write_whole
from pipelines import ROOT, run, sources

CODE, RECIPES, ROWS = (
    Path("pipelines/code.yaml"),
    Path("pipelines/recipes"),
    Path("pipelines/recipes/rows.yaml"),
)
PROJECT = Path("data/code.json")
"""Digests of a project's parameter file, relative to the working directory."""
NOT_RECIPES = ("dvc.yaml", "rows.yaml")
_HEAD = "# Written by python -m pipelines.digests: do not edit.\n"
_LENGTH = 16  # hexadecimal digits of a digest


def recipes(root: Path = ROOT) -> dict[str, Path]:
    """Return the recipes of the folder: parameter files by name."""
    return {
        path.stem: path
        for path in sorted((root / RECIPES).glob("*.yaml"))
        if path.name not in NOT_RECIPES
    }


def digests(root: Path = ROOT) -> dict[str, Any]:
    """Return the content of ``code.yaml``."""
    of_recipes = {
        name: _digests(params, params.evaluation, root)
        for name, params in ((name, config.load(path)) for name, path in recipes(root).items())
    }
    return {
        "any": {
            **_digests(None, config.plugins("ebm_dist.evaluation"), root),
            "tune": code.tune_digest(root)[:_LENGTH],
            "tabular": code.tabular_digest(root)[:_LENGTH],
        },
        **{
            stage: {name: by_stage[stage] for name, by_stage in of_recipes.items()}
            for stage in ("prepare", "train", "evaluate")
        },
    }


def _digests(params: Params | None, suites: Iterable[str], root: Path) -> dict[str, Any]:
    """Return the digests of the stages for these settings, or for any if None."""
    return {
        "prepare": code.prepare_digest(params, root)[:_LENGTH],
        "classifier": code.classifier_digest(root)[:_LENGTH],
        "train": code.train_digest(params, root)[:_LENGTH],
        "evaluate": {
            suite: code.evaluate_digest(params, suite, root=root)[:_LENGTH] for suite in suites
        },
        "register": code.register_digest(root)[:_LENGTH],
    }


def of_project(params: Path, root: Path = ROOT) -> dict[str, Any]:
    """Return the content of ``data/code.json`` for a parameter file."""
    settings = config.load(params)
    return {
        "params": str(params),
        **_digests(settings, settings.evaluation, root),
        "tune": code.tune_digest(root)[:_LENGTH],
    }


def rows(root: Path = ROOT) -> dict[str, Any]:
    """Return the content of ``rows.yaml``.

    It has the rows of each stage, with the sections of the files that they depend on.
    """
    stages: dict[str, Any] = {
        "sources": {},
        "prepare": {},
        "classifier": {},
        "train": {},
        "evaluate": {},
        "results": {},
    }
    for name, path in recipes(root).items():
        params, contents = config.load(path), _contents(path)
        digests = {"digests": str(CODE), "digests_key": f"prepare.{name}"}
        if sources.has_own_files(params):
            digests = {"digests": f"data/{name}.sources.json", "digests_key": sources.KEY}
            stages["sources"][name] = {"recipe": name} | digests
        stages["prepare"][name] = {"recipe": name} | digests | _held(contents, root, config.DATA)
        stages["classifier"][name] = {"recipe": name} | _held(contents, root, ("features",))
        for seed in range(params.num_seeds):
            stages["train"][f"{name}-{seed}"] = {"recipe": name, "seed": seed} | _held(
                contents, root, TRAINING[1:]
            )
        for suite in params.evaluation:
            stages["evaluate"][f"{name}-{suite}"] = {"recipe": name, "suite": suite} | _held(
                contents, root, ("evaluation",)
            )
        stages["results"][name] = {"recipe": name} | _held(contents, root, ("register",))
    return stages


def _contents(path: Path) -> dict[Path, dict[str, Any]]:
    """Return the sections of a recipe and of its base, if it has one, by file."""
    content = config.read_one(path)[0]
    base = path.parent / content["base"] if "base" in content else None
    return {path: content} | ({base: config.read_one(base)[0]} if base else {})


def _held(
    contents: dict[Path, dict[str, Any]], root: Path, wanted: tuple[str, ...]
) -> dict[str, Any]:
    """Return which of the wanted sections are in a recipe and which in its base.

    Each list is padded to the number of wanted sections, because DVC's templates have no loops.
    """
    all_names = [
        (file, [name for name in wanted if name in content]) for file, content in contents.items()
    ]
    held = [(file, names) for file, names in all_names if names] or [
        (next(iter(contents)), ["seed"])
    ]
    (file, names), (base, base_names) = held[0], held[-1]
    return {
        "file": str(file.resolve().relative_to(root.resolve())),
        "keys": [*names, *names[:1] * (len(wanted) - len(names))],
        "base": str(base.resolve().relative_to(root.resolve())),
        "base_keys": [*base_names, *base_names[:1] * (len(wanted) - len(base_names))],
    }


_SECTIONS = {
    "prepare": ("dataset", "comparison_datasets"),
    "classifier": ("features",),
    "train": TRAINING,
    "evaluate": ("comparison_datasets", "features", "evaluation"),
    "register": ("register", "tracking"),
    "tune": (*TRAINING, "evaluation", "features", "tune"),
}
"""Sections of the parameter file that decide the result of a stage."""


def check(
    stage: str, params: Path, suite: str | None = None, root: Path = ROOT
) -> Callable[[], None]:
    """Check that ``code.yaml`` is of the code that a stage will run.

    Return a check for the end of the stage. DVC records code and settings as they are then, so the
    stage must fail if they were changed while it ran. Raise :class:`ConfigError`; the check at the
    end raises :class:`CodeChangedError`.
    """

    def values() -> str:
        needed = config.DATA if stage == "prepare" else ()  # the others may be missing then
        return config.load(params, needed=needed).digest(*_SECTIONS[stage])

    before = values()
    text, digest = code.text_digest(root), _checked_digest(stage, params, suite, root)

    def check_unchanged() -> None:
        code.forget()
        try:
            is_unchanged = values() == before and (
                code.text_digest(root) == text  # the usual case, and much faster
                or _checked_digest(stage, params, suite, root) == digest
            )
        except ConfigError:
            is_unchanged = False
        if not is_unchanged:
            raise CodeChangedError(
                f"{params}: code or settings changed while stage {stage} ran, so its results are"
                " not of the present ones",
                "restore them to keep what was computed, or go on with the new ones; then run the"
                " same command again",
            )

    return check_unchanged


def _checked_digest(stage: str, params: Path, suite: str | None, root: Path) -> str:
    settings, recorded, written_by = _recorded(params, root)
    present = {
        "prepare": lambda: code.prepare_digest(settings, root),
        "classifier": lambda: code.classifier_digest(root),
        "train": lambda: code.train_digest(settings, root),
        "evaluate": lambda: code.evaluate_digest(settings, suite or "", root=root),
        "register": lambda: code.register_digest(root),
        "tune": lambda: code.tune_digest(root),
    }[stage]()[:_LENGTH]
    digest = recorded.get(stage)
    digest = digest.get(suite) if suite and isinstance(digest, dict) else digest
    if digest != present:
        raise ConfigError(
            f"{written_by[0]}: is not of this code (stage {stage}); run {written_by[1]}, then"
            " dvc repro again"
        )
    return str(present)


def _recorded(params: Path, root: Path) -> tuple[Params | None, dict[str, Any], tuple[Path, str]]:
    """Return the settings that the digests of a parameter file are of, None for any settings.

    Return the digests by stage too, and their file with the command that writes it.
    """
    if PROJECT.exists():
        recorded = read_json(PROJECT, "code")
        if Path(recorded["params"]).resolve() == params.resolve():
            return config.load(params), recorded, (PROJECT, "dvc repro code")
    written_by = CODE, "python -m pipelines.digests"
    if not (root / CODE).exists():
        raise ConfigError(f"{CODE}: missing; run {written_by[1]}")
    content = YAML(typ="safe", pure=True).load((root / CODE).read_text())
    if params.resolve().parent != (root / RECIPES).resolve():
        return None, content["any"], written_by
    of_recipe = {
        stage: digests[params.stem]
        for stage, digests in content.items()
        if stage != "any" and params.stem in digests
    }
    return config.load(params), content["any"] | of_recipe, written_by


def encode(content: dict[str, Any]) -> bytes:
    """Encode the content of a generated file: YAML, an entry per line."""
    lines = [_HEAD]
    for section, entries in content.items():
        lines += [
            f"{section}:\n" if entries else f"{section}: {{}}\n",
            *(f"  {name}: {json.dumps(entry)}\n" for name, entry in entries.items()),
        ]
    return "".join(lines).encode()


def write(root: Path = ROOT) -> list[Path]:
    """Write both files; return those that have changed."""
    changed = []
    for path, content in ((CODE, encode(digests(root))), (ROWS, encode(rows(root)))):
        if not (root / path).exists() or (root / path).read_bytes() != content:
            write_whole(root / path, content)
            changed.append(path)
    return changed


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--params", type=Path, help=f"parameter file: write {PROJECT} for it")
    args = options.parse_args()
    if args.params:
        write_json(PROJECT, of_project(args.params))
        return
    changed = write()
    print(f"{', '.join(map(str, changed)) or 'nothing'} changed: {len(recipes())} recipes")


if __name__ == "__main__":
    run(main)
