"""A part of the command: its time limit, its record and its folders."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import circumstances
from ebm_dist.files import read_json, write_json
from ebm_dist.runs import lineage


def record_path(out: Path, name: str) -> Path:
    """Return the path of the record of a part."""
    return out / f"{name}.json"


def read_record(out: Path, name: str) -> dict[str, Any]:
    """Return the record of a part, empty if there is none.

    Raise :class:`DataError` where it is not JSON.
    """
    path = record_path(out, name)
    content = read_json(path, "benchmarks.gpu") if path.exists() else {}
    return content if isinstance(content, dict) else {}


def driver() -> str | None:
    """Return the version of the driver of the GPU, None where there is none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def commit() -> str:
    """Return the commit of the code, or that of ``EBM_GIT_COMMIT`` where there is no git."""
    named = os.environ.get("EBM_GIT_COMMIT", "")
    try:
        return lineage.code_commit() or named
    except OSError:
        return named


class Job:
    """One run of a part within a call of the command.

    ``until``: time at which the part should end by itself; it is killed a little later.
    """

    def __init__(self, name: str, out: Path, work: Path, until: float, is_toy: bool) -> None:
        self.name, self.out, self.work, self.until, self.is_toy = name, out, work, until, is_toy
        self.folder = work / name
        self.began = time.time()
        self.record = read_record(out, name)
        self.call: dict[str, Any] = circumstances() | {"driver": driver(), "commit": commit()}
        # at the top those of the last call, as in the files of the other benchmarks
        self.record |= self.call | {"calls": [*self.record.get("calls", []), self.call]}
        self.record.pop("error", None)
        self.write("running")

    @property
    def seconds_left(self) -> float:
        """Seconds until this part should end."""
        return self.until - time.time()

    def write(self, status: str = "running", **results: Any) -> None:
        """Write results and status to the record: what a killed part leaves is what it had."""
        self.record |= results | {"part": self.name, "status": status, "is_toy": self.is_toy}
        self.call["seconds"] = round(time.time() - self.began, 1)
        write_json(record_path(self.out, self.name), self.record)

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(f"  {self.name}: {text}", flush=True)
