"""The pages of docs/: they build without a warning, and what they let one type is there."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ebm_dist import config
from ebm_dist.cli.commands import parser
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "infra/README.md"]


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```(?:bash|text|console)?\n(.*?)^```", page.read_text(), re.S | re.M)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    page = (tmp_path / "site/reference/ebm_dist.samplers.langevin/index.html").read_text()
    assert "step_size" in page and ":class:" not in page
    assert (tmp_path / "site/reports/benchmarks/langevin.png").exists()
    system = (tmp_path / "site/systems/meg-25gaussians/index.html").read_text()
    assert "meg-25gaussians-quality" in system and "objective" in system
    assert (tmp_path / "site/systems/meg-25gaussians.png").read_bytes().startswith(b"\x89PNG")
    home = (tmp_path / "site/index.html").read_text()
    assert not re.findall(
        r'(?:src|href)="https?://', home.replace("https://squidfunk.github.io", "")
    )  # nothing from elsewhere


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_a_page_exists(page):
    for line in commands(page):
        words = shlex.split(line) if line and "'" not in line and "(" not in line else []
        if words[:1] == ["ebm-dist"]:
            wanted = words[1 : words.index("||")] if "||" in words else words[1:]
            parser().parse_args(wanted)
        elif words[:2] == ["python", "-m"] and words[2].startswith(
            ("pipelines", "benchmarks", "infra")
        ):
            place = ROOT / words[2].replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), line
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).exists(), line
        elif words[:2] == ["dvc", "repro"] and "@" in line:
            recipe = words[2].partition("@")[2]
            assert (ROOT / f"pipelines/recipes/{recipe}.yaml").exists(), line
        for setting in re.findall(r"-S ([\w.]+)=", line):
            section, _, key = setting.partition(".")
            assert (
                section == "recipe"
                or key == "name"
                or hasattr(getattr(config.load(ROOT / "params.yaml"), section), key)
            ), line


def test_an_experiment_names_the_main_job():
    """Without a target DVC warns about the outputs of each recipe that was never run."""
    for path in [*PAGES, ROOT / "params.yaml", *(ROOT / "pipelines/recipes").glob("*.yaml")]:
        assert "dvc exp run -S" not in path.read_text(), path


def functions(path: Path):
    """Public functions and methods, the classes that they are in, and classes themselves."""

    def within(node: ast.AST, classes: tuple[ast.ClassDef, ...]):
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                yield child, classes
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from within(child, (*classes, child))

    yield from within(ast.parse(path.read_text()), ())


SOURCES = sorted((ROOT / "ebm_dist").rglob("*.py"))
CONTRACTS = (
    {  # what a method does is said once, where it is asked for: in a protocol, a base class or the package of the plugins
        function.name
        for path in SOURCES
        for function, classes in functions(path)
        if classes and ast.get_docstring(function)
    }
    | {"check"}
)
AS_THE_PACKAGE_SAYS = {"Config", "State"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "ebm_dist")))
def test_everything_public_says_what_it_is_what_shapes_it_has_and_what_it_raises(path):
    package = ast.get_docstring(ast.parse((path.parent / "__init__.py").read_text())) or ""
    module = ast.get_docstring(ast.parse(path.read_text())) or ""
    for found, classes in functions(path):
        where, text = f"{path.name}:{found.lineno} {found.name}", ast.get_docstring(found) or ""
        if isinstance(found, ast.ClassDef):
            assert text or found.name in AS_THE_PACKAGE_SAYS, where
            continue
        is_contract = (classes and found.name in CONTRACTS) or f"``{found.name}(" in package
        assert text or is_contract, where
        raised = {
            node.exc.func.id
            for node in ast.walk(found)
            if isinstance(node, ast.Raise) and hasattr(getattr(node.exc, "func", None), "id")
        }
        if text and any(name.endswith("Error") for name in raised - {"NotImplementedError"}):
            assert re.search(r"\b[Rr]aises?\b", text), f"{where} raises {raised}"
        arguments = [*found.args.args, *found.args.kwonlyargs]
        annotations = " ".join(
            ast.unparse(a) for a in [*(one.annotation for one in arguments), found.returns] if a
        )
        if re.search(r"\bTensor\b", annotations) and text and not is_contract:
            said = text + module + " ".join(ast.get_docstring(one) or "" for one in classes)
            assert re.search(r"``\([^)]*[,*][^)]*\)|shape|one number|by name|log Z", said), (
                f"{where}: no shape"
            )


@pytest.mark.parametrize(
    "path",
    [
        *(path for folder in ("samplers", "objectives", "energies", "generators") for path in SOURCES if path.parent.name == folder and not path.name.startswith("_")),
        *(ROOT / f"ebm_dist/{name}.py" for name in ("chains/adaptation", "chains/augmentation", "registry/card", "chains/diagnostics", "metrics/features", "metrics/ais", "training/optim", "chains/replay", "chains/tempering")),
    ],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_mathematics_names_its_source(path):
    """A paper by author and year, in a docstring."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert any(re.search(r"[A-Z][a-z]+[ ,&.a-z]*\(?(?:19|20)\d\d", text) for text in texts)
