"""Run the pipeline as a job: ``python infra/submit.py -- python infra/repro.py``.

Arguments go to ``dvc repro``. The job runs in a copy of the project without git history and data.
It pulls outputs that DVC has in the store ``EBM_STORE``, pushes new ones, and writes ``dvc.lock``
and the reports to ``<store>/results/<digest of dvc.lock>/``. It ends with the exit code of the
stage that failed, which ``dvc repro`` does not pass on.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from ebm_dist import storage
from ebm_dist.files import sha256


def dvc(*arguments: str) -> int:
    """Run a command of DVC; return its exit code."""
    return subprocess.run(["dvc", *arguments], check=False).returncode


def repro(*arguments: str) -> int:
    """Run ``dvc repro`` and print its output.

    Returns 0, or the exit code of the failed stage where DVC names it.
    """
    process = subprocess.Popen(
        ["dvc", "repro", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    codes = []
    for line in process.stdout:
        print(line, end="", flush=True)
        codes += re.findall(r"failed to run: .*, exited with (\d+)", line)
    code = process.wait()
    return int(codes[-1]) if code and codes else code


def main() -> int:
    if "EBM_STORE" not in os.environ:
        sys.exit(
            "error: EBM_STORE is not set on the cluster;"
            " set it to the store of data and runs, such as s3://bucket/prefix"
        )
    if not Path(".git").exists():
        dvc("config", "--local", "core.no_scm", "true")
    dvc(
        "remote",
        "add",
        "--local",
        "--quiet",
        "--force",
        "--default",
        "store",
        str(storage.store("dvc")),
    )
    # without targets DVC asks the store for every output of every recipe: minutes
    targets = [word for word in sys.argv[1:] if not word.startswith("-")] or ["dvc.yaml"]
    wanted = ("--quiet", "--run-cache", "--with-deps", *targets)
    dvc("pull", "--allow-missing", *wanted)  # missing outputs are made
    code = repro(*sys.argv[1:]) or dvc("push", *wanted)
    results = storage.store("results") / sha256(Path("dvc.lock"))[:16]
    for path in [Path("dvc.lock"), *Path("reports").rglob("*")]:
        if path.is_file():
            target = results / str(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.write_whole(target, path.read_bytes())
    print(f"dvc.lock and reports: {results}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
