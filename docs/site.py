"""Hooks of mkdocs: files outside docs/, a page per system of the results, and the reference."""

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from ebm_dist.report import figures, table
from pipelines.pictures import listed

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = "../reports/"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, the systems and the reference."""
    for page in ROOT.glob("docs/*.md"):
        for piece in page.read_text().split(f"]({_OUTSIDE}")[1:]:
            name = "reports/" + piece.partition(")")[0]
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for name, rows in systems().items():
        recipes = list(dict.fromkeys(recipe for row in rows for recipe in row["recipes"]))
        pictures = [
            f"../images/{entry['file']}"
            for entry in listed().values()
            if entry["plot"].partition("/")[0] in recipes
            and (ROOT / "docs/images" / entry["file"]).exists()
        ]
        files.append(File.generated(config, f"systems/{name}.png", content=picture(rows[0])))
        pictures.append(f"{name}.png")
        texts = {
            recipe: (ROOT / f"pipelines/recipes/{recipe}.yaml").read_text() for recipe in recipes
        }
        files.append(
            File.generated(
                config, f"systems/{name}.md", content=table.system_page(rows, pictures, texts)
            )
        )
    for name in modules():
        files.append(File.generated(config, f"reference/{name}.md", content=f"::: {name}\n"))
    return files


def on_config(config: Any) -> Any:
    """Add the systems and the reference to the navigation, with a section for each room."""
    pages = [{rows[0]["system"]: f"systems/{name}.md"} for name, rows in systems().items()]
    config.nav.append({"Each system": pages})
    sections: dict[str, list[dict[str, str]]] = {}
    for name in modules():
        title = name.removeprefix("ebm_dist.")
        sections.setdefault(room(name), []).append({title: f"reference/{name}.md"})
    config.nav.append({"Reference": [{title: pages} for title, pages in sections.items()]})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to reports/ point into the site."""
    return markdown.replace(f"]({_OUTSIDE}", "](reports/")


def on_page_content(html: str, **_: Any) -> str:
    """Remove the Sphinx roles of docstrings, which Markdown does not know."""
    return re.sub(r":(?:class|func|meth|mod):(<code)", r"\1", html)


def systems() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the results by system."""
    return table.systems(json.loads((ROOT / "docs/results.json").read_text()))


def picture(row: dict[str, Any]) -> bytes:
    """Draw the figure of a system: reached, published, and the values to compare with."""
    published = {} if row["published"] is None else {"published": row["published"]}
    beside = {label: value for label, value in row["beside"].items() if value is not None}
    values = {"reached": row["reached"], **published, **dict(table.ranked(row)), **beside}
    return figures.bars(
        values, row["interval"] and tuple(row["interval"]), f"{row['id']}: {row['what']}"
    )


def room(module: str) -> str:
    """Return the room of a module; ``ebm_dist`` for a file on the ground."""
    name = module.split(".")[1]
    return name if (ROOT / "ebm_dist" / name).is_dir() else "ebm_dist"


def modules() -> list[str]:
    """Return every module of the package that has a docstring."""
    names = []
    for path in sorted((ROOT / "ebm_dist").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "ebm_dist" and ast.get_docstring(ast.parse(path.read_text())):
            names.append(name)
    return names
