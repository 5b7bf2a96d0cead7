"""The parts of the command, in order of value.

Each takes a :class:`Job`, writes results as it has them, and returns whether nothing is left to do.
"""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import circumstances, langevin, precision
from benchmarks.gpu import toy
from benchmarks.gpu.job import Job
from ebm_dist import config, evaluation, models
from ebm_dist.config import Params, module_of
from ebm_dist.data import shards
from ebm_dist.data.prepare import write_all
from ebm_dist.errors import DataError, EbmError
from ebm_dist.files import read_json
from ebm_dist.generators import GeneratorModel
from ebm_dist.metrics import features
from ebm_dist.runs import code, lineage, provenance, record
from ebm_dist.storage import write_whole
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm
from ebm_dist.training.reporter import Request, Row

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RECIPES = code.ROOT / "pipelines/recipes"
CIFAR10 = "igebm-cifar10"
_TRAINING = 0.7  # share of the time that is left when training starts; the rest evaluates
_FIRST_SUITES = ("samples", "ood", "modes")

Changes = Mapping[str, Mapping[str, Any]]
"""Values that replace those of a parameter file, by section and key."""

MNIST_FILES = tuple(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
SOONER_SAVED: Changes = {"train": {"checkpoint_every": 250}}
"""For machines that go back any time. It is the run of the recipe: no digest has this key."""
WIDE: Changes = {
    # widths of Kumar et al. 2019: 512 channels, 128 latents, Adam with 1e-4 and betas of 0.5, 0.9
    "energy": {"channels": [64, 128, 256, 512], "hidden": 512},
    "objective": {
        "generator": {"name": "dcgan", "latent_size": 128, "channels": [512, 256, 128, 64]},
        "statistics_channels": [64, 128, 256, 512],
        "statistics_hidden": [512],
    },
    "optimizer": {"lr": 1.0e-4, "lr_factors": {}, "betas": [0.5, 0.9]},
    # of 100,000 published steps: about what ten minutes of a large GPU were estimated to take
    "train": {"num_steps": 10000, "num_shards": 1, "checkpoint_every": 500},
    "cluster": {"workers": 1, "use_gpu": True},
}


class MissingError(EbmError):
    """A part lacks what it needs: data, or the model of another part."""


class Part(NamedTuple):
    """A part and its share of the time, relative to the shares of the parts after it."""

    name: str
    title: str
    share: float
    run: Callable[[Job], bool]


# --- tests ---


def run_tests(job: Job) -> bool:
    """Run the tests that need a GPU; a later call leaves out those that have passed."""
    path = toy.TESTS if job.is_toy else "tests/integration/test_gpu.py"
    results: dict[str, str] = job.record.get("tests", {})
    passed = [name for name, result in results.items() if result == "PASSED"]
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", path, *(f"--deselect={name}" for name in passed)]
    log = job.out / f"{job.name}.log"
    with (
        log.open("a") as written,
        subprocess.Popen(
            command,
            cwd=code.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as tests,
    ):
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="", file=written, flush=True)
            if result := re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
                results[result[1]] = result[2]
                job.write(tests=results)
    failed = [name for name, result in results.items() if result in ("FAILED", "ERROR")]
    if tests.returncode not in (0, 1, 5) or not results:  # 5: all were left out
        raise RuntimeError(f"pytest ended with code {tests.returncode}; see {log}")
    job.say(f"{len(results) - len(failed)} of {len(results)} tests without a failure")
    if failed:
        raise RuntimeError(f"{len(failed)} tests failed, see {log}: {', '.join(failed)}")
    return True


# --- training and evaluation ---


def params_of(job: Job, recipe: str, changes: Changes) -> Params:
    """Return the settings of a recipe with changes, and those of the rehearsal over them."""
    values = config.load(RECIPES / f"{recipe}.yaml").as_dict()
    for more in (changes, toy.changes(recipe, job.work) if job.is_toy else {}):
        for section, change in more.items():
            is_whole = "name" in change or section in ("evaluation", "comparison_datasets")
            values[section] = change if is_whole else values[section] | change
    return config.from_values(values, RECIPES / f"{recipe}.yaml")


def need_files(job: Job, *names: str) -> None:
    """Need files in the folder of ``EBM_DATA_DIR``. Raise :class:`MissingError` otherwise."""
    folder = os.environ.get("EBM_DATA_DIR")
    if job.is_toy:
        return
    if folder is None:
        raise MissingError(
            f"needs {', '.join(names)}", "set EBM_DATA_DIR to the folder that has them"
        )
    if missing := [name for name in names if not Path(folder, name).is_file()]:
        raise MissingError(
            f"{folder}: {', '.join(missing)} missing",
            "bring them there, a large file in parts (--split, --data-parts)",
        )


def prepare(job: Job, params: Params, files: tuple[str, ...]) -> dict[str, shards.Index]:
    """Write data set and comparison sets as shards, unless they are there; return their indices.

    Raise :class:`MissingError` where one of the raw ``files`` is missing or incomplete.
    """
    folder, names = job.folder / "data", ["dataset", *params.comparison_datasets]
    if all((folder / name / shards.INDEX).exists() for name in names):
        return {name: shards.read_index(folder / name) for name in names}
    need_files(job, *files)
    try:
        return dict(write_all(params, folder))
    except DataError as incomplete:
        raise MissingError(incomplete.what, incomplete.fix) from None


@contextmanager
def classifier_beside(
    params: Params, index: shards.Index, folder: Path
) -> Iterator["Future[object] | None"]:
    """Train the classifier of FID-clf on the CPU, in another process, while the GPU trains."""
    if (folder / features.CARD).exists():
        yield None
        return
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.submit(_train_classifier, params.features, index, folder)


def _train_classifier(settings: features.Config, index: shards.Index, folder: Path) -> None:
    torch.set_num_threads(settings.num_threads)
    features.train(settings, index, folder)


class Until(record.FileReporter):
    """Keeps the record of a training, and asks for its end at a time."""

    def __init__(self, job: Job, run: Path, until: float) -> None:
        device = lineage.device_name(DEVICE.type)
        super().__init__(run, facts={"versions": provenance.versions(), "device": device})
        self.job, self.until = job, until

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        super().started(step, history, rollbacks, reason)
        self.job.say(f"training from step {step} ({reason})")
        self.job.call.setdefault("from_step", step)

    def metrics(self, row: Row, seconds: float) -> None:
        super().metrics(row, seconds)
        self.job.call["to_step"] = row["step"]
        self.job.write(num_steps=row["step"], training_seconds=round(seconds, 1))

    def requested(self) -> Request:
        return Request.STOP if time.time() > self.until else super().requested()


def train(job: Job, params: Params, index: shards.Index) -> int:
    """Train until the time is up, from the latest checkpoint; return the step reached.

    Export the model of that step to ``job.folder / "model"``. The folder of the run is one that
    stage train takes with ``--runs``.
    """
    digest = lineage.run_digest(params, index.digest)
    run = job.folder / "runs" / digest[:16]
    model = job.folder / "model"
    exported = read_json(model / "model.json", "train") if (model / "model.json").exists() else {}
    training = trainer.build(params, index, LocalComm(), DEVICE, digest)
    until = time.time() + _TRAINING * job.seconds_left
    step = training.fit(run, Until(job, run, until))
    job.call["to_step"] = step
    job.write(num_steps=step, num_steps_wanted=params.train.num_steps, run_digest=digest)
    job.say(f"{step} of {params.train.num_steps} steps are done")
    if step and (exported.get("num_steps"), exported.get("run_digest")) != (step, digest):
        shortened = replace(params, train=replace(params.train, num_steps=step))
        models.export(run, model, shortened, index, digest)
    return step


class PlacedGenerator(GeneratorModel):
    """A generator computed on the device, for latents ``(B, latent_size)`` on the CPU."""

    def __init__(self, network: GeneratorModel) -> None:
        super().__init__()
        self.network, self.latent_size = network.to(DEVICE), network.latent_size

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.network(z.to(DEVICE))
        return x.cpu()


class PlacedClassifier(nn.Module):
    """A classifier with features ``(B, dim)`` computed on the device, for images on the CPU."""

    def __init__(self, network: features.Classifier) -> None:
        super().__init__()
        self.classes, self.compute = network.classes, network.features
        self.layers = nn.ModuleList([network.convolutions, network.features_layer]).to(DEVICE)

    def features(self, x: Tensor) -> Tensor:
        return self.compute(x.to(DEVICE)).cpu()


def evaluate(job: Job, params: Params, indices: dict[str, shards.Index], step: int) -> bool:
    """Run the suites that have not been run on the model of this step; return whether all have."""
    classifier: Any = features.load(job.folder / "classifier")
    model = models.load(job.folder / "model")
    if "generator" in model.other_players:  # ten thousand modes need 260,000 samples
        placed = {"generator": PlacedGenerator(model.generator)}
        model = model._replace(other_players={**model.other_players, **placed})
        classifier = PlacedClassifier(classifier)
    others = {name: index for name, index in indices.items() if name != "dataset"}
    subject = evaluation.Subject(model, indices["dataset"], others, classifier)
    suites: dict[str, Any] = job.record.get("suites", {})
    in_order = sorted(params.evaluation.items(), key=lambda item: item[0] not in _FIRST_SUITES)
    for name, settings in in_order:
        if suites.get(name, {}).get("num_steps") == step:
            continue
        if job.seconds_left <= 0:
            return False
        report = module_of(settings).evaluate(settings, subject)
        suites[name] = {"num_steps": step, "metrics": report.metrics, "tables": report.tables}
        job.write(suites=suites)
        for figure, content in report.figures.items():
            if figure.endswith(".png"):
                (job.folder / name).mkdir(parents=True, exist_ok=True)
                write_whole(job.folder / name / figure, content)
            if figure == "samples.png":
                write_whole(job.out / f"{job.name}-samples.png", content)
        numbers = {k: v for k, v in report.metrics.items() if isinstance(v, float)}
        job.say(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    return True


def train_and_evaluate(job: Job, *, recipe: str, changes: Changes, files: tuple[str, ...]) -> bool:
    """Train a recipe on the GPU as far as the time goes, and evaluate the model of that step."""
    params = params_of(job, recipe, changes)
    indices = prepare(job, params, files)
    of_classifier = indices[params.features.dataset or "dataset"]
    with classifier_beside(params, of_classifier, job.folder / "classifier") as pending:
        step = train(job, params, indices["dataset"])
        if pending is not None:
            pending.result()
    is_evaluated = step > 0 and evaluate(job, params, indices, step)
    return is_evaluated and step == params.train.num_steps


# --- precision ---


def run_precision(job: Job) -> bool:
    """Compare chains in bfloat16 and float32 from the residual network that CIFAR-10 trained."""
    folder = job.work / CIFAR10
    if not (folder / "model/model.json").exists():
        raise MissingError(f"needs the model of part {CIFAR10}", "run that part first")
    trained, classifier = models.load(folder / "model"), features.load(folder / "classifier")
    assert classifier is not None
    real, _ = shards.read_split(shards.read_index(folder / "data/dataset"), "test")
    weights = trained.card["sha256"]["energy.safetensors"]
    sizes = toy.PRECISION if job.is_toy else precision.Sizes(chains=1000, num_steps=60, sets=3)
    job.write(model_num_steps=trained.card["num_steps"], weights=weights, **sizes._asdict())
    rows = list[dict[str, Any]]()
    for row in precision.measure(
        trained, classifier, real, sizes, cache=job.folder / weights[:16], until=job.until
    ):
        rows.append(row)
        job.write(rows=rows)
        job.say(precision.summary(row))
    return len(rows) == len(precision.KINDS)


# --- ratios ---


def run_langevin(job: Job) -> bool:
    """Measure sampling and training steps by the peers, a row at a time."""
    cases = toy.CASES if job.is_toy else langevin.ON_GPU
    if langevin.has("torchebm"):
        job.write(**circumstances("torchebm"))
    else:  # it is the peer of the cases without images
        cases = [case for case in cases if case.bounds is not None]
        job.say("torchebm is not installed: only the cases of images")
    rows: list[dict[str, Any]] = job.record.get("rows", [])
    done = {(row["network"], row["chains"], row["work"]) for row in rows}
    for case in reversed(cases):  # the largest network first
        for work in langevin.WORKS:
            if (case.name, case.num_chains, work) in done:
                continue
            if job.seconds_left <= 0:
                return False
            rows.append(langevin.row(case, work, DEVICE.type))
            job.write(rows=rows)
            job.say(langevin.summary(rows[-1]))
    return True


def _stacked(num_channels: int) -> Callable[[Job], bool]:
    recipe = "meg-stackedmnist" if num_channels == 3 else "meg-stackedmnist-10000"
    return partial(train_and_evaluate, recipe=recipe, changes=WIDE, files=MNIST_FILES)


PARTS = {
    part.name: part
    for part in (
        Part("tests", "the tests that need a GPU", 0.12, run_tests),
        Part(
            CIFAR10,
            "training, samples, FID-clf and out-of-distribution detection",
            0.6,
            partial(
                train_and_evaluate,
                recipe=CIFAR10,
                changes=SOONER_SAVED,
                files=("cifar10.npz", "svhn.npz", "textures.npz"),
            ),
        ),
        Part("precision", "chains in bfloat16 and float32, residual network", 0.08, run_precision),
        Part("langevin", "Langevin chains and training steps by the peers", 0.1, run_langevin),
        Part("stackedmnist-1000", "a thousand modes at the published width", 0.06, _stacked(3)),
        Part("stackedmnist-10000", "ten thousand modes at that width", 0.04, _stacked(4)),
    )
}
