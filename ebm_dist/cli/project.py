"""A project on the user's own data: look at the data, write its files, run it by DVC.

``write`` makes two files in the working directory, which need no edit: the parameter file and the
``dvc.yaml`` of the stages. It never overwrites a file.
"""

import hashlib
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml import YAML

from ebm_dist import config, evaluation
from ebm_dist.data import shards
from ebm_dist.datasets import Dataset, arrays, few_labels
from ebm_dist.errors import ConfigError, DataError, EbmError
from ebm_dist.files import read_json

TASKS = ("generate", "anomaly", "classify")
STAGES = Path("dvc.yaml")
_SUITES = {
    "generate": ("samples", "histogram", "ood", "chains"),
    "anomaly": ("anomaly", "histogram", "ood", "chains"),
    "classify": ("classification", "histogram", "ood"),
}
_SMALL = 256  # values of a sample for which a multilayer perceptron is enough
_PIXELS, _STEPS = 28 * 28, 1600  # of images, and training steps on them, in four minutes on 2 cores
_FEWEST_STEPS, _LARGE = 50, 64  # steps, and pixels a side
_RADIUS = 0.07  # of virtual adversarial changes, per square root of the number of values
_MAX_SHOWN = 8  # classes in a line


class Seen(NamedTuple):
    """What the data are."""

    dataset: dict[str, Any]
    """the section ``dataset``, without few labels"""
    data: Dataset
    prepared: shards.Index
    """what stage prepare would write; its files are deleted"""
    notes: tuple[str, ...]


class Files(NamedTuple):
    """The content of the two files of a project."""

    params: str
    stages: str
    left_out: dict[str, str]
    """why a suite is left out, by suite"""


