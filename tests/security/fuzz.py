"""Broken and odd inputs of every kind: ``python -m tests.security.fuzz --inputs 5000 --seed 1``.

Kinds: data files, requests to a served model, records of runs, reports, names, and settings. Each
input is a valid one with changes, or put together at random; it goes through the code that a
command or server runs, in this process, and some of them through the command itself. It must end in
success, or in one message of the project with its exit code (a server: in a status 4xx), within 10
seconds, and must not write a file outside its folder. ``--only N`` repeats an input. The exit
status is 0 only if all inputs pass.
"""

import argparse
import asyncio
import collections
import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from PIL import Image
from starlette.requests import Request

import pipelines.prepare
from ebm_dist import cli, config, errors, models
from ebm_dist.cli import commands, scaffold
from ebm_dist.data import shards
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.models import requests
from ebm_dist.runs import provenance
from ebm_dist.runs.record import EVENTS, METRICS, FileReporter
from ebm_dist.training import checkpoint
from infra import serve
from tests import helpers
from tests.helpers import ROOT

LONGEST_SECONDS, MEMORY_BYTES = 10, 24 << 30
EXIT_CODES = {
    kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")
}  # fmt: skip


class Hang(BaseException):
    """An input took longer than ``LONGEST_SECONDS``."""


class Fault(Exception):
    """An input ended in another way than it may."""


# values


def junk(rng: random.Random, depth: int = 2) -> Any:
    """Return a value of JSON, or one that JSON only almost has."""
    if depth and rng.random() < 0.2:
        parts = [junk(rng, depth - 1) for _ in range(rng.randint(0, 3))]
        return parts if rng.random() < 0.5 else {name(rng): part for part in parts}
    return rng.choice(
        [
            None, True, False, -1, 0, 1, 2, 0.5, 10**12, 2**63, 10**30, -(10**400), 1e308, 3e38, 1e-320, float("nan"),
            float("inf"), "", "x", "1", "NaN", "energy", "\ud800", "\u202e", "<b>&amp;\"'", "a" * 5000, [], {}, [[]], name(rng),
        ]
    )  # fmt: skip


def name(rng: random.Random) -> str:
    """Return a name that is odd as a name of a file, or plain."""
    outside = "outside"
    return rng.choice(
        [
            f"../{outside}/x", f"../../{outside}/x", f"a/../../{outside}/x", "..", ".", "", " ", "a/b", "/", "a\\b", "C:x", "~", "-rf",
            "--help", "a\0b", "a\nb", "\u202ex", "\ud800", "é", "x" * 300, "%2e%2e/x", "${HOME}", "$(id)", "s3://x/y", "pipe:id",
            "file:///x", "con", "dataset", "train", "plain", "a.b", "a b", "*", "{x}", "\x1b[31m", "1", "None", "__init__",
        ]
    )  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything inside a value of JSON."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()  # fmt: skip
    for key, entry in items:
        yield from places(entry, (*path, key))


def changed(rng: random.Random, value: Any) -> Any:
    """Return a copy with one to three places replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        listed = list(places(value))
        if not listed or rng.random() < 0.03:
            return junk(rng)
        *path, last = rng.choice(listed)
        owner = value
        for key in path:
            owner = owner[key]
        how = rng.choice(["replace", "remove", "rename", "add"])
        if how == "replace":
            owner[last] = junk(rng)
        elif how == "remove":
            del owner[last]
        elif isinstance(owner, list):
            owner.insert(last, junk(rng))
        else:
            owner[name(rng)] = owner.pop(last) if how == "rename" else junk(rng)
    return value


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Return bytes that are cut off, flipped, filled, inserted, repeated or replaced."""
    parts = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(parts) + 1)
        how = rng.choice(["cut", "flip", "fill", "insert", "repeat", "replace", "empty"])
        if how == "cut":
            del parts[at:]
        elif how == "flip" and at < len(parts):
            parts[at] ^= rng.randint(1, 255)
        elif how == "fill":
            parts[at : at + 64] = bytes([rng.randrange(256)]) * len(parts[at : at + 64])
        elif how == "insert":
            parts[at:at] = rng.randbytes(rng.randint(1, 20))
        elif how == "repeat":
            parts[at:at] = parts[at : at + 200]
        elif how == "replace" and rng.random() < 0.3:
            parts = bytearray(rng.randbytes(rng.randint(0, 200)))
        elif how == "empty" and rng.random() < 0.1:
            parts = bytearray()
    return bytes(parts)


