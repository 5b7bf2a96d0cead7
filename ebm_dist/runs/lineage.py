"""What a result came from: digests of settings, data and code, the git commit, the hashes that DVC holds."""

import ast
import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebm_dist.config import TRAINING, Params, modules_of
from ebm_dist.files import sha256

ROOT = Path(__file__).resolve().parents[2]
_MATHEMATICS = "ebm_dist.training.trainer"


def import_closure(*modules: str, root: Path = ROOT) -> set[Path]:
    """The project's own files that these modules import, directly or not, themselves included; paths relative to the root.

    Imports are read from the source, not run. Plugins, which are found by name at run time, are not followed.
    """
    found: set[Path] = set()
    queue = list(modules)
    while queue:
        path = _file_of(queue.pop(), root)
        if path is None or path in found:
            continue
        found.add(path)
        for node in _imports(ast.parse((root / path).read_text())):
            queue += (
                [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        package = path.parent / "__init__.py"
        if (root / package).exists():
            found.add(package)
    return found


def _imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    """All imports but those for type checking only."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and node not in skipped]


def _file_of(module: str, root: Path) -> Path | None:
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if module and (root / candidate).exists():
            return candidate
    return None


def code_digest(params: Params) -> str:
    """SHA-256 of the source that decides the result of training: the trainer's imports and the chosen plugins.

    How jobs are started and tracked is left out: a change there resumes a run instead of starting it anew.
    """
    plugins = [module.__name__ for name in ("energy", "sampler", "objective") for module in modules_of(getattr(params, name))]
    files = sorted(import_closure(_MATHEMATICS, *plugins))
    return _sha256({str(path): sha256(ROOT / path) for path in files})


def run_digest(params: Params, data_digest: str) -> str:
    """Names a training run: the same settings, data and code give the same digest, hence the same run."""
    return _sha256([params.digest(*TRAINING), data_digest, code_digest(params)])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def git_state() -> dict[str, str]:
    """Commit and whether files differ from it; in a job, which has no repository, the commit that the submitter names."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        named = os.environ.get("EBM_GIT_COMMIT")
        return {"git.commit": named} if named else {}
    return {"git.commit": commit, "git.dirty": str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()}


def dvc_hashes(lock: Path) -> dict[str, str]:
    """Hash of every output that a ``dvc.lock`` holds; empty if there is none yet."""
    if not lock.exists():
        return {}
    stages = (YAML(typ="safe", pure=True).load(lock.read_text()) or {}).get("stages", {})
    return {f"dvc.{out['path']}": out.get("md5", "") for stage in stages.values() for out in stage.get("outs", [])}


def hardware() -> dict[str, Any]:
    """The machine, in words: processor, its cores at hand, memory, and a GPU's name if there is one."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory), **gpu}