def default_name(data: Path) -> str:
    """Return the name of a project on a file or folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", data.resolve().stem).strip("-_") or "model"


def inspect(
    data: Path, task: str, labels: str | None = None, anomalies: tuple[str, ...] = ()
) -> Seen:
    """Read the data. Raise :class:`DataError` for data that cannot be read or do not fit the task.

    For the task ``anomaly`` the rarer one of two classes is the anomaly if none is named.
    """
    folder = Path.cwd()
    path = data.resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{data!r}: the name is no UTF-8", "rename the file or folder") from None
    section: dict[str, Any] = {
        "name": "arrays",
        "path": str(path.relative_to(folder) if path.is_relative_to(folder) else path),
    }
    section |= {} if labels is None else {"labels": labels}
    seen = _look(section)
    section = section | _explicit(seen.data)
    counts = _class_counts(seen.data)
    if task == "anomaly" and counts and not anomalies:
        names = seen.data.class_names
        anomalies = names[seen.data.num_classes :]  # that only the test part has
        if not anomalies and len(counts) == 2:
            anomalies = (min(names, key=counts.__getitem__),)
        if not anomalies and len(counts) > 2:
            raise DataError(
                f"{data}: has {len(counts)} classes: {_listed(names)}",
                "name those that are anomalies, such as --anomalies " + names[-1],
            )
    if anomalies and task == "anomaly":
        section |= {"anomalies": list(anomalies)}
    if task == "classify" and len(counts) < 2:
        raise DataError(
            f"{data}: the task classify needs labels of at least two classes,"
            f" found {len(counts) or 'none'}",
            "add labels, name them with --labels, or choose another task",
        )
    return _look(section) if section != seen.dataset else seen


def _look(section: dict[str, Any]) -> Seen:
    data = arrays.load(_config(section))
    index, notes = _prepared(data)
    return Seen(section, data, index, notes)


def _config(section: dict[str, Any]) -> arrays.Config:
    keys: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in section.items()
        if key != "name"
    }
    return arrays.Config(**keys)


def _prepared(data: Dataset) -> tuple[shards.Index, tuple[str, ...]]:
    """Return the index that stage prepare would write, and its notes."""
    log = logging.getLogger(shards.__name__)
    level = log.level
    log.setLevel(logging.ERROR)  # describe shows the notes
    try:
        with tempfile.TemporaryDirectory() as folder:
            index = shards.write(Path(folder), "data", data)
            content = read_json(Path(folder) / shards.INDEX, shards.STAGE)
    finally:
        log.setLevel(level)
    return index, tuple(content.get("notes", ()))


def _explicit(data: Dataset) -> dict[str, Any]:
    """Return settings that do not depend on which values a file happens to have."""
    x = data.splits["train"].x
    if x.dtype.kind in "ui":
        return {"scale": data.scale}
    if x.ndim == 4 and data.bounds is None:
        for bounds in ([0.0, 1.0], [-1.0, 1.0]):
            if all(
                bounds[0] <= part.x.min() and part.x.max() <= bounds[1]
                for part in data.splits.values()
            ):
                return {"bounds": bounds}
        return {"standardise": True}
    return {}


def _class_counts(data: Dataset) -> dict[str, int]:
    counts = Counter[int]()
    for part in data.splits.values():
        counts.update([] if part.y is None else part.y.tolist())
    return {data.class_names[k]: counts[k] for k in sorted(counts)}


def describe(seen: Seen) -> Iterator[str]:
    """Yield a line per fact about the data."""
    data, shape = seen.data, seen.prepared.shape
    x = data.splits["train"].x
    count = sum(len(part.x) for part in data.splits.values())
    size = sum(part.x.nbytes for part in data.splits.values())
    kind = {"u": f"{8 * x.dtype.itemsize}-bit integers", "f": "floats"}[x.dtype.kind]
    if len(shape) == 3:
        channels, height, width = shape
        what = f"images of {height}x{width} pixels, {channels} channel{'s' * (channels > 1)}"
    else:
        what = f"rows of {shape[0]} column{'s' * (shape[0] > 1)}"
    low = min(part.x.min() for part in data.splits.values())
    high = max(part.x.max() for part in data.splits.values())
    yield f"data        {seen.dataset['path']}: {count:,} {what}, {size / 2**20:.1f} MiB"
    yield f"values      {kind} from {low:g} to {high:g}; a model sees {_transformation(data)}"
    if counts := _class_counts(data):
        shown = _listed(f"{name} ({number:,})" for name, number in counts.items())
        yield f"classes     {len(counts)}: {shown}"
    else:
        yield "classes     no labels"
    if anomalies := data.class_names[data.num_classes :]:
        yield f"anomalies   {_listed(anomalies)}: test samples only"
    yield "splits      " + ", ".join(f"{len(p.x):,} {name}" for name, p in data.splits.items())
    distinct = {
        hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        for part in data.splits.values()
        for row in part.x
    }
    yield f"duplicates  {count - len(distinct) or 'none'}"
    flat = x.reshape(len(x), -1)
    constant = int((flat.min(axis=0) == flat.max(axis=0)).sum())
    yield f"constant    {constant or 'no'} of {flat.shape[1]:,} values per sample"
    for note in seen.notes:
        yield f"note        {note}"
    if len(shape) == 3 and max(shape[1:]) > _LARGE:
        yield (
            f"note        in ten minutes a model of images above {_LARGE} pixels a side learns"
            " little: resize them, or raise train.num_steps and use a GPU"
        )


def _transformation(data: Dataset) -> str:
    if data.standardisation:
        return "columns of mean 0 and standard deviation 1"
    return f"values / {data.scale:g}" if data.scale != 1 else "the values"


def _listed(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more


def files(seen: Seen, task: str, name: str) -> Files:
    """Return the files of a project, with the suites that can evaluate a model of the data.

    Raise :class:`DataError` where the training split is too small to learn from.
    """
    loaded = _with_few_labels(seen) if task == "classify" else seen
    candidates, left_out = _SUITES[task], dict[str, str]()
    if "anomalies" in seen.dataset:
        left_out["ood"] = "compares other data with inliers, and the test split has anomalies"
        candidates = tuple(suite for suite in candidates if suite not in left_out)
    settings = _params(loaded, task, name, candidates)
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
    text = _text(loaded, task, name, suites)
    return Files(text, _stages(name, suites), left_out)


def _params(seen: Seen, task: str, name: str, suites: tuple[str, ...]) -> config.Params:
    text = _text(seen, task, name, list(suites))
    values = YAML(typ="safe", pure=True).load(text)
    return config.from_values(values, Path(f"{name}.yaml"))


def _with_few_labels(seen: Seen) -> Seen:
    """Return the data as an energy with one output per class learns them."""
    y = seen.data.splits["train"].y
    per_class = int(np.bincount(y).min()) if y is not None else 0
    data = few_labels.load(few_labels.Config(of=_config(seen.dataset), per_class=per_class))
    section = {"name": "few_labels", "of": seen.dataset, "per_class": per_class}
    index, _ = _prepared(data)
    return Seen(section, data, index, seen.notes)


def _text(seen: Seen, task: str, name: str, suites: list[str]) -> str:
    """Return the parameter file."""
    index = seen.prepared
    is_classifier = task == "classify"
    are_images, num_train = len(index.shape) == 3, index.num_samples("train")
    lines = _network(index, task)
    batch = max(2, min(lines.pop("batch"), num_train // 2 * 2))
    steps = lines.pop("steps")
    area = math.prod(index.shape[1:]) if are_images else 1
    share = min(1.0, _PIXELS / area)  # of the samples of small images, for equal time
    count = max(100, int(1000 * share))
    evaluated = {
        "samples": {"num_samples": count, "num_steps": 200},
        "histogram": {"max_samples": 2 * count},
        "ood": {"max_samples": 2 * count, "num_chains": count // 2},
        "chains": {"num_chains": max(10, count // 10)},
        "anomaly": {},
        "classification": {},
    }
    comments = {
        "samples": "chains from noise against held-out data",
        "histogram": "energies of training, test and other data",
        "ood": "energy against noise and other data",
        "chains": "mixing of the sampler",
        "anomaly": "energies of anomalies, and detectors without a model",
        "classification": "accuracy, and classifiers without an energy",
    }
    photos = "{photos: {name: photos}} # real images of another kind" if are_images else "{}"
    gates = _gates(seen, task, suites)
    return "\n".join(
        [
            f"# {name}: {task} on the user's own data. Run it with: ebm-dist run {name}",
            "# `ebm-dist settings` explains every key. The values are for ten minutes on 2 cores;",
            "# after a change the same command runs only the stages that depend on it.",
            "",
            "seed: 0",
            f"dataset: {_flow(seen.dataset)}{' # labels of the rarest class' * is_classifier}",
            f"comparison_datasets: {photos}",
            "",
            *(f"{key}: {value}" for key, value in lines.items()),
            "",
            "train:",
            f"  num_steps: {steps} # more steps give a better model",
            f"  batch_size: {batch}",
            "  num_shards: 2 # parts of batch and replay buffer, dealt to the workers",
            "  log_every: 20",
            "  checkpoint_every: 100 # a killed training resumes from the last one",
            "  max_rollbacks: 3 # after a divergence, go on from a checkpoint at a lower rate",
            "cluster: {workers: 2} # no result depends on it",
            "",
            f"features: {{num_steps: {max(100, int(600 * share))}}} # classifier behind FID-clf",
            "evaluation:",
            *(f"  {suite}: {_flow(evaluated[suite])} # {comments[suite]}" for suite in suites),
            "",
            f"tracking: {{experiment: {_flow(name)}}} # in MLflow",
            "register:",
            f"  model: {_flow(name)}",
            "  gates: # a version that passes all becomes champion" if gates else "  gates: []",
            *(f"    - {gate}" for gate in gates),
            "",
        ]
    )


def _flow(value: Any) -> str:
    """Return a value as YAML in one line: keys and plugins are plain, other texts as in JSON."""
    if isinstance(value, dict):
        entries = (
            f"{key}: {entry if key == 'name' else _flow(entry)}" for key, entry in value.items()
        )
        return "{" + ", ".join(entries) + "}"
    return json.dumps(value, ensure_ascii=not str(value).isprintable())


def _network(index: shards.Index, task: str) -> dict[str, Any]:
    """Return the sections that decide training, and the numbers ``steps`` and ``batch``."""
    shape, is_small = index.shape, math.prod(index.shape) <= _SMALL
    are_images = len(shape) == 3
    steps = int(_STEPS * _PIXELS / math.prod(shape[1:])) if are_images else 2000
    steps = max(_FEWEST_STEPS, min(_STEPS, steps))
    adam = "{lr: 1.0e-3, decay: 0.5, ema_decay: 0.99} # Adam; the rate decreases in the last half"
    if task == "classify":
        channels = "" if is_small or not are_images else "channels: [32, 64, 64], "
        return {
            "energy": f"{{name: classifier, {channels}hidden: [128, 128]}} # an output per class",
            "sampler": "{name: langevin, step_size: 1.0, noise_scale: 0.03, num_steps: 20}",
            "objective": "{name: semi_supervised, consistency_weight: 1.0,"
            f" radius: {_RADIUS * math.prod(shape) ** 0.5:.2g},"
            " entropy_weight: 0.1, unsupervised_weight: 0.003,\n"
            "    unsupervised: {name: noise_contrastive, generator: {name: gaussian},"
            " pretraining: 100, data_noise: 0.3}}",
            "replay": "{capacity: 64}",
            "optimizer": adam,
            "steps": max(300, steps // 2),
            "batch": 64,
        }
    if not are_images and index.bounds is None:
        return {
            "energy": "{name: mlp, hidden: [256, 128, 128], confinement: 1.0}"
            " # tilts a standard normal distribution",
            "sampler": "{name: mala, step_size: 0.02, num_steps: 10} # at temperature 1",
            "objective": "{name: contrastive_divergence, energy_penalty: 0.0, data_noise: 0.1}",
            "replay": "{capacity: 2048, reinit_prob: 0.03} # chains that persist between steps",
            "optimizer": adam,
            "steps": 2000,
            "batch": 128,
        }
    if is_small or not are_images:
        return {
            "energy": "{name: mlp, hidden: [256, 256, 256, 64]}",
            "sampler": "{name: langevin, step_size: 0.02, noise_scale: 0.1, num_steps: 10}",
            "objective": "{name: contrastive_divergence, energy_penalty: 0.01, data_noise: 0.1}",
            "replay": "{capacity: 2048, reinit_prob: 0.03} # chains that persist between steps",
            "optimizer": adam,
            "steps": 2000,
            "batch": 128,
        }
    is_grey = shape[0] == 1
    network = "[16, 32, 64, 64], hidden: 64" if is_grey else "[32, 48, 64], hidden: 96"
    return {
        "energy": f"{{name: convnet, channels: {network}}} # each convolution halves the image",
        "sampler": "{name: langevin, step_size: 10.0, noise_scale: 0.005,"
        f" num_steps: {15 if is_grey else 10}, score_clip: 0.03}}",
        "objective": "{name: contrastive_divergence, energy_penalty: 0.1, data_noise: 0.03}",
        "replay": "{capacity: 2000, reinit_prob: 0.05} # chains that persist between steps",
        "optimizer": adam,
        "steps": steps,
        "batch": 64,
    }


def _gates(seen: Seen, task: str, suites: list[str]) -> list[str]:
    gates = []
    if "anomaly" in suites:
        gates.append("{metric: anomaly.auroc, at_least: 0.6} # 0.5 is chance")
    if "classification" in suites:
        chance = 1 / seen.prepared.num_classes
        gates.append(
            f"{{metric: classification.accuracy, at_least: {(1 + chance) / 2:.3g}}}"
            f" # {chance:.3g} is chance"
        )
    if "ood" in suites and task == "generate":
        gates.append("{metric: ood.uniform.auroc, at_least: 0.9} # noise is unlikely")
    if "histogram" in suites and "anomaly" not in suites:  # else test samples are no inliers
        gates.append("{metric: histogram.train_test_auroc, at_most: 0.75} # 0.5: not memorised")
    return gates


def _stages(name: str, suites: list[str]) -> str:
    """Return ``dvc.yaml``. ``python -P`` keeps files of the user from hiding those of stages."""
    params, data, reports = f"{name}.yaml", f"data/{name}", f"reports/{name}"
    energy, classifier = f"models/{name}/energy", f"models/{name}/classifier"
    run = "python -P -m pipelines"
    reported = "\n".join(f"      - {reports}/{suite}" for suite in suites)
    return f"""\