def text_of(rng: random.Random, value: Any) -> bytes:
    """Return a value as JSON, changed at its places, its bytes, or not at all."""
    how = rng.choice(["places", "places", "bytes", "both", "none"])
    if how in ("places", "both"):
        value = changed(rng, value)
    content = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return damaged(rng, content) if how in ("bytes", "both") else content


# kinds


class Case(NamedTuple):
    """One input."""

    about: str
    run: Callable[[], object]
    command: list[str] | None = None
    """Does the same in a process of its own"""


class Valid(NamedTuple):
    """What the inputs are made from."""

    folder: Path
    params: config.Params
    champion: Any
    served: Any
    """The model as MLflow's server loads it"""
    trainer: Any

    @classmethod
    def make(cls, folder: Path) -> "Valid":
        """Train and export a small model on 60 images; write a report of it."""
        values = helpers.values(train={"num_steps": 4, "log_every": 1, "checkpoint_every": 2})
        params = config.from_values(values, Path("fuzz"))
        draws = np.random.default_rng(0)
        splits = {
            split: Arrays(draws.integers(0, 256, (n, 1, 8, 8), np.uint8), np.arange(n) % 10)
            for split, n in (("train", 40), ("val", 10), ("test", 10))
        }
        data = Dataset(splits, 255.0, (0.0, 1.0), 10, "random bytes", False)
        shards.write(folder / "data", "digits", data)
        trainer = helpers.build(params, folder / "data")
        reporter = FileReporter(folder / "run")
        trainer.fit(folder / "run", reporter)
        helpers.export(folder / "run", folder / "model", params, folder / "data")
        options = requests.Options._field_defaults.items()
        specs = [ParamSpec(k, "string" if isinstance(v, str) else "long", v) for k, v in options]
        tensors = [TensorSpec(np.dtype(np.float32), (-1, 1, 8, 8))]
        outputs = [TensorSpec(np.dtype(np.float32), (-1,))]
        mlflow.pyfunc.save_model(
            folder / "mlflow",
            python_model=str(ROOT / "ebm_dist/registry/serving.py"),
            artifacts={"model": str(folder / "model")},
            signature=ModelSignature(Schema(tensors), Schema(outputs), ParamSchema(specs)),
            pip_requirements=[],
        )
        _write_report(folder / "report")
        champion = serve.Champion.func_or_class(str(folder / "model"))
        served = mlflow.pyfunc.load_model(str(folder / "mlflow"))
        return cls(folder, params, champion, served, trainer)


