"""Hooks of mkdocs: what the benchmarks wrote, a page for each system of the results, and the reference, made from docstrings."""

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from ebm_dist.report import figures, table

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = "../reports/"


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside docs/, and the reference."""
    for page in ROOT.glob("docs/*.md"):
        for piece in page.read_text().split(f"]({_OUTSIDE}")[1:]:
            name = "reports/" + piece.partition(")")[0]
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name, own in systems().items():
        recipes = list(dict.fromkeys(recipe for row in own for recipe in row["recipes"]))
        pictures = [
            f"../images/{recipe}.png"
            for recipe in recipes
            if (ROOT / f"docs/images/{recipe}.png").exists()
        ]
        files.append(File.generated(config, f"systems/{name}.png", content=picture(own[0])))
        pictures.append(f"{name}.png")
        heads = {
            recipe: (ROOT / f"pipelines/recipes/{recipe}.yaml").read_text() for recipe in recipes
        }
        files.append(
            File.generated(
                config, f"systems/{name}.md", content=table.system_page(own, pictures, heads)
            )
        )
    for name in modules():
        files.append(File.generated(config, f"reference/{name}.md", content=f"::: {name}\n"))
    return files


def on_config(config: Any) -> Any:
    """The systems and the reference in the navigation, this a section for each package."""
    pages = [{own[0]["system"]: f"systems/{name}.md"} for name, own in systems().items()]
    config.nav.append({"Each system": pages})
    sections: dict[str, list[dict[str, str]]] = {}
    for name in modules():
        package = (
            name.split(".")[1] if (ROOT / "ebm_dist" / name.split(".")[1]).is_dir() else "the rest"
        )
        sections.setdefault(package, []).append(
            {name.removeprefix("ebm_dist."): f"reference/{name}.md"}
        )
    config.nav.append({"Reference": [{package: pages} for package, pages in sections.items()]})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(f"]({_OUTSIDE}", "](reports/")


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name things by Sphinx's roles, which Markdown does not know."""
    return re.sub(r":(?:class|func|meth|mod):(<code)", r"\1", html)


def systems() -> dict[str, list[dict[str, Any]]]:
    return table.systems(json.loads((ROOT / "docs/results.json").read_text()))


def picture(row: dict[str, Any]) -> bytes:
    """Return the figure of a system: reached, published and reference values."""
    published = {} if row["published"] is None else {"published": row["published"]}
    values = {"reached": row["reached"], **published, **row["reference"]}
    return figures.bars(
        values, row["interval"] and tuple(row["interval"]), f"{row['id']}: {row['what']}"
    )


def modules() -> list[str]:
    """Every module of ours that says what it is."""
    found = []
    for path in sorted((ROOT / "ebm_dist").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "ebm_dist" and ast.get_docstring(ast.parse(path.read_text())):
            found.append(name)
    return found
