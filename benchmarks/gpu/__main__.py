"""Run everything that needs a GPU, in order of value, within a number of minutes.

    python -m benchmarks.gpu --minutes 8 --out results

Each part has a share of the time; what a part leaves goes to those after it. Results are written as
they come, a file ``PART.json`` each. The same command again goes on where an earlier call stopped,
and leaves out the parts that are complete. A part that fails or lacks data does not stop the
others; the exit code is 1 if one has failed. ``EBM_DATA_DIR`` has the data; nothing is downloaded.

    python -m benchmarks.gpu --split cifar10.npz --out parts
    python -m benchmarks.gpu --data-parts parts --out results

brings a large file in parts: the second command joins what has arrived and says what is missing.
``--toy`` rehearses every part at toy size on the CPU, without data.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import data
from benchmarks.gpu.job import Job, read_record, record_path
from benchmarks.gpu.parts import PARTS, MissingError, Part
from ebm_dist import faults
from ebm_dist.cli import run
from ebm_dist.errors import ConfigError, reason
from ebm_dist.files import write_json
from ebm_dist.storage import remove_tree

_MARGIN = 0.05  # of the limit of a part: it should end by itself before it is killed
_FEWEST_SECONDS = 5.0  # with which a part is started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--work", type=Path, help="folder of data, checkpoints and models (default: OUT/work)"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="repeat the parts from the beginning")
    parser.add_argument("--toy", action="store_true", help="rehearse at toy size on the CPU")
    parser.add_argument(
        "--data-parts",
        type=Path,
        help="folder with files in parts; they are joined in EBM_DATA_DIR, or there if it is unset",
    )
    parser.add_argument("--split", type=Path, help="write this file in parts to OUT, and exit")
    parser.add_argument("--part-mib", type=int, default=60, help="largest size of such a part")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work = args.work or args.out / "work"
    if args.split:
        for path in data.split(args.split, args.out, args.part_mib):
            print(path)
    elif args.part:
        sys.exit(run_here(PARTS[args.part], args))
    else:
        sys.exit(run_all(args))


def run_all(args: argparse.Namespace) -> int:
    """Run the parts in turn, each in a process of its own; return the exit code.

    Raise :class:`ConfigError` without a GPU.
    """
    deadline = time.time() + 60 * args.minutes
    if not args.toy and not torch.cuda.is_available():
        raise ConfigError(
            "torch sees no GPU on this machine",
            "run the command where there is one, or rehearse on the CPU with --toy",
        )
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data_parts:
        folder = Path(os.environ.setdefault("EBM_DATA_DIR", str(args.data_parts)))
        for line in data.join(args.data_parts, folder):
            print(line, flush=True)
    for name in args.only if args.again else ():
        record_path(args.out, name).unlink(missing_ok=True)
        remove_tree(args.work / name)
    waiting = [part for part in PARTS.values() if part.name in args.only]
    waiting = [part for part in waiting if not _is_complete(args, part)]
    statuses = dict[str, str]()
    for i, part in enumerate(waiting):
        left = deadline - time.time()
        limit = left * part.share / sum(other.share for other in waiting[i:])
        if limit < _FEWEST_SECONDS:
            print(f"{part.name}: not started, {max(left, 0):.0f} s are left", flush=True)
            continue
        print(f"{part.name}: {part.title}; at most {limit:.0f} s", flush=True)
        statuses[part.name] = run_apart(part, args, limit)
    left_over = [part.name for part in waiting if statuses.get(part.name) != "complete"]
    if left_over:
        print(f"not complete: {', '.join(left_over)}; the same command goes on", flush=True)
    return int("failed" in statuses.values())


def _is_complete(args: argparse.Namespace, part: Part) -> bool:
    """Return whether an earlier call has completed a part of this size.

    Raise :class:`ConfigError` where the results are those of a rehearsal and this is none.
    """
    record = read_record(args.out, part.name)
    if record and record.get("is_toy") != args.toy:
        raise ConfigError(
            f"{record_path(args.out, part.name)}: is {'' if record.get('is_toy') else 'not '}of a"
            " rehearsal at toy size",
            "choose another --out",
        )
    if is_complete := record.get("status") == "complete":
        print(f"{part.name}: complete already", flush=True)
    return is_complete


def run_apart(part: Part, args: argparse.Namespace, limit: float) -> str:
    """Run a part in a process group of its own, which ends at the limit; return its status.

    A fault of the GPU ends one process only, and the memory of a part is free for the next.
    """
    began = time.time()
    until = began + (1 - _MARGIN) * limit
    paths = ["--out", str(args.out), "--work", str(args.work)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part.name, "--until", str(until)]
    child = subprocess.Popen(
        [*command, *paths, *(["--toy"] if args.toy else [])],
        stdin=subprocess.PIPE,
        env={**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if args.toy else {})},
        start_new_session=True,
    )
    error: str | None = None
    try:
        if code := child.wait(limit):
            error = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    except subprocess.TimeoutExpired:
        pass
    finally:
        _end_group(child)
    record = read_record(args.out, part.name)
    if record.get("status", "running") == "running":  # it could not say how it ended
        status = {"status": "failed", "error": error} if error else {"status": "partial"}
        record |= {"part": part.name, "is_toy": args.toy} | status
        write_json(record_path(args.out, part.name), record)
    error = f": {record['error']}" if "error" in record else ""
    print(f"{part.name}: {record['status']} in {time.time() - began:.0f} s{error}", flush=True)
    return str(record["status"])


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    """Kill a process and the processes that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_here(part: Part, args: argparse.Namespace) -> int:
    """Run a part in this process, write how it ended, and return the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    faults.arm_from_environment(0)
    job = Job(part.name, args.out, args.work, args.until, args.toy)
    ending: dict[str, Any]
    try:
        ending = {"status": "complete" if part.run(job) else "partial"}
    except MissingError as missing:
        ending = {"status": "skipped", "error": str(missing)}
    except (Exception, SystemExit) as failed:  # noqa: BLE001 (the other parts are to run)
        traceback.print_exc()
        ending = {"status": "failed", "error": reason(failed)}
    job.write(**ending)
    return int(ending["status"] == "failed")


def _end_with_parent() -> None:
    """Kill this process group when the other end of standard input is closed."""
    os.read(0, 1)  # nothing is ever written
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    run(main)