def _write_report(folder: Path) -> None:
    (folder / "ood/plots").mkdir(parents=True)
    (folder / "train/0").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "ood/plots/roc.png")
    seeds = {"0": {"auroc": 0.8, "noise": {"auroc": 0.98}}, "1": {"auroc": 0.9, "noise": {}}}
    content = {
        "ood/metrics.json": {"auroc": 0.9, "noise": {"auroc": 0.99}, "seeds": seeds},
        "ood/run.json": {
            "commit": "0" * 40, "code": "0" * 64, "metrics_code": "0" * 64, "params": "0" * 64, "data_digest": "0" * 64,
            "weights": {"0": "0" * 64}, "versions": {"torch": "2"}, "device": "cpu", "hardware": {"cpu": "A", "cores": 2},
        },
        "train/0/run.json": {
            "seconds": 3.0, "workers": [1, 2], "hardware": {"cpu": "A", "cores": 2}, "watts_a_worker": 50.0, "commit": "0" * 40,
            "code": "0" * 64, "prepare": "0" * 64, "params": "0" * 64, "weights": "0" * 64,
        },
        "registry.json": {
            "model": "ebm", "version": 3, "aliases": ["candidate"],
            "gates": [{"metric": "ood.auroc", "value": 0.9, "bound": ">= 0.95", "passes": False}],
        },
    }  # fmt: skip
    for file, value in content.items():
        (folder / file).write_text(json.dumps(value))
    (folder / "train/0/curves.csv").write_text("step,loss,gap\n10,3.0,1\n20,2.0,\n30,1.0,inf\n")


def data_file(rng: random.Random, valid: Valid, folder: Path) -> Case:
    """Prepare a data set from an array file or a folder of images."""
    container = rng.choice(["npy", "npz", "npz", "npz", "folder", "folder", "text"])
    path = folder / ("images" if container == "folder" else f"file.{container}")
    count = rng.choice([0, 1, 2, 3, 10, 30, 30, 30])
    if container == "npy":
        np.save(path, _array(rng, count), allow_pickle=False)
    elif container == "npz":
        keys = rng.choice([("images", "labels"), ("images",), ("train_images", "test_images"), ("x", "y")])  # fmt: skip
        arrays = {key: _labels(rng, count) if key[-6:] == "labels" else _array(rng, count) for key in keys}  # fmt: skip
        (np.savez if rng.random() < 0.5 else np.savez_compressed)(path, **arrays)
    elif container == "folder":
        path.mkdir()
        _pictures(rng, path, count)
    else:
        path.write_bytes(rng.randbytes(rng.randint(0, 300)))
    if rng.random() < 0.4:
        for file in [path] if path.is_file() else sorted(path.rglob("*.*"))[:1]:
            if file.is_file():
                file.write_bytes(damaged(rng, file.read_bytes()))
    options = rng.choice([{}, {}, {"test_fraction": 1.0, "val_fraction": 0.0}, {"max_samples": 3}, {"val_fraction": junk(rng)}])  # fmt: skip
    return _prepare(folder, {"dataset": {"name": "arrays", "path": str(path)} | options}, container)


def _array(rng: random.Random, count: int) -> np.ndarray[Any, Any]:
    kind = rng.choice(["u1", "u1", "f4", "f4", "f8", "f2", "i4", "u2", ">i2", "?", "c8", "U2", "i8", "M8[s]"])  # fmt: skip
    sizes = [rng.choice([0, 1, 2, 3, 4, 8, 9]) for _ in range(rng.randint(0, 4))]
    shape = rng.choice([(count, 8, 8), (count, 8, 8, 3), (count, 3, 8, 8), (count, 5), (count, *sizes)])  # fmt: skip
    draws = np.random.default_rng(rng.randrange(2**32))
    values = draws.choice([0, 1, 255]) * draws.random(shape)
    if np.dtype(kind).kind == "f" and values.size and rng.random() < 0.3:
        values.flat[0] = rng.choice([np.nan, np.inf, 3e38, 1e308, -1])
    with np.errstate(all="ignore"):
        return values.astype("i8").astype(kind) if kind.startswith("M8") else values.astype(kind)


def _labels(rng: random.Random, count: int) -> np.ndarray[Any, Any]:
    values = [rng.choice([0, 1, 2]) for _ in range(count)]
    return rng.choice(
        [
            np.array(values, "i8"), np.array(values, "i8"), np.array(values, "u1"), np.array(values, "f4"), np.array(values, "U3"),
            np.array([10**12] * count), np.array([-1] * count), np.array(values)[:, None], np.array([*values, 1]), np.array(3),
            np.array(values, "S2"), np.array([2**64 - 1] * count, "u8"), np.array(["\u202e", "a/b", "<b>"] * count)[:count],
        ]
    )  # fmt: skip


