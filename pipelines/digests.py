"""Write pipelines/code.yaml and pipelines/recipes/rows.yaml, on which the stages depend.

``code.yaml`` has a digest of the code behind each stage of each recipe and, under ``any``, of the
code for any settings, for the main job. ``rows.yaml`` has the rows of the stages, made from the
recipes in the folder. Run this after a change of the code or of the set of recipes; a stage refuses
to run on digests that are not of its code.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebm_dist import config
from ebm_dist.config import TRAINING
from ebm_dist.errors import CodeChangedError, ConfigError
from ebm_dist.runs import code
from ebm_dist.storage import write_whole
from pipelines import ROOT, run, sources

CODE, RECIPES, ROWS = (
    Path("pipelines/code.yaml"),
    Path("pipelines/recipes"),
    Path("pipelines/recipes/rows.yaml"),
)
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
    loaded = {name: config.load(path) for name, path in recipes(root).items()}
    return {
        "any": _of_any(config.plugins("ebm_dist.evaluation"), root),
        "prepare": {
            name: code.prepare_digest(params, root)[:_LENGTH] for name, params in loaded.items()
        },
        "train": {
            name: code.train_digest(params, root)[:_LENGTH] for name, params in loaded.items()
        },
        "evaluate": {
            name: {
                suite: code.evaluate_digest(params, suite, root=root)[:_LENGTH]
                for suite in params.evaluation
            }
            for name, params in loaded.items()
        },
    }


def _of_any(suites: list[str], root: Path) -> dict[str, Any]:
    return {
        "prepare": code.prepare_digest(None, root)[:_LENGTH],
        "classifier": code.classifier_digest(root)[:_LENGTH],
        "train": code.train_digest(None, root)[:_LENGTH],
        "evaluate": {
            suite: code.evaluate_digest(None, suite, root=root)[:_LENGTH] for suite in suites
        },
        "register": code.register_digest(root)[:_LENGTH],
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
        return config.load(params).digest(*_SECTIONS[stage])

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
    if not (root / CODE).exists():
        raise ConfigError(f"{CODE}: missing; run python -m pipelines.digests")
    content = YAML(typ="safe", pure=True).load((root / CODE).read_text())
    name = params.stem if params.resolve().parent == (root / RECIPES).resolve() else None
    settings = config.load(params) if name else None
    present = {
        "prepare": lambda: code.prepare_digest(settings, root),
        "classifier": lambda: code.classifier_digest(root),
        "train": lambda: code.train_digest(settings, root),
        "evaluate": lambda: code.evaluate_digest(settings, suite or "", root=root),
        "register": lambda: code.register_digest(root),
        "tune": lambda: code.tune_digest(root),
    }[stage]()[:_LENGTH]
    recorded = content[stage].get(name) if name and stage in content else content["any"][stage]
    recorded = recorded.get(suite) if suite and isinstance(recorded, dict) else recorded
    if recorded != present:
        raise ConfigError(
            f"{CODE}: is not of this code (stage {stage}); run python -m pipelines.digests, then"
            " dvc repro again"
        )
    return str(present)


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
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    changed = write()
    print(f"{', '.join(map(str, changed)) or 'nothing'} changed: {len(recipes())} recipes")


if __name__ == "__main__":
    run(main)
