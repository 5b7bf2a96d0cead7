"""The whole pipeline as a job: ``python infra/submit.py -- python infra/repro.py``; arguments go to ``dvc repro``.

The job works in a copy of the project without its git history and without data. What DVC has in the store of ``EBM_STORE`` is taken
from there, what is made is pushed there, and ``dvc.lock`` and the reports are left in ``<store>/results/<digest of dvc.lock>/``.
It ends with the exit code of the stage that failed, which ``dvc repro`` itself does not pass on.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from ebm_dist import storage
from ebm_dist.files import sha256


def dvc(*arguments: str) -> int:
    return subprocess.run(["dvc", *arguments], check=False).returncode


def repro(*arguments: str) -> int:
    """``dvc repro``, shown as it runs; 0, or the exit code of the failed stage where DVC names it."""
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
            "error: EBM_STORE is not set on the cluster: where are data and runs to lie? e.g. s3://bucket/prefix"
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
    dvc("pull", "--quiet", "--run-cache", "--allow-missing")  # what is not there is made
    code = repro(*sys.argv[1:]) or dvc("push", "--quiet", "--run-cache")
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
