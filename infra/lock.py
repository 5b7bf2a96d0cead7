"""Lock every package of ``constraints.txt`` by the SHA-256 of its published files.

    python -m infra.lock

``requirements-lock.txt`` has four sections: ``build`` (setuptools, for source packages), ``torch``,
``image`` (what else ``ebm-dist[infra]`` needs) and ``development`` (the rest).
``infra/docker/cuda-lock.txt`` has the libraries that only the CUDA build of torch needs. uv reads
the hashes of PyPI. The hash of a CPU wheel of torch comes from pip, so run this where pip finds
that wheel, for example with ``PIP_EXTRA_INDEX_URL`` or ``PIP_FIND_LINKS``.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ebm_dist.files import sha256

ROOT = Path(__file__).parents[1]
CUDA = Path("infra/docker/cuda-lock.txt")
_HEAD = "# Written by `python -m infra.lock`; do not edit.\n"
_USE = f"""\
# Install with: pip install --require-hashes --no-deps -r requirements-lock.txt
# The default build of torch also needs {CUDA}. For a CPU build, first install
# the section torch on its own, from the index of the CPU wheels.
"""


def compile_lock(*args: str) -> dict[str, str]:
    """Return for each package its pinned requirement with hashes, as uv resolves ``args``."""
    options = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url"]
    command = ["uv", "pip", "compile", "--quiet", *options, *args]
    text = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    return {entry.split("==")[0]: entry for entry in entries}


def hash_torch(version: str) -> tuple[str, str]:
    """Return the file name and the SHA-256 of the wheel of torch that pip chooses here."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        subprocess.run([*download, f"torch=={version}"], check=True)
        (wheel,) = Path(folder).iterdir()
        return wheel.name, sha256(wheel)


def main() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]]
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    locked = compile_lock("constraints.txt", "--no-deps")
    needed = compile_lock("pyproject.toml", "--extra", "infra", "--constraint", "constraints.txt")
    wheel, digest = hash_torch(versions["torch"])
    if digest not in locked["torch"]:
        locked["torch"] = f"{locked['torch'].rstrip()} \\\n    --hash=sha256:{digest}\n"
    print(f"torch: {wheel}")
    setuptools = needed.pop("setuptools")  # torch needs it, but pip freeze leaves it out
    cuda = [entry for name, entry in needed.items() if name not in locked]
    sections = {
        "build": [setuptools],
        "torch": [locked.pop("torch")],
        "image": [entry for name, entry in locked.items() if name in needed],
        "development": [entry for name, entry in locked.items() if name not in needed],
    }
    text = "".join(f"# {title}\n" + "".join(entries) for title, entries in sections.items())
    (ROOT / "requirements-lock.txt").write_text(_HEAD + _USE + text)
    (ROOT / CUDA).write_text(_HEAD + "".join(cuda))


if __name__ == "__main__":
    main()