def _pictures(rng: random.Random, folder: Path, count: int) -> None:
    mode = rng.choice(["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "I", "F", "CMYK"])
    suffix = rng.choice(["png", "tif", "gif", "bmp", "webp", "jpg"])
    names = rng.choice([[""], ["a", "b"], ["10", "2"], ["train", "test"], [".hidden", "a"], ["a/b", "é"]])  # fmt: skip
    for i in range(min(count, 10)):
        target = folder / rng.choice(names) / f"{i}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        size = (8, 8) if rng.random() < 0.95 else (rng.choice([1, 7, 300]), 8)
        picture = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
        with contextlib.suppress(OSError, ValueError, KeyError):  # a mode that a format lacks
            picture.convert(mode).save(target)
        if rng.random() < 0.02:
            target.with_suffix(".png").unlink(missing_ok=True)
            target.with_suffix(".png").symlink_to(folder / "missing.png")


def _prepare(folder: Path, sections: dict[str, Any], about: str) -> Case:
    params, out = folder / "params.yaml", folder / "out"
    params.write_text(json.dumps(helpers.SMALL | sections))

    def run() -> None:
        sys.argv = ["prepare", "--params", str(params), "--out", str(out)]
        pipelines.prepare.main()
        shards.verify(index := shards.read_index(out / "dataset"))
        for split in index.splits:
            x, _ = shards.read_split(index, split)
            if not x.isfinite().all():
                raise Fault(f"{split} has values that are not finite")

    return Case(about, run)


def request(rng: random.Random, valid: Valid, folder: Path) -> Case:
    """Send a request to both servers' code."""
    image: Any = np.full((1, 8, 8), rng.choice([0, 0.5, 1, 3e38, -3e38, 1e300])).tolist()
    task = rng.choice(["energy", "classify", "sample", "complete"])
    steps = rng.choice([1, 2, 10, 10**4, 10**5, 0, -1])
    params = rng.choice([{}, {"task": task}, {"task": task, "num_steps": steps, "seed": rng.choice([0, -1, 2**62, 2**70])}])  # fmt: skip
    inputs = [image] * rng.choice([1, 2, 3, 1000 if steps > 10 else 4])
    body = text_of(rng, {"inputs": inputs, "params": params})
    if rng.random() < 0.01:
        body = b'{"inputs": ' + b" " * (9 << 20) + b"1}"
    if rng.random() < 0.02:
        body = rng.choice([b"[" * 10**5, b'{"inputs": ' + b"[" * 2000, b"1" * 5000, b"\xff\xfe", b"null"])  # fmt: skip

    def run() -> None:
        for server, (status, content) in {
            "Ray Serve": _ask_champion(valid.champion, body),
            "MLflow": _ask_mlflow(valid.served, body),
        }.items():
            if status not in (200, 400, 413):
                raise Fault(f"{server}: status {status}: {content[:300]!r}")
            try:
                json.loads(content, parse_constant=_refuse)
            except ValueError as failed:
                raise Fault(f"{server}: {failed}: {content[:300]!r}") from None

    return Case(f"{task} {body[:60]!r}", run)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _ask_champion(champion: Any, body: bytes) -> tuple[int, bytes]:
    parts = iter([body[i : i + (1 << 20)] for i in range(0, len(body), 1 << 20)])

    async def receive() -> dict[str, Any]:
        part = next(parts, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    scope = {"type": "http", "method": "POST", "headers": []}
    response = asyncio.run(champion(Request(scope, receive)))
    return response.status_code, response.body


def _ask_mlflow(served: Any, body: bytes) -> tuple[int, bytes]:
    schema = served.metadata.get_input_schema()
    try:
        json.loads(text := body.decode())
    except (ValueError, RecursionError):  # refused by MLflow's parser, before our code
        return 400, b"{}"
    try:
        result = scoring_server.invocations(text, "application/json", served, schema)
    except mlflow.exceptions.MlflowException as refused:
        return refused.get_http_status_code(), refused.serialize_as_json().encode()
    return result.status, result.response.encode()


def record(rng: random.Random, valid: Valid, folder: Path) -> Case:
    """Read a record, checkpoint, index or model with one file changed."""
    kind = rng.choice([METRICS, EVENTS, "checkpoint", "index", "model", "run.json"])
    source = {"index": "data", "model": "model", "run.json": "report"}.get(kind, "run")
    target = folder / source
    shutil.copytree(valid.folder / source, target)
    if kind in (METRICS, EVENTS):
        lines = (target / kind).read_bytes().splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at] = text_of(rng, json.loads(lines[at])) + b"\n"
        (target / kind).write_bytes(b"".join(lines[: rng.randint(at + 1, len(lines))]))
        return Case(kind, lambda: FileReporter(target).started(4, [{"step": 1}], 0, "resume"))
    if kind == "checkpoint":
        return Case(kind, _checkpoint(rng, valid, target))
    if kind == "run.json":
        file = target / rng.choice(["ood", "train/0"]) / "run.json"
        file.write_bytes(text_of(rng, json.loads(file.read_bytes())))
        (folder / "digits").mkdir()
        target.rename(folder / "digits/main")
        recipe = ROOT / "params.yaml"
        shutil.copy(recipe, folder / "main.yaml")
        return Case(kind, lambda: provenance.status(folder / "main.yaml", "ood", folder / "digits"))
    file = target / ("index.json" if kind == "index" else "model.json")
    if rng.random() < 0.3:
        file = rng.choice(sorted(target.iterdir()))
        file.write_bytes(damaged(rng, file.read_bytes()))
    else:
        file.write_bytes(text_of(rng, json.loads(file.read_bytes())))
    if kind == "model":
        return Case(f"model {file.name}", lambda: models.load(target))

    def read() -> None:
        shards.verify(index := shards.read_index(target))
        for split in index.splits:
            shards.read_split(index, split)

    return Case(f"index {file.name}", read)


def _checkpoint(rng: random.Random, valid: Valid, run: Path) -> Callable[[], object]:
    newest = checkpoint.latest(run)
    assert newest is not None
    manifest = newest / checkpoint.MANIFEST
    content = json.loads(manifest.read_bytes())
    if rng.random() < 0.5:
        manifest.write_bytes(text_of(rng, content))
    else:
        file = newest / rng.choice(sorted(content["files"]))
        whole = file.read_bytes()
        changed_bytes = text_of(rng, json.loads(whole)) if file.suffix == ".json" else damaged(rng, whole)  # fmt: skip
        file.write_bytes(changed_bytes)
        if rng.random() < 0.7:  # with a manifest that agrees
            digest = hashlib.sha256(changed_bytes).hexdigest()
            content["files"][file.name] = {"sha256": digest, "bytes": len(changed_bytes)}
            manifest.write_text(json.dumps(content))
    return lambda: valid.trainer.restore(run)


def report(rng: random.Random, valid: Valid, folder: Path) -> Case:
    """Write the page of a changed report."""
    target = folder / "report"
    shutil.copytree(valid.folder / "report", target)
    for file in rng.sample(sorted(path for path in target.rglob("*") if path.is_file()), 2):
        is_json = file.suffix == ".json"
        whole = file.read_bytes()
        file.write_bytes(text_of(rng, json.loads(whole)) if is_json else damaged(rng, whole))
    if rng.random() < 0.3:
        with contextlib.suppress(OSError, ValueError):
            (target / "ood").rename(target / name(rng))
    if rng.random() < 0.1:
        with contextlib.suppress(OSError, ValueError):
            (target / "train/0/curves.csv").write_text(f"step,{name(rng)}\n1,2\n")
    argv = ["report", str(target), "--out", str(folder / "page.html")]
    if rng.random() < 0.3:
        argv += ["--compare-with", str(valid.folder / "report")]
    return Case("report", lambda: _command(argv), argv)


def _command(argv: list[str]) -> None:
    args = commands.parser().parse_args(argv)
    getattr(commands, args.main)(args)


def odd_name(rng: random.Random, valid: Valid, folder: Path) -> Case:
    """Use a name where a plain one is expected."""
    word = name(rng)
    np.save(folder / "images.npy", np.zeros((20, 8, 8), np.uint8))
    arrays = {"name": "arrays", "path": str(folder / "images.npy"), "test_fraction": 1.0, "val_fraction": 0.0}  # fmt: skip
    place = rng.choice(["comparison", "others", "dataset", "settings", "compare", "report", "new", "model", "evaluation", "register"])  # fmt: skip
    about = f"{place} {word[:40]!r}"
    if place in ("comparison", "others"):
        key = "comparison_datasets" if place == "comparison" else "others"
        sections = {"dataset": arrays | {"test_fraction": 0.2}, key: {word: arrays}}
        return _prepare(folder, sections, about)
    if place == "dataset":
        return _prepare(folder, {"dataset": arrays | {rng.choice(["path", "name"]): word}}, about)
    if place == "new":
        (folder / "ebm_dist/samplers").mkdir(parents=True)
        shutil.copy(ROOT / "ebm_dist/samplers/langevin.py", folder / "ebm_dist/samplers")
        return Case(about, lambda: scaffold.write("sampler", word, folder))
    argv = {
        "settings": ["settings", "--", word],
        "compare": ["compare", "--", word, name(rng)],
        "report": ["report", "--out", str(folder / "page.html"), "--", word],
        "model": ["sample", "--out", str(folder / "x.npy"), "--", word],
    }.get(place)
    if argv:
        return Case(about, lambda: _command(argv), None if "\0" in "".join(argv) else argv)
    values = copy.deepcopy(helpers.SMALL)
    if place == "evaluation":
        values["evaluation"] = {word: rng.choice([{}, None, {"name": word}])}
    else:
        values |= {"register": {"model": word}, "tracking": {"experiment": word}}
    path = folder / "params.yaml"
    path.write_text(json.dumps(values))
    return Case(about, lambda: config.load(path))


def setting(rng: random.Random, valid: Valid, folder: Path) -> Case:
    """Load a changed parameter file."""
    path = folder / "params.yaml"
    if rng.random() < 0.3:
        path.write_bytes(damaged(rng, (ROOT / "params.yaml").read_bytes()))
    else:
        path.write_bytes(text_of(rng, helpers.SMALL | {"evaluation": {"samples": {}, "ood": {}}}))
    return Case("settings", lambda: config.load(path))


KINDS: dict[str, tuple[int, Callable[[random.Random, Valid, Path], Case]]] = {
    "data": (5, data_file),
    "request": (4, request),
    "record": (4, record),
    "report": (3, report),
    "name": (3, odd_name),
    "setting": (1, setting),
}
"""Each kind: how many of 20 inputs, and what makes one."""


# running


def outcome(run: Callable[[], object]) -> str:
    """Run an input as a command; return how it ended. Raise :class:`Fault`, :class:`Hang`."""

    def alarm(*_: object) -> None:
        raise Hang

    text = io.StringIO()
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(io.StringIO()):
            cli.run(run)  # type: ignore[arg-type]
    except SystemExit as ended:
        return checked(ended.code, text.getvalue())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "success"


def checked(code: Any, text: str) -> str:
    """Return how a command ended, or raise :class:`Fault` if it may not end like this."""
    if not code:
        return "success"
    if code not in EXIT_CODES or "Traceback" in text:
        raise Fault(f"exit code {code}: {text[-2000:]}")
    if text.count("error: ") < 1:
        raise Fault(f"exit code {code} without a message: {text[-300:]!r}")
    return f"exit code {code}"


def process_outcome(argv: list[str]) -> str:
    """Run a command in its own process."""
    script = "from ebm_dist.cli.commands import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], capture_output=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return checked(done.returncode, done.stderr.decode(errors="replace"))


def tree(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of each file of a folder except those in another."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns if path.is_file() else 0)
        for path in folder.rglob("*")
        if but not in path.parents and path != but
    }


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--inputs", type=int, default=5000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options.add_argument("--only", type=int, help="number of the one input to run")
    options.add_argument("--processes", type=int, default=20, help="inputs run as a command too")
    args = options.parse_args(argv)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))  # fmt: skip
    # the digests of the code are the same for all inputs
    pipelines.prepare.digests.check = lambda *_, **__: lambda: None
    wheel = [kind for kind in args.kinds for _ in range(KINDS[kind][0])]
    numbers = range(args.inputs) if args.only is None else [args.only]
    with tempfile.TemporaryDirectory() as base:
        return _all(Path(base), numbers, wheel, args)


