"""Write the files of a project: settings, suites and gates that fit the data, and the stages.

The files are the templates ``params.yaml.j2``, with network and sampler of one kind of data, and
``dvc.yaml.j2``.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML

from ebm_dist import config, evaluation
from ebm_dist.cli.project.look import Seen, config_of, write_index
from ebm_dist.datasets import few_labels
from ebm_dist.errors import ConfigError, DataError, EbmError
from ebm_dist.metrics import features

STAGES = Path("dvc.yaml")
SUITES = {
    "generate": ("samples", "histogram", "ood", "chains"),
    "anomaly": ("anomaly", "histogram", "ood", "chains"),
    "classify": ("classification", "histogram", "ood"),
}
TASKS = tuple(SUITES)
_SMALL, _MEDIUM = 256, 32 * 32  # values of samples, of grey images: multilayer perceptrons
_PIXELS, _STEPS = 28 * 28, 1600  # of images, and training steps on them, in four minutes on 2 cores
_MANY = 256  # training samples of that perceptron: it diverges on a few
_FEWEST_STEPS, _NUM_SAMPLES = 50, 1000
_RADIUS = 0.07  # of virtual adversarial changes, per square root of the number of values


class Files(NamedTuple):
    """The content of the two files of a project."""

    params: str
    stages: str
    left_out: dict[str, str]
    """why a suite is left out, by suite"""


def default_name(data: Path) -> str:
    """Return the name of a project on a file or folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", data.resolve().stem).strip("-_") or "model"


def name_here() -> str:
    """Return the name of the project in the working directory.

    Raise :class:`ConfigError` if there is none.
    """
    text = STAGES.read_text(encoding="utf-8") if STAGES.exists() else ""
    found = re.search(r"--params ([A-Za-z0-9][A-Za-z0-9_-]*)\.yaml", text)
    if found is None:
        what = "no project of ebm-dist init" if text else "missing here"
        raise ConfigError(f"{STAGES}: {what}", "run ebm-dist init --data FILE first")
    return found[1]


def check_free(name: str) -> None:
    """Raise :class:`ConfigError` for a bad name, and for a file that exists already."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == STAGES.stem:
        raise ConfigError(f"{name!r}: no name of a project; use letters, digits, _ and -")
    for path in (Path(f"{name}.yaml"), STAGES):
        if path.exists():
            raise ConfigError(
                f"{path}: exists already, and nothing is overwritten",
                "use an empty folder, or remove the file",
            )


def write(name: str, content: Files) -> list[Path]:
    """Write the files of a project in the working directory, and return them.

    Raise :class:`ConfigError` as :func:`check_free` does.
    """
    check_free(name)
    texts = {Path(f"{name}.yaml"): content.params, STAGES: content.stages}
    for path, text in texts.items():
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    return [*texts]


def files(seen: Seen, task: str, name: str) -> Files:
    """Return the files of a project, with the suites that can evaluate a model of the data.

    Raise :class:`DataError` where the training split is too small to learn from.
    """
    loaded = _with_few_labels(seen) if task == "classify" else seen
    candidates, left_out = SUITES[task], dict[str, str]()
    if "anomalies" in seen.dataset:
        left_out["ood"] = "compares other data with inliers, and the test split has anomalies"
        candidates = tuple(suite for suite in candidates if suite not in left_out)
    values = YAML(typ="safe", pure=True).load(_params(loaded, task, name, candidates))
    settings = config.from_values(values, Path(f"{name}.yaml"))
    comparison = {} if len(loaded.prepared.shape) < 3 else {"photos": loaded.prepared}
    suites = []
    for suite in candidates:
        try:
            evaluation.check(settings, loaded.prepared, comparison, [suite])
            suites.append(suite)
        except EbmError as refused:
            left_out[suite] = refused.what.partition(": ")[2]
    if not suites:
        raise DataError(
            f"{seen.dataset['path']}: no suite can evaluate a model of these data:"
            f" {'; '.join(left_out.values())}",
            "provide more samples",
        )
    stages = _render("dvc.yaml.j2", name=name, suites=suites, training=config.TRAINING)
    return Files(_params(loaded, task, name, suites), stages, left_out)


def _with_few_labels(seen: Seen) -> Seen:
    """Return the data as an energy with one output per class learns them."""
    y = seen.data.splits["train"].y
    per_class = int(np.bincount(y).min()) if y is not None else 0
    data = few_labels.load(few_labels.Config(of=config_of(seen.dataset), per_class=per_class))
    section = {"name": "few_labels", "of": seen.dataset, "per_class": per_class}
    index, _ = write_index(data)
    return Seen(section, data, index, seen.notes)


def _params(seen: Seen, task: str, name: str, suites: Any) -> str:
    """Return the parameter file."""
    index = seen.prepared
    num_values, num_train = math.prod(index.shape), index.num_samples("train")
    are_images, is_small = len(index.shape) == 3, num_values <= _SMALL
    area = math.prod(index.shape[1:]) if are_images else 1
    share = min(1.0, _PIXELS / area)  # of steps and samples, for equal time
    num_steps = max(_FEWEST_STEPS, int(_STEPS * share))
    if task == "classify":
        kind, batch_size, num_steps = "classifier", 64, max(300, num_steps // 2)
    elif are_images and not is_small:
        is_grey = index.shape[0] == 1 and num_values <= _MEDIUM and num_train >= _MANY
        kind, batch_size = ("grey", 256) if is_grey else ("convolutional", 64)
    else:
        is_free = index.bounds is None and not are_images
        kind = ("anomaly" if task == "anomaly" else "table") if is_free else "bounded"
        batch_size, num_steps = 128, 2000
    return _render(
        "params.yaml.j2",
        name=name,
        task=task,
        kind=kind,
        dataset=seen.dataset,
        suites=suites,
        are_images=are_images,
        has_one_channel=index.shape[0] == 1,
        is_small=is_small,
        is_scored=features.is_measurable(index),
        num_steps=num_steps,
        batch_size=max(2, min(batch_size, num_train // 2 * 2)),
        radius=_RADIUS * num_values**0.5,
        feature_steps=max(100, int(600 * share)),
        num_samples=max(100, int(_NUM_SAMPLES * share)),
        chance=1 / max(1, index.num_classes),
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(  # noqa: S701 (of YAML, not of HTML)
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["flow"] = _flow
    return environment.get_template(template).render(values)


def _flow(value: Any) -> str:
    """Return a value as YAML in one line: keys and plugins are plain, other texts as in JSON."""
    if isinstance(value, dict):
        entries = (
            f"{key}: {entry if key == 'name' else _flow(entry)}" for key, entry in value.items()
        )
        return "{" + ", ".join(entries) + "}"
    return json.dumps(value, ensure_ascii=not str(value).isprintable())
