"""Measure the peak memory of the stages prepare and train, by process.

Run ``python -m benchmarks.memory --out reports/benchmarks/memory.json``. Own images of 32 x 32
bytes with 3 channels, of each size in MiB, are prepared and trained on for a few steps with two
workers.
Peaks are the largest resident sizes (VmHWM of /proc), so Linux is needed. The smallest size shows
what the libraries take; the others are also given as what they add to it, per raw byte.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ebm_dist.files import write_json

SIDE, CHANNELS = 32, 3
PARAMS = {
    "dataset": {"name": "arrays", "path": "images.npz"},
    "comparison_datasets": {},
    "energy": {"name": "convnet", "channels": [8, 16], "hidden": 16},
    "sampler": {"name": "langevin", "num_steps": 2},
    "objective": {"name": "contrastive_divergence"},
    "replay": {"capacity": 128},
    "optimizer": {"lr": 1.0e-3},
    "train": {"num_steps": 20, "batch_size": 32, "num_shards": 2, "checkpoint_every": 20},
    "cluster": {"workers": 2},
    "evaluation": {"histogram": {}},
}
STAGES = {
    "prepare": ["--out", "data"],
    "train": ["--data", "data", "--out", "model", "--report", "report", "--runs", "runs"],
}
WORKER = "RayTrainWorker"


def peaks(command: list[str], folder: Path) -> dict[str, float]:
    """Run a command; return peak memory in MiB of it and of the largest worker it started."""
    process = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    highest: dict[str, float] = {}
    while process.poll() is None:
        for part in [process, *_children(process)]:
            try:
                role = "worker" if WORKER in " ".join(part.cmdline()) else None
                role = "driver" if part.pid == process.pid else role
                status = Path(f"/proc/{part.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue  # it has ended
            line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
            if role and line:
                highest[role] = max(highest.get(role, 0.0), int(line.split()[1]) / 1024)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return highest


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def measure(mebibytes: int, folder: Path) -> dict[str, Any]:
    """Return the peaks of the stages on data of this size."""
    count = mebibytes * 2**20 // (SIDE * SIDE * CHANNELS)
    images = np.random.default_rng(0).integers(0, 256, (count, CHANNELS, SIDE, SIDE), np.uint8)
    np.savez(folder / "images.npz", images=images)
    (folder / "params.yaml").write_text(json.dumps(PARAMS))  # JSON is YAML
    row: dict[str, Any] = {"raw_mib": images.nbytes / 2**20}
    del images
    digests = [sys.executable, "-P", "-m", "pipelines.digests", "--params", "params.yaml"]
    subprocess.run(digests, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for stage, options in STAGES.items():
        command = [
            sys.executable,
            "-P",
            "-m",
            f"pipelines.{stage}",
            "--params",
            "params.yaml",
            *options,
        ]
        row |= {f"{stage}_{role}": peak for role, peak in peaks(command, folder).items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1, 117, 1024], help="MiB of images"
    )
    parser.add_argument("--out", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(size, Path(folder))
        base = rows[0] if rows else row
        row["added_per_raw_byte"] = {
            key: (row[key] - base[key]) / (row["raw_mib"] - base["raw_mib"])
            for key in row
            if key != "raw_mib" and row is not base
        }
        rows.append(row)
        print(
            "  ".join(f"{key} {value:.0f}" for key, value in row.items() if key[-4:] != "byte"),
            *(f"{key} {value:.2f}x" for key, value in row["added_per_raw_byte"].items()),
            flush=True,
        )
    if args.out:
        write_json(args.out, rows)


if __name__ == "__main__":
    main()