# The stages of {params}: ebm-dist run {name}. Written by ebm-dist init.
# The first two always run. The others depend on what they write: the digests of the installed
# package's code, and those of the data.

stages:
  code:
    always_changed: true
    cmd: {run}.digests --params {params}
    outs:
      - data/code.json: {{cache: false}}

  sources:
    always_changed: true
    cmd: {run}.sources --params {params} --out data/sources.json
    outs:
      - data/sources.json: {{cache: false}}

  prepare:
    cmd: {run}.prepare --params {params} --out {data}
    deps:
      - data/sources.json
    params:
      - data/code.json: [prepare]
      - {params}: [dataset, comparison_datasets]
    outs:
      - {data}

  classifier: # without labelled images it writes that there is none
    cmd: {run}.classifier --params {params} --data {data} --out {classifier}
    deps:
      - {data}
    params:
      - data/code.json: [classifier]
      - {params}: [features]
    outs:
      - {classifier}

  train: # resumes if it was interrupted
    cmd: >-
      {run}.train --params {params} --data {data} --out {energy} --report {reports}/train
    deps:
      - {data}
    params:
      - data/code.json: [train]
      - {params}: [{", ".join(config.TRAINING)}]
    outs:
      - {energy}
      - {reports}/train/curves.csv: {{cache: false}}
    metrics:
      - {reports}/train/metrics.json: {{cache: false}}

  evaluate:
    matrix:
      suite: [{", ".join(suites)}]
    cmd: >-
      {run}.evaluate ${{item.suite}} --params {params} --data {data}
      --model {energy} --classifier {classifier} --out {reports}/${{item.suite}}
    deps:
      - {data}
      - {energy}
      - {classifier}
    params:
      - data/code.json: ["evaluate.${{item.suite}}"]
      - {params}: [comparison_datasets, "evaluation.${{item.suite}}"]
    outs:
      - {reports}/${{item.suite}}/plots
    metrics:
      - {reports}/${{item.suite}}/metrics.json: {{cache: false}}

  register: # champion if it passes the gates
    cmd: >-
      {run}.register --params {params} --model {energy} --reports {reports}
      --out {reports}/registry.json
    deps:
      - {energy}
      - {reports}/train/metrics.json
{reported}
    params:
      - data/code.json: [register]
      - {params}: [register, tracking]
    outs:
      - {reports}/registry.json: {{cache: false}}