def _all(base: Path, numbers: Any, wheel: list[str], args: argparse.Namespace) -> int:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures: list[str] = []
    num_processes, slowest = 0, 0.0
    (base / "outside").mkdir()
    valid = Valid.make(base / "valid")
    case_folder, began = base / "inside/case", time.monotonic()
    watched = (ROOT, Path("/"), Path.home())
    before = tree(base, base / "inside")
    before_top = {folder: set(os.listdir(folder)) for folder in watched}
    os.environ.pop("EBM_DATA_DIR", None)
    for number in numbers:
        rng = random.Random(f"{args.seed}/{number}")
        kind = wheel[number % len(wheel)]
        shutil.rmtree(base / "inside", ignore_errors=True)
        case_folder.mkdir(parents=True)
        os.chdir(case_folder)
        case, ended, fault, started = Case("not made", print), "", "", time.monotonic()
        try:
            case = KINDS[kind][1](rng, valid, case_folder)
            started = time.monotonic()
            ended = outcome(case.run)
            slowest = max(slowest, time.monotonic() - started)
            if case.command and num_processes < args.processes and number % 7 == 0:
                num_processes += 1
                as_process = process_outcome(case.command)
                if as_process != ended:
                    fault = f"as a process: {as_process}, here: {ended}"
        except Hang:
            fault = f"longer than {LONGEST_SECONDS} s"
        except Exception:  # noqa: BLE001 - what the fuzz looks for
            fault = traceback.format_exc(limit=-3)
        after = tree(base, base / "inside")
        beside = {f"inside/{entry}" for entry in os.listdir(base / "inside")} - {"inside/case"}
        if after != before or beside:
            changes = {path for path, _ in set(after.items()) ^ set(before.items())}
            fault += f"; wrote outside of its folder: {sorted(changes | beside)[:5]}"
        counts[kind]["fault" if fault else ended] += 1
        if fault:
            failures.append(kind)
            print(f"input {number} ({kind}: {case.about}): {fault}", flush=True)
            before = after
    os.chdir(ROOT)
    for folder, names in before_top.items():
        if new := set(os.listdir(folder)) - names:
            failures.append(str(folder))
            print(f"new files in {folder}: {sorted(new)[:5]}")
    for kind, ends in counts.items():
        print(f"{kind:8} {sum(ends.values()):5}: " + ", ".join(f"{n} {end}" for end, n in sorted(ends.items())))  # fmt: skip
    total = sum(sum(ends.values()) for ends in counts.values())
    print(
        f"{total - len(failures)} of {total} inputs ended in success or in a message with its exit"
        f" code; slowest {slowest:.1f} s; {num_processes} also as a process;"
        f" {time.monotonic() - began:.0f} s in all (seed {args.seed})"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
