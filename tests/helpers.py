"""What several tests need: a small parameter set, a trainer on it, groups of gloo processes."""

import copy
import multiprocessing
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ruamel.yaml import YAML

from ebm_dist import config, models
from ebm_dist.data import shards
from ebm_dist.training import checkpoint, trainer
from ebm_dist.training.reduce import Comm, LocalComm, TorchComm
from ebm_dist.training.reporter import Request, Row

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.worker"])

SMALL: dict[str, Any] = {
    "seed": 3,
    "dataset": {"name": "digits"},
    "energy": {"name": "mlp", "hidden": [24, 16]},
    "sampler": {"name": "langevin", "step_size": 0.02, "noise_scale": 0.1, "num_steps": 3},
    "objective": {"name": "contrastive_divergence", "energy_penalty": 0.01, "data_noise": 0.1},
    "replay": {"capacity": 64, "reinit_prob": 0.1},
    "optimizer": {"lr": 1e-3},
    "train": {
        "num_steps": 12,
        "batch_size": 16,
        "num_shards": 4,
        "log_every": 2,
        "checkpoint_every": 4,
    },
}


ENERGY_FOR: dict[str, dict[str, Any]] = {
    "semi_supervised": {"name": "classifier"},
    "maximum_likelihood": {"name": "density", "generator": {"name": "flow"}},
    "masked_likelihood": {"name": "conditionals", "hidden": [8]},
}
"""Energies of the objectives that do not learn any."""


def values(**sections: dict[str, Any]) -> dict[str, Any]:
    """SMALL with some keys of some sections replaced."""
    out = copy.deepcopy(SMALL)
    for name, section in sections.items():
        out[name] = section if "name" in section else out.get(name, {}) | section
    return out


def params(**sections: dict[str, Any]) -> config.Params:
    return config.from_values(values(**sections), Path("test"))


class Silent:
    """A reporter that keeps what it hears; stops after a number of steps, or asks for a checkpoint then, if told to."""

    def __init__(self, stop_after: int | None = None, asks: Request = Request.STOP) -> None:
        self.starts, self.rollbacks, self.rows, self.saves = (
            list[int](),
            list[int](),
            list[Row](),
            0,
        )
        self.stop_after, self.asks, self.count = stop_after, asks, 0

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        self.starts.append(step)
        self.rollbacks.append(rollbacks)

    def metrics(self, row: Row, seconds: float) -> None:
        self.rows.append(row)

    def saved(self, row: Row) -> None:
        self.saves += 1

    def requested(self) -> Request:
        self.count += 1
        return (
            self.asks
            if self.stop_after is not None and self.count > self.stop_after
            else Request.NOTHING
        )


def build(
    chosen: config.Params, data: Path, comm: Comm | None = None, digest: str = "digest"
) -> trainer.Trainer:
    torch.set_num_threads(1)
    return trainer.build(
        chosen, shards.read_index(data), comm or LocalComm(), torch.device("cpu"), digest
    )


def export(run: Path, folder: Path, chosen: config.Params, data: Path) -> None:
    index = shards.read_index(data)
    models.export(run, folder, chosen, index, "digest")


def state_of(run: Path) -> dict[str, bytes]:
    """The bytes of everything in the latest checkpoint that must not depend on how the run went."""
    folder = checkpoint.latest(run)
    assert folder is not None
    return {
        p.name: p.read_bytes()
        for p in folder.iterdir()
        if p.name not in ("manifest.json", "state.json")
    }


def spawn(
    world_size: int, run: Path, data: Path, settings: dict[str, Any], wait: bool = True
) -> list[Any]:
    """Train with a group of gloo processes; each is ``tests/worker.py``. They find each other through a file, not a port."""
    from tests import worker

    rendezvous = run.parent / f"rendezvous-{os.urandom(4).hex()}"
    run.parent.mkdir(parents=True, exist_ok=True)
    job = (world_size, rendezvous, run, data, settings)
    group = [
        PROCESSES.Process(target=worker.train, args=(rank, *job), daemon=True)
        for rank in range(world_size)
    ]
    for process in group:
        process.start()
    if wait:
        for process in group:
            process.join(100)
        assert [process.exitcode for process in group] == [0] * world_size
    return group


SMALL_PIPELINE = {
    "train": {
        "num_steps": 200,
        "batch_size": 32,
        "num_shards": 4,
        "log_every": 10,
        "checkpoint_every": 20,
    },
    "energy": {"name": "mlp", "hidden": [64, 32]},
    "replay": {"capacity": 128},
    "features": {"num_steps": 100, "num_threads": 1},
    "evaluation": {
        "samples": {"num_samples": 100, "num_steps": 40},
        "histogram": {},
        "ood": {"num_bootstrap": 50},
        "chains": {"num_draws": 20},
    },
    "register": {
        "model": "ebm-digits",
        "gates": [{"metric": "ood.uniform.auroc", "at_least": 0.5}],
    },
}


def join_group(rank: int, world_size: int, rendezvous: Path) -> Comm:
    """Join the gloo processes that meet at a file."""
    dist.init_process_group(
        "gloo",
        f"file://{rendezvous}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    return TorchComm(torch.device("cpu"))


def copy_project(folder: Path) -> Path:
    """The tracked files, as they are now, with the small settings: what a fresh clone is (dvc.lock included: its order stays)."""
    for name in subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0"):
        if name and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    values.update(SMALL_PIPELINE)
    yaml.dump(values, folder / "params.yaml")
    shutil.rmtree(folder / "reports", ignore_errors=True)
    for command in (["git", "init", "-q"], ["git", "add", "-A"]):
        subprocess.run(command, cwd=folder, check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "copy"],
        cwd=folder,
        check=True,
    )
    return folder