"""


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


def repro() -> int:
    """Run the stages in the working directory by DVC; return its exit code.

    Signals go to all its processes, so a stage ends as after Ctrl-C and the next run resumes it.
    """
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_NO_ANALYTICS": "true",
    }
    dvc = [sys.executable, "-m", "dvc"]
    if not Path(".dvc").exists():
        options = [] if Path(".git").exists() else ["--no-scm"]
        done = subprocess.run([*dvc, "init", "--quiet", *options], env=environment, check=False)  # noqa: S603
        if done.returncode:
            return done.returncode
    process = subprocess.Popen([*dvc, "repro"], env=environment, start_new_session=True)  # noqa: S603
    stopped: KeyboardInterrupt | None = None
    while True:
        try:
            exit_code = process.wait()
            break
        except KeyboardInterrupt as signalled:
            stopped = signalled
            os.killpg(process.pid, signal.SIGINT)
    if stopped:
        raise stopped
    return exit_code


def results(name: str) -> Iterator[str]:
    """Yield where the results of a run are. Raise :class:`DataError` if it is not registered."""
    reports, model = Path("reports") / name, Path("models") / name / "energy"
    registered = read_json(reports / "registry.json", "register")
    picture = reports / "samples/plots/samples.png"
    yield (
        f"samples   {picture}"
        if picture.exists()
        else f"samples   ebm-dist sample {model} --out samples.npy"
    )
    yield f"scores    ebm-dist score {model} FILE --out scores.csv"
    aliases = " ".join(f"@{alias}" for alias in registered["aliases"])
    yield f"model     models:/{registered['model']}/{registered['version']} {aliases}".rstrip()
    for gate in registered["gates"]:
        if not gate["passes"]:
            yield f"          not champion: {gate['metric']} is {gate['value']}, {gate['bound']}"
