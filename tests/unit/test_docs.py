"""The pages of docs/: they build without a warning, and what they let one type is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ebm_dist import config
from pipelines import cli
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "infra/README.md"]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```(?:bash|text|console)?\n(.*?)^```", page.read_text(), re.S | re.M)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    page = (tmp_path / "site/reference/ebm_dist.samplers.langevin/index.html").read_text()
    assert "step_size" in page and ":class:" not in page
    assert (tmp_path / "site/reports/benchmarks/langevin.png").exists()
    home = (tmp_path / "site/index.html").read_text()
    assert not re.findall(r'(?:src|href)="https?://', home.replace("https://squidfunk.github.io", ""))  # nothing from elsewhere


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_a_page_exists(page):
    for line in commands(page):
        words = shlex.split(line) if line and "'" not in line and "(" not in line else []
        if words[:1] == ["ebm-dist"]:
            wanted = words[1 : words.index("||")] if "||" in words else words[1:]
            cli.parser().parse_args(wanted)
        elif words[:2] == ["python", "-m"] and words[2].startswith(("pipelines", "benchmarks", "infra")):
            place = ROOT / words[2].replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), line
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).exists(), line
        elif words[:2] == ["dvc", "repro"] and "@" in line:
            recipe = words[2].partition("@")[2]
            assert (ROOT / f"pipelines/recipes/{recipe}.yaml").exists(), line
        for setting in re.findall(r"-S ([\w.]+)=", line):
            section, _, key = setting.partition(".")
            assert section == "recipe" or hasattr(getattr(config.load(ROOT / "params.yaml"), section), key), line
